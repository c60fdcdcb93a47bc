"""Pythons: interpreters of this machine that could run functions beside Trivet's own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from trivet.cli.screen import command
from trivet.errors import CallerError
from trivet.runtimes import PYTHONS_FILE, AddedPython, added_pythons, root_unsafe

OLDEST = (3, 9)

NAME = re.compile(r"python(3\.(\d+))")

_PROBE = (
    "import json, os, platform, sys;"
    "print(json.dumps([platform.python_implementation(), list(sys.version_info[:3]),"
    " getattr(sys, '_base_executable', None) or sys.executable, os.path.dirname(os.__file__)]))"
)
_PROBE_WITHIN_S = 20.0


def find_python(name: str, variables: Mapping[str, str], *, as_root: bool) -> AddedPython:
    """The newest CPython of this name ("python3.12"). Raises CallerError.

    As root, none is even asked for its version that somebody else could write.
    """
    reasons = []
    for program in _places(name, variables):
        reason = root_unsafe(program) if as_root else None
        found = None if reason else _asked(name, program)
        if found and as_root:
            reason = root_unsafe(found.program) or root_unsafe(found.library)
        if found and not reason:
            return found
        if reason:
            reasons.append(reason)
    version = name.removeprefix("python")
    install = next(
        (f"{tool} {words}" for tool, words in _TOOLS if shutil.which(tool)),
        "sudo apt-get install python",
    )
    why = f": {reasons[0]}" if reasons else ""
    raise CallerError(
        f"no {name} that can be used is on PATH, or among those of pyenv and uv{why}",
        hint=f"{install}{version}; {command()} runtime add {name}",
    )


_TOOLS = (("uv", "python install "), ("pyenv", "install "))


def names_found(variables: Mapping[str, str]) -> list[str]:
    """Names of which there is an interpreter, by the look of it: none of them is run."""
    found = {place.name for place in _programs(variables) if NAME.fullmatch(place.name)}
    return sorted((name for name in found if is_new_enough(name)), key=_minor)


def is_new_enough(name: str) -> bool:
    return _minor(name) >= OLDEST[1]


def _minor(name: str) -> int:
    match = NAME.fullmatch(name)
    return int(match[2]) if match else 0


def _places(name: str, variables: Mapping[str, str]) -> Iterator[Path]:
    return (place for place in _programs(variables) if place.name == name)


def _programs(variables: Mapping[str, str]) -> Iterator[Path]:
    """Interpreters on PATH, then pyenv's and uv's own, newest first."""
    for folder in variables.get("PATH", os.defpath).split(os.pathsep):
        yield from _executables(Path(folder), "python3.*")
    home = Path(variables.get("HOME", "/"))
    share = Path(variables.get("XDG_DATA_HOME") or home / ".local" / "share")
    pyenv = Path(variables.get("PYENV_ROOT") or home / ".pyenv")
    managed = Path(variables.get("UV_PYTHON_INSTALL_DIR") or share / "uv" / "python")
    yield from _executables(pyenv / "versions", "3.*/bin/python3.*")
    yield from _executables(managed, "cpython-3.*/bin/python3.*")


def _executables(folder: Path, pattern: str) -> Iterator[Path]:
    try:
        found = sorted(folder.glob(pattern), key=_numbers, reverse=True)
    except OSError:
        return
    yield from (place for place in found if place.is_file() and os.access(place, os.X_OK))


def _numbers(place: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(place))]


def _asked(name: str, program: Path) -> AddedPython | None:
    """What an interpreter says of itself; None if it is not what its name says, or none at all."""
    try:
        told = subprocess.run(
            [program, "-I", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_WITHIN_S,
            check=True,
            env={"PATH": os.defpath, "HOME": os.environ.get("HOME", "/")},
        ).stdout
        implementation, version, base, library = json.loads(told)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if implementation != "CPython" or f"python{version[0]}.{version[1]}" != name:
        return None
    return AddedPython(
        name=name,
        program=os.path.realpath(base),
        version=".".join(map(str, version)),
        library=os.path.realpath(library),
    )


def add(folder: Path, python: AddedPython) -> None:
    """Write it into the list of a folder of runtimes."""
    others = [each for each in added_pythons(folder) if each.name != python.name]
    _write(folder, [*others, python])


def remove(folder: Path, name: str) -> bool:
    """Take it off the list; whether it was there."""
    present = added_pythons(folder)
    kept = [each for each in present if each.name != name]
    if len(kept) < len(present):
        _write(folder, kept)
    return len(kept) < len(present)


def _write(folder: Path, pythons: Iterable[AddedPython]) -> None:
    draft = folder / f"{PYTHONS_FILE}.new"
    draft.write_text(json.dumps([asdict(python) for python in pythons], indent=2) + "\n")
    draft.chmod(0o644)
    draft.replace(folder / PYTHONS_FILE)
