"""How every file of the tree has to read."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import tokenize
from pathlib import Path

import pytest
from tests.house.tree import PACKAGES, ROOT, Module, dependencies, files, modules, texts

SILENCER = re.compile(r"#\s*(type: ignore|noqa|pragma:)")
REASONED = re.compile(r"#\s*(type: ignore\[[\w, -]+\]|noqa: [A-Z0-9, ]+|pragma: no cover)\s+# \w")


@pytest.mark.parametrize("root", PACKAGES)
def test_a_source_root_holds_one_package_and_no_python_of_its_own(root: str) -> None:
    inside = [path.name for path in (ROOT / root).iterdir() if path.name != "__pycache__"]
    assert inside == [PACKAGES[root]]


def test_every_module_begins_with_a_sentence() -> None:
    assert [module.place for module in modules() if not _begins_with_a_sentence(module)] == []


def _begins_with_a_sentence(module: Module) -> bool:
    docstring = ast.get_docstring(module.tree()) or ""
    return docstring.split("\n\n")[0].endswith((".", "?", ":"))


def test_whoever_silences_a_checker_says_why() -> None:
    silenced = [
        f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string}"
        for path in files()
        if path.suffix == ".py" and SILENCER.search(path.read_text())
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        if token.type == tokenize.COMMENT
        if SILENCER.search(token.string) and not REASONED.search(token.string)
    ]
    assert silenced == []


def test_nothing_is_left_for_later_in_a_comment() -> None:
    word = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    assert [place for place, text in texts() if word.search(text)] == []


def test_only_the_module_of_keys_spells_a_key() -> None:
    spelled = [
        f"{module.place}:{node.lineno}: {node.value!r}"
        for module in modules()
        if module.name != "trivet.bus.keys"
        for node in ast.walk(module.tree())
        if isinstance(node, ast.Constant) and re.search(r"\btrivet:\S", str(node.value))
    ]
    assert spelled == []
    assert [p for p, text in texts() if p.endswith(".lua") and "trivet:" in text] == []


# Homes and work folders of one machine; and where packages come from, which is the user's choice.
_OF_A_MACHINE = re.compile(
    r"(?<![\w.}])/(?:root|work)/[\w.]|/home/[a-z]+/|"
    r"(?:pypi|pythonhosted|npmjs)\.(?:org|com)|--(?:extra-)?index-url|--find-links"
)


def test_no_file_knows_a_machine_or_a_registry() -> None:
    here = str(Path(__file__).relative_to(ROOT))
    found = {
        place: match.group()
        for place, text in texts()
        if place != here and (match := _OF_A_MACHINE.search(text))
    }
    assert found == {}


@pytest.mark.parametrize("name", ["run", ".ci/run"])
def test_a_script_can_be_run_as_it_is(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    shell = (ROOT / name).read_text().splitlines()[0].rpartition("/")[2].split()[-1]
    subprocess.run([shell, "-n", ROOT / name], check=True)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_dependency_is_locked_by_hash(name: str) -> None:
    locked = re.findall(r"^([\w.-]+)==\S+ .*?\\$", (ROOT / name).read_text(), re.MULTILINE)
    assert dependencies() <= {*locked}
    for entry in re.split(r"^(?=\S)", (ROOT / name).read_text(), flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in entry, entry.splitlines()[0]
