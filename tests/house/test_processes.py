"""What each process has in its memory once it is imported, as a real interpreter tells it."""

from __future__ import annotations

import subprocess
import sys

from tests.house.tree import ROOT, modules

_TELL = "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"


def _loaded(statement: str) -> set[str]:
    """Top-level modules that `statement` loads, beyond those of an empty interpreter."""
    program = f"import sys; before = set(sys.modules)\n{statement}\n{_TELL}"
    told = subprocess.run(
        [sys.executable, "-I", "-c", program], check=True, capture_output=True, text=True
    )
    return set(told.stdout.splitlines()[-1].split())


def _all_of(package: str) -> str:
    names = [m.name for m in modules() if m.name == package or m.name.startswith(f"{package}.")]
    return f"import {', '.join(names)}"


def test_the_worker_loads_only_the_standard_library() -> None:
    assert _loaded(_all_of("trivet_worker")) - sys.stdlib_module_names == {"trivet_worker"}


def test_the_launcher_loads_only_the_standard_library() -> None:
    own = {"trivet", "trivet_worker"}
    assert _loaded(_all_of("trivet.launcher")) - sys.stdlib_module_names <= own


def test_help_loads_nothing_heavy() -> None:
    statement = (
        "sys.argv = ['trivet', '--help']\n"
        "from trivet.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass"
    )
    heavy = {"asyncio", "botocore", "hiredis", "redis", "rich", "structlog", "uvicorn", "uvloop"}
    assert _loaded(statement) & heavy == set()


def test_platform_is_the_standard_librarys_from_the_root_of_the_tree() -> None:
    """A source root that became a package would take its place."""
    program = "import platform, sys; print(platform.__file__, sys.path[0] == '')"
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    place, is_here_first = told.stdout.split()
    assert place.endswith("/platform.py")
    assert is_here_first == "True"
