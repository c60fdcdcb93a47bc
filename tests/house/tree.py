"""The tree as the house tests read it: its packages, their modules, every file that is ours."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Source root to the one package in it.
PACKAGES = {"platform": "trivet", "workers": "trivet_worker", "adapters": "trivet_adapters"}


@dataclass(frozen=True, slots=True)
class Module:
    """A Python file of one of the packages."""

    path: Path
    name: str  # "trivet.bus.keys"

    @property
    def place(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_bytes())

    @cache  # noqa: B019  # there are as many as modules, which are kept too
    def imports(self) -> tuple[tuple[str, str | None], ...]:
        """(module, name): ("trivet.bus", "keys") for `from trivet.bus import keys`."""
        return tuple(self._imports())

    def _imports(self) -> Iterator[tuple[str, str | None]]:
        for node in ast.walk(self.tree()):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name, None
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield self._absolute(node), alias.name

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parents = self.name.split(".")
        base = parents[: len(parents) - node.level + self.is_package]
        return ".".join([*base, *([node.module] if node.module else [])])


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the three packages."""
    return tuple(
        Module(path, _name(path.relative_to(ROOT / root)))
        for root, package in PACKAGES.items()
        for path in sorted((ROOT / root / package).rglob("*.py"))
    )


def _name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def files() -> tuple[Path, ...]:
    """Every file that is, or would be, under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return tuple(path for path in paths if path.is_file() and not path.is_symlink())


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """Place and content of each of them that holds text."""
    found = []
    for path in files():
        try:
            found.append((str(path.relative_to(ROOT)), path.read_text()))
        except UnicodeDecodeError:
            continue
    return tuple(found)


def dependencies() -> frozenset[str]:
    """What pyproject.toml lets the platform import. Each is imported by its package's name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return frozenset(requirement.split(">")[0] for requirement in project["dependencies"])
