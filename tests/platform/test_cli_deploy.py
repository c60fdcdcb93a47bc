"""What `trivet deploy` makes of files before it sends anything: package, runtime and handler."""

from __future__ import annotations

import io
import os
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from trivet.cli.exports import Exports, exports_of
from trivet.cli.handlers import Choice, choose
from trivet.cli.package import read_package
from trivet.errors import CallerError
from trivet.store.blobs import Blobs

OWN = f"python3.{sys.version_info.minor}"
HERE = (OWN, "nodejs20.x", "nodejs22.x")

NODE = "export const handler = async (event) => event;\n"
PYTHON = "def handler(event, context):\n    return event\n"


def folder(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


# ----------------------------------------------------------------------------- package


def test_one_file_is_a_zip_with_that_file(tmp_path: Path) -> None:
    package = read_package(folder(tmp_path, {"index.mjs": NODE}) / "index.mjs")
    assert package.names == ("index.mjs",)
    assert package.read("index.mjs") == NODE.encode()


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    files = {"b/c.py": "3", "a.py": "1", "b.py": "2"}
    first = folder(tmp_path / "first", files)
    second = folder(tmp_path / "second", dict(reversed(files.items())))
    os.utime(second / "a.py", (0, time.time() - 10**6))
    assert read_package(first).zip_bytes == read_package(second).zip_bytes
    (second / "a.py").chmod(0o755)
    assert read_package(first).zip_bytes != read_package(second).zip_bytes


def test_what_no_function_needs_is_left_out_and_its_modules_are_not(tmp_path: Path) -> None:
    kept = ["app.py", "lib/x.py", "node_modules/a/index.js", "node_modules/.bin/a"]
    dropped = [".git/config", "__pycache__/app.cpython-311.pyc", "lib/__pycache__/x.pyc", "y.pyc"]
    dropped += [".venv/bin/python", "env/pyvenv.cfg", "env/lib/x.py", ".mypy_cache/1", ".DS_Store"]
    folder(tmp_path, {**dict.fromkeys(kept + dropped, ""), ".gitignore": "node_modules\n"})
    assert sorted(read_package(tmp_path).names) == sorted(kept)


def test_an_ignore_file_says_more(tmp_path: Path) -> None:
    rules = "# comment\n\n*.md\n/build\ndocs/**/draft\ntest?/\n!KEEP.md\n[ab].txt\nc**d\n"
    kept = ["app.py", "KEEP.md", "lib/build/x", "docs/x", "tests", "c.txt"]
    dropped = ["README.md", "lib/a.md", "build/x", "docs/a/b/draft", "docs/draft", "testa/x"]
    dropped += ["a.txt", "lib/b.txt"]
    folder(tmp_path, {**dict.fromkeys(kept + dropped, ""), ".trivetignore": rules})
    assert sorted(read_package(tmp_path).names) == sorted(kept)


def test_links_inside_stay_links_and_are_taken_by_the_platform(tmp_path: Path) -> None:
    source = folder(tmp_path / "code", {"app.py": PYTHON, "lib/real.py": ""})
    (source / "lib" / "link.py").symlink_to("real.py")
    blobs = Blobs(tmp_path / "blobs")
    blobs.prepare()
    blob = blobs.put(read_package(source).zip_bytes)
    tree = blobs.tree(blob.sha256_hex)
    assert os.readlink(tree / "lib" / "link.py") == "real.py"


def test_a_link_that_leads_out_is_refused_with_what_mends_it(tmp_path: Path) -> None:
    source = folder(tmp_path / "code", {"app.py": PYTHON})
    (source / "out").symlink_to("../elsewhere")
    with pytest.raises(CallerError, match="outside") as refused:
        read_package(source)
    assert os.system(refused.value.hint) == 0
    assert read_package(source).names == ("app.py",)


def test_modes_arrive(tmp_path: Path) -> None:
    source = folder(tmp_path, {"run.sh": "#!/bin/sh\n", "app.py": ""})
    (source / "run.sh").chmod(0o700)
    (source / "app.py").chmod(0o600)
    archive = zipfile.ZipFile(io.BytesIO(read_package(source).zip_bytes))
    modes = {info.filename: info.external_attr >> 16 & 0o777 for info in archive.infolist()}
    assert modes == {"run.sh": 0o755, "app.py": 0o644}


def test_a_zip_is_sent_as_it_is(tmp_path: Path) -> None:
    place = tmp_path / "function.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("index.mjs", NODE)
    assert read_package(place).zip_bytes == place.read_bytes()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and then nothing", b"text"])
def test_what_only_calls_itself_a_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "function.zip").write_bytes(content)
    with pytest.raises(CallerError, match="cannot be read as a zip") as refused:
        read_package(tmp_path / "function.zip")
    assert refused.value.hint.startswith("unzip -t ")


def test_nothing_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="nothing to deploy"):
        read_package(tmp_path)
    with pytest.raises(CallerError, match="No such file"):
        read_package(tmp_path / "absent.py")


# ----------------------------------------------------------------------------- exports


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("export const handler = 1; export let b = 2", Exports(("handler", "b"))),
        ("export async function handler() {}\nexport class C {}", Exports(("handler", "C"))),
        ("const a = 1;\nexport { a, a as handler };", Exports(("a", "handler"))),
        ("export default async () => {}", Exports(("default",))),
        ("exports.handler = 1; module.exports.other = 2", Exports(("handler", "other"))),
        ("module.exports = { handler, b: { c: 1 }, async d() {} }", Exports(("handler", "b", "d"))),
        ("// export const handler = 1\n/* export const b = 1 */ 'export const c = 1'", Exports(())),
        ("export * from './x.mjs'", Exports((), is_all=False)),
        ("module.exports = require('./x')", Exports((), is_all=False)),
        ("module.exports = { ...require('./x'), a }", Exports(("a",), is_all=False)),
        ("export const { handler } = make()", Exports((), is_all=False)),
        ("Object.assign(exports, all)", Exports((), is_all=False)),
        ("const q = /'/; export const handler = 1", Exports(("handler",), is_all=False)),
        ("if (exports.handler === 1) {}", Exports(())),
    ],
)
def test_exports_of_javascript(source: str, expected: Exports) -> None:
    found = exports_of("index.js", source.encode())
    assert (set(found.names), found.is_all) == (set(expected.names), expected.is_all)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def handler(e, c): pass\ndef _own(): pass", Exports(("handler",))),
        ("handler = App()\na, b = 1, 2\nc: int = 1\nd: int", Exports(("handler", "a", "b", "c"))),
        ("try:\n    from x import handler\nexcept E:\n    handler = None", Exports(("handler",))),
        ("class A:\n    def handler(self): pass", Exports(("A",))),
        ("from x import y as handler", Exports(("handler",))),
        ("from x import *", Exports((), is_all=False)),
        ("def __getattr__(name): pass", Exports((), is_all=False)),
    ],
)
def test_exports_of_python(source: str, expected: Exports) -> None:
    assert exports_of("app.py", source.encode()) == expected


# ------------------------------------------------------------------ runtime and handler


def chosen(root: Path, files: Mapping[str, str], **told: str) -> Choice:
    package = read_package(folder(root, files))
    return choose(package, Choice(**told), Choice(), HERE)


@pytest.mark.parametrize(
    ("files", "runtime", "handler"),
    [
        ({"index.mjs": NODE}, "nodejs20.x", "index.handler"),
        ({"index.cjs": "exports.handler = 1"}, "nodejs20.x", "index.handler"),
        ({"app.py": PYTHON}, OWN, "app.handler"),
        ({"lambda_function.py": "def lambda_handler(e, c): 1"},
         OWN, "lambda_function.lambda_handler"),
        ({"main.py": "import x\ndef run(e, c): 1\ndef _o(): 1"}, OWN, "main.run"),
        ({"thing.py": PYTHON}, OWN, "thing.handler"),
        ({"app.py": PYTHON, "setup.py": "", "lib/index.mjs": NODE}, OWN, "app.handler"),
        ({"index.js": "1", "app.py": PYTHON}, OWN, "app.handler"),
        ({"package.json": '{"main": "./s.js"}', "s.js": "exports.handler=1", "b.js": ""},
         "nodejs20.x", "s.handler"),
    ],
)  # fmt: skip
def test_files_say_what_to_run(
    tmp_path: Path, files: Mapping[str, str], runtime: str, handler: str
) -> None:
    assert chosen(tmp_path, files) == Choice(runtime, handler)


def test_what_is_told_counts(tmp_path: Path) -> None:
    files = {"index.mjs": NODE, "src/other.py": PYTHON}
    assert chosen(tmp_path, files, runtime="nodejs22.x").runtime == "nodejs22.x"
    assert chosen(tmp_path, files, handler="src/other.handler").runtime == OWN
    assert chosen(tmp_path, files, handler="src.other.handler").handler == "src.other.handler"


def test_what_was_before_stays_where_it_fits(tmp_path: Path) -> None:
    package = read_package(folder(tmp_path, {"index.mjs": NODE, "b.mjs": "export const run = 1"}))
    before = Choice("nodejs22.x", "b.run")
    assert choose(package, Choice(), before, HERE) == before
    other = Choice(OWN, "app.handler")
    assert choose(package, Choice(), other, HERE) == Choice("nodejs20.x", "index.handler")


@pytest.mark.parametrize(
    ("files", "told", "says", "hint"),
    [
        ({"index.mjs": "export const main = 1"}, {"handler": "index.handler"},
         "index.mjs does not export 'handler': it has main", "--handler index.main"),
        ({"app.py": "def a(e, c): 1\ndef b(e, c): 1"}, {},
         "app.py has no function named handler: it has a, b", "--handler app.a"),
        ({"app.py": PYTHON}, {"handler": "ap.handler"},
         "the handler 'ap.handler' means one of", "--handler app.handler"),
        ({"index.mjs": "1"}, {}, "it exports nothing", "echo "),
        ({"app.py": PYTHON}, {"runtime": "nodejs20.x"}, "app.py is Python", "trivet deploy "),
        ({"app.py": PYTHON}, {"runtime": "python3"}, "did you mean python3.", "runtime list"),
        ({"app.py": PYTHON}, {"runtime": "nodejs24.x"}, "no runtime", "runtime add nodejs24.x"),
        ({"app.py": "def handler(:\n"}, {}, "app.py, line 1: invalid syntax", "py_compile"),
        ({"index.ts": ""}, {}, "has to be compiled", "npx esbuild"),
        ({"src/index.mjs": NODE}, {}, "at its top", "--handler src/index.handler"),
        ({"notes.txt": ""}, {}, "at its top", "trivet deploy --help"),
    ],
)  # fmt: skip
def test_a_wrong_handler_is_told_with_what_there_is(
    tmp_path: Path, files: Mapping[str, str], told: dict[str, str], says: str, hint: str
) -> None:
    with pytest.raises(CallerError) as refused:
        chosen(tmp_path, files, **told)
    assert says in refused.value.message
    assert hint in refused.value.hint


def test_a_family_that_is_not_here_is_told_with_what_adds_it(tmp_path: Path) -> None:
    package = read_package(folder(tmp_path, {"index.mjs": NODE}))
    with pytest.raises(CallerError, match=r"no Node\.js runtime") as refused:
        choose(package, Choice(), Choice(), [OWN])
    assert refused.value.hint == "trivet runtime add nodejs20.x"


def test_what_cannot_be_told_is_left_to_the_function(tmp_path: Path) -> None:
    files = {"index.js": "module.exports = require('./lib')"}
    assert chosen(tmp_path, files, handler="index.run").handler == "index.run"
