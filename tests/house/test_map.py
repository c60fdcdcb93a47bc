"""ARCHITECTURE.md is the map of the packages: it leaves nothing out and invents nothing."""

from __future__ import annotations

import re
from pathlib import Path

from tests.house.tree import PACKAGES, ROOT, files

MAP = ROOT / "ARCHITECTURE.md"

# Every package has them; they are described with their folder.
_WITH_THEIR_FOLDER = ("__init__.py", "__main__.py", "py.typed")


def _places() -> list[Path]:
    roots = [ROOT / root / package for root, package in PACKAGES.items()]
    return [path for path in files() if any(path.is_relative_to(root) for root in roots)]


def _named(text: str) -> set[str]:
    """File names on the map."""
    return set(re.findall(r"[\w.-]+\.(?:py|lua|mjs|cjs|json|js)\b", text))


def test_every_file_is_on_the_map() -> None:
    text = MAP.read_text()
    named = {*_WITH_THEIR_FOLDER, *_named(text)}
    folders = {f"{path.parent.relative_to(ROOT)}/" for path in _places()}
    assert {folder for folder in folders if f"{Path(folder).name}/" not in text} == set()
    assert {str(path.relative_to(ROOT)) for path in _places() if path.name not in named} == set()


def test_the_map_names_no_file_that_is_not_there() -> None:
    there = {path.name for path in files()}
    assert {name for name in _named(MAP.read_text()) if name not in there} == set()
