"""Hierarchies: the cgroup file systems of this machine, and where this process stands in them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# In v2 every cgroup can be frozen: "freezer" names the same folder as the others.
CONTROLLERS = ("memory", "cpu", "pids", "freezer")


@dataclass(frozen=True, slots=True)
class Survey:
    """Where this process could make cgroups, or the `reason` why nowhere."""

    version: int = 0
    own: Mapping[str, Path] = field(default_factory=dict)  # its own cgroup, by controller
    tops: Mapping[str, Path] = field(default_factory=dict)  # where that hierarchy is mounted
    reason: str = ""


def survey() -> Survey:
    return found_in(
        Path("/proc/self/mountinfo").read_text(errors="surrogateescape"),
        Path("/proc/self/cgroup").read_text(errors="surrogateescape"),
    )


def found_in(mountinfo: str, memberships: str) -> Survey:
    """The hierarchies to use, by these two files of /proc/self.

    In a hybrid of both versions, the one that has the memory controller.
    """
    own_v1, own_v2 = _memberships(memberships)
    own: dict[str, Path] = {}
    tops: dict[str, Path] = {}
    unified: tuple[Path, Path] | None = None
    for kind, root, top, options in _mounts(mountinfo):
        if kind == "cgroup2" and unified is None and own_v2 is not None:
            here = _shown(top, root, own_v2)
            unified = (top, here) if here is not None else None
        for name in options if kind == "cgroup" else ():
            if name in CONTROLLERS and name in own_v1 and name not in own:
                here = _shown(top, root, own_v1[name])
                if here is not None:
                    own[name], tops[name] = here, top
    if "memory" in own:
        if missing := [name for name in CONTROLLERS if name not in own]:
            return Survey(reason=f"no mounted cgroup hierarchy has {listed(missing)}")
        return Survey(1, own, tops)
    if unified is not None:
        top, here = unified
        return Survey(2, dict.fromkeys(CONTROLLERS, here), dict.fromkeys(CONTROLLERS, top))
    return Survey(reason="no cgroup hierarchy is mounted")


def _memberships(text: str) -> tuple[dict[str, str], str | None]:
    """Of v1, by controller; and of v2."""
    own_v1: dict[str, str] = {}
    own_v2 = None
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            own_v2 = path
        for name in controllers.split(","):
            own_v1[name] = path
    return own_v1, own_v2


def _mounts(mountinfo: str) -> Iterator[tuple[str, str, Path, list[str]]]:
    """Kind, root within the hierarchy, mount point and options, of each cgroup mount."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            root, top = (_unescaped(word) for word in before.split(" ")[3:5])
            yield kind, root, Path(top), options.split(",")


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _shown(top: Path, root: str, own: str) -> Path | None:
    """The folder of the cgroup `own`; None when a mount of `root` does not show it."""
    if ".." in (*root.split("/"), *own.split("/")):  # it belongs to another cgroup namespace
        return None
    with contextlib.suppress(ValueError):
        return top / Path(own).relative_to(root)
    return None


def listed(names: Iterable[str]) -> str:
    return " and ".join(names)
