"""Privilege: a view of the files in which parts without privilege reach what they run and keep.

A Python under a 0700 home, or a clone there, is closed to every uid but its owner's. So the
launcher, when root, moves into mounts of its own. In them a small read-only tmpfs covers each such
home, holding only the way to the needed folders, which are bound at their own paths. Every
process started later inherits the view; the machine itself does not change.
"""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trivet.launcher import folders, kernel
from trivet.launcher.refusals import Unusable
from trivet.runtimes import Runtime
from trivet.settings import Settings

# As many as Linux follows in one path.
_MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class Needs:
    """What the parts must reach: places to read, and folders to write as well."""

    read: tuple[Path, ...]
    write: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class View:
    """What to cover, what to bind in it (parents first), and which links to make again."""

    covers: tuple[Path, ...]
    binds: tuple[Path, ...]
    links: tuple[tuple[Path, str], ...]
    writable: frozenset[Path]

    @property
    def is_needed(self) -> bool:
        return bool(self.covers)


def needs(settings: Settings, runtimes: Iterable[Runtime]) -> Needs:
    """Prefixes, source folders, runtimes; and the data folder's own folders."""
    programs = [Path(runtime.program) for runtime in runtimes]
    read = [
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(sys.executable),
        *source_folders(),
        *programs,
        *(program.parent.parent for program in programs),
    ]
    write = [settings.data_path / name for name in folders.NAMES]
    return Needs(tuple(dict.fromkeys(read)), tuple(write))


def source_folders() -> list[Path]:
    """The folders that hold our packages: source roots of a clone, or site-packages."""
    found = []
    for package in ("trivet", "trivet_worker", "trivet_adapters"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            found.append(Path(spec.origin).parent.parent)
    return found


# ------------------------------------------------------------------------- deciding


@dataclass(slots=True)
class _Way:
    """The places and links met on the way to the needed paths."""

    places: list[Path] = field(default_factory=list)
    links: dict[Path, str] = field(default_factory=dict)

    def walk(self, path: Path) -> Path:
        """The real path of `path`; every link passed is noted."""
        waiting = list(reversed(path.parts[1:]))
        here = Path("/")
        followed = 0
        while waiting:
            part = waiting.pop()
            if part == "..":
                here = here.parent
                continue
            place = here / part
            if not place.is_symlink():
                here = place
                continue
            followed += 1
            if followed > _MAX_LINKS:
                raise Unusable(f"{path} leads in a circle")
            target = os.readlink(place)
            self.links[place] = target
            here = Path("/") if target.startswith("/") else here
            waiting.extend(reversed([p for p in target.split("/") if p not in ("", ".")]))
        self.places.append(here)
        return here


def view(needs: Needs) -> View:
    """The smallest view in which any uid reaches `needs`; nothing to cover if all do already."""
    way = _Way()
    writable = frozenset(way.walk(path) for path in needs.write)
    for path in needs.read:
        way.walk(path)
    covers = _outermost(
        blocked for place in (*way.places, *way.links) for blocked in _closed_ancestors(place)
    )
    inside = [p for p in dict.fromkeys(way.places) if _is_within(p, covers)]
    # A place below another one comes with it, unless it must be writable and that one is not.
    binds = [
        place
        for place in inside
        if place in writable or not any(p in inside for p in place.parents if p not in writable)
    ]
    links = sorted((path, target) for path, target in way.links.items() if _is_within(path, covers))
    return View(
        covers=tuple(covers),
        binds=tuple(sorted(binds, key=lambda place: (len(place.parts), place))),
        links=tuple((path, to) for path, to in links if not _is_within(path, binds)),
        writable=writable,
    )


def _closed_ancestors(place: Path) -> list[Path]:
    """Folders above `place` that others may not pass. Owners and groups do not count: the
    parts run as uids that nobody gave a folder to."""
    return [folder for folder in place.parents if not folder.stat().st_mode & stat.S_IXOTH]


def _outermost(places: Iterable[Path]) -> list[Path]:
    found = sorted(set(places), key=lambda place: len(place.parts))
    return [p for i, p in enumerate(found) if not any(q in p.parents for q in found[:i])]


def _is_within(place: Path, folders: Iterable[Path]) -> bool:
    return any(folder in place.parents for folder in folders)


# --------------------------------------------------------------------------- doing


def enter(view: View) -> None:
    """Move this process into `view`. Raises Unusable, naming the step that failed."""
    held: dict[Path, int] = {}
    try:
        kernel.unshare_mounts()
        # Slave, not private: what the machine unmounts goes from here too, and ours stay ours.
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_SLAVE)
        # Opened in the new mounts: the kernel binds nothing that belongs to others.
        for place in view.binds:
            held[place] = os.open(place, os.O_PATH | os.O_CLOEXEC)
        for cover in view.covers:
            flags = kernel.MS_NOSUID | kernel.MS_NODEV
            kernel.mount("trivet", str(cover), "tmpfs", flags, "size=256k,nr_inodes=1k,mode=0755")
        for place in view.binds:
            _bind(place, held[place], read_only=place not in view.writable)
        for path, target in view.links:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.symlink_to(target)
        for cover in view.covers:
            kernel.make_read_only(str(cover), recursive=False)
    except OSError as error:
        raise Unusable(
            f"{view.covers[0]} is closed to other users, and no view around it could be made"
            f" ({error.strerror or error})",
            hint="clone into a folder that all may pass, /opt for one, or start as its owner",
        ) from error
    finally:
        for descriptor in held.values():
            os.close(descriptor)


def _bind(place: Path, descriptor: int, *, read_only: bool) -> None:
    """By descriptor: the cover already hides the path."""
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
    elif not place.exists():
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        place.touch(mode=0o755)
    source = f"/proc/self/fd/{descriptor}"
    kernel.mount(source, str(place), None, kernel.MS_BIND | kernel.MS_REC)
    if read_only:
        kernel.make_read_only(str(place), recursive=True)


def check_readable(needs: Needs) -> None:
    """Raises Unusable when a needed place itself is closed to other users: no view opens that."""
    for place in _samples(needs.read):
        mode = os.stat(place).st_mode
        wanted = 0o005 if stat.S_ISDIR(mode) else 0o004
        if mode & wanted != wanted:
            raise Unusable(
                f"{place} cannot be read by the uids that the platform's parts run as",
                hint=f"chmod -R go+rX {place if stat.S_ISDIR(mode) else place.parent}",
            )


def _samples(places: Sequence[Path]) -> list[Path]:
    """Each place, and one file of each tree: a tight umask closes them all alike."""
    own = [Path(os.__file__), Path(__file__), Path(__file__).parent]
    return [*places, *own]
