"""Cgroups: the folders below which the supervisor limits, freezes and measures environments.

The launcher, as root, makes one base per hierarchy and gives it to the supervisor's uid. It also
empties it of what nobody answers for any more: what a killed predecessor left, or a supervisor.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trivet.launcher.folders import fingerprint
from trivet.launcher.hierarchies import CONTROLLERS, Survey, listed, survey
from trivet.launcher.identities import Identities, Identity
from trivet.settings import Settings

# How the supervisor finds the bases: {"version": 1 or 2, "paths": {controller: base}}.
VARIABLE = "TRIVET_CGROUPS_JSON"

_ENABLED_V2 = ("memory", "cpu", "pids")

# Where the platform itself lives in a v2 cgroup that was delegated to it: a cgroup that gives
# controllers to its children may hold no process.
OWN_CHILD = "platform"

_WITHIN_S = 5.0
# A process in an uninterruptible call freezes only when that returns; the rest need not wait.
_FROZEN_WITHIN_S = 0.25
_LOOK_AGAIN_S = 0.001
_ROUND_S = 0.25


# ------------------------------------------------------------------------------- making


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The bases; or, where there are none, the `reason`: then nothing here does anything."""

    version: int = 0
    paths: Mapping[str, str] = field(default_factory=dict)  # by controller
    reason: str = ""

    def __bool__(self) -> bool:
        return bool(self.paths)

    @property
    def bases(self) -> tuple[str, ...]:
        """Distinct paths."""
        return tuple(dict.fromkeys(self.paths.values()))

    def to_json(self) -> str:
        """What the supervisor inherits in `VARIABLE`; empty when there are none."""
        return json.dumps({"version": self.version, "paths": dict(self.paths)}) if self else ""

    def empty(self, within_s: float = _WITHIN_S) -> bool:
        """Kill all that lives below the bases, frozen or not, and remove its cgroups.

        False when something still lives `within_s` later: it is stuck in the kernel.
        """
        deadline = time.monotonic() + within_s
        while not self._remove_children():
            if time.monotonic() >= deadline:
                return False
            self._kill()
        return True

    def remove(self, within_s: float = _WITHIN_S) -> bool:
        """Empty the bases and remove them too. False when something still lives there."""
        return self.empty(within_s) and all([_is_removed(base) for base in self.bases])

    def _children(self) -> list[str]:
        return [folder for base in self.bases for folder in _below(base)]

    def _remove_children(self) -> bool:
        return all([_is_removed(folder) for folder in self._children()])

    def _kill(self) -> None:
        """One round: usually it is enough, and what it missed is seen by the next."""
        # Frozen processes do not fork: none escapes between the look and the kill. In v1 they
        # do not die either, so all are killed before the first is thawed.
        self._freeze()
        try:
            for pid in _pids(self._children()):
                _kill(pid, Path(self.bases[0]).name)
        finally:
            self._thaw()
        until_s = time.monotonic() + _ROUND_S
        while _pids(self._children()) and time.monotonic() < until_s:
            time.sleep(_LOOK_AGAIN_S)

    def _freeze(self) -> None:
        base = self.paths.get("freezer")
        if base is None:  # of a launcher that was killed while it made them
            return
        if self.version == 2:
            _tell(f"{base}/cgroup.freeze", "1")
            file, done = f"{base}/cgroup.events", "frozen 1"
        else:
            _tell(f"{base}/freezer.state", "FROZEN")
            file, done = f"{base}/freezer.state", "FROZEN"
        deadline = time.monotonic() + _FROZEN_WITHIN_S
        while done not in Path(file).read_text() and time.monotonic() < deadline:
            time.sleep(_LOOK_AGAIN_S)

    def _thaw(self) -> None:
        """The base, and what its supervisor froze below it."""
        base = self.paths.get("freezer")
        file, word = ("cgroup.freeze", "0") if self.version == 2 else ("freezer.state", "THAWED")
        for folder in (*_below(base), base) if base else ():
            _tell(f"{folder}/{file}", word)


def prepare(
    settings: Settings, identities: Identities | None, found: Survey | None = None
) -> Cgroups:
    """Make the bases of this data folder, whose lock is held, empty and the supervisor's own.

    Kills what a predecessor left behind, wherever in the hierarchies it stood.
    """
    if identities is None:
        return Cgroups(reason="only root can make cgroups")
    found = found or survey()
    if found.reason:
        return Cgroups(reason=found.reason)
    try:
        name = f"trivet-{fingerprint(settings)}"
        for left in _left_behind(found, name):
            left.remove()
        parents = found.own
        if found.version == 2:
            parents = dict.fromkeys(CONTROLLERS, _parent_v2(found))
        paths = {controller: str(parent / name) for controller, parent in parents.items()}
        for base in dict.fromkeys(paths.values()):
            _make(Path(base), found.version, identities.supervisor)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return Cgroups(reason=f"{where}{error.strerror or error}")
    return Cgroups(found.version, paths)


def _left_behind(found: Survey, name: str) -> Iterator[Cgroups]:
    """Bases of our name. A launcher of another session or unit made its own elsewhere."""
    seen: dict[Path, list[str]] = {}
    for top in found.tops.values():
        if top not in seen:
            seen[top] = [f"{at}/{name}" for at, below, _ in os.walk(top) if name in below]
    # Those of all hierarchies together: a process may have died while it joined one by one.
    while any(seen.values()):
        paths = {name: seen[top][0] for name, top in found.tops.items() if seen[top]}
        yield Cgroups(found.version, paths)
        seen = {top: bases[1:] for top, bases in seen.items()}


def _make(base: Path, version: int, owner: Identity) -> None:
    base.mkdir(mode=0o755, exist_ok=True)
    os.chown(base, owner.uid, owner.gid)
    if version == 2:
        _enable(base)
        # What the kernel asks of whoever is to arrange cgroups below this one.
        for file in ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
            if (base / file).exists():
                os.chown(base / file, owner.uid, owner.gid)


# ------------------------------------------------------------------------------------ v2


def _parent_v2(found: Survey) -> Path:
    """Our own cgroup if it was given to us to arrange, else the top; able to have children
    with the controllers. Raises OSError, with words of ours."""
    own, top = found.own["memory"], found.tops["memory"]
    if own.name == OWN_CHILD and _is_delegated(own.parent):
        own = own.parent
    parent = own if _is_delegated(own) else top
    offered = (parent / "cgroup.controllers").read_text().split()
    if missing := [name for name in _ENABLED_V2 if name not in offered]:
        raise OSError(f"cgroup v2 does not offer {listed(missing)} in {parent}")
    # Only the machine's own root, which has no type, may hold processes beside such children.
    if (parent / "cgroup.type").exists():
        step_aside(parent)
    _enable(parent)
    return parent


def _is_delegated(folder: Path) -> bool:
    """Whether systemd gave this cgroup to the unit that lives in it."""
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def step_aside(folder: Path) -> None:
    """Move every process of the v2 cgroup `folder` into a child. Raises OSError."""
    child = folder / OWN_CHILD
    child.mkdir(exist_ok=True)
    deadline = time.monotonic() + _WITHIN_S
    while (pids := _pids([str(folder)])) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                (child / "cgroup.procs").write_text(str(pid))


def _enable(folder: Path, controllers: Sequence[str] = _ENABLED_V2) -> None:
    wanted = " ".join(f"+{name}" for name in controllers)
    try:
        (folder / "cgroup.subtree_control").write_text(wanted)
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror} to enable {listed(controllers)}", str(folder)
        ) from error


# ------------------------------------------------------------------------------- killing


def _below(base: str) -> list[str]:
    """Every folder below `base`, the deepest first."""
    return [folder for folder, _, _ in os.walk(base, topdown=False) if folder != base]


def _pids(folders: Iterable[str]) -> set[int]:
    """Of the processes in these cgroups; a folder that is gone has none."""
    found: set[int] = set()
    for folder in folders:
        with contextlib.suppress(OSError):
            found.update(map(int, Path(folder, "cgroup.procs").read_text().split()))
    return found - {0}  # a process that our PID namespace does not show


def _kill(pid: int, base: str) -> None:
    """Kill a process that lives below a cgroup called `base`, and no other: a pid may pass on
    to somebody else at any time, but what a pidfd stands for is looked at and killed alike."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            if f"/{base}/" in Path(f"/proc/{pid}/cgroup").read_text():
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def _tell(file: str, text: str) -> None:
    """Write to a cgroup's file, unless that went with its cgroup."""
    with contextlib.suppress(OSError):
        Path(file).write_text(text)


def _is_removed(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


# ------------------------------------------------------------------------------- joining

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # one number on every architecture
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_CLOSE_ON_EXEC = 1


def favor_dynmods() -> int | None:
    """Make joining a cgroup, of any hierarchy, fast; processes fork and end a little slower.

    The kernel switches by an option of a mount. Ours is of a hierarchy without controllers, and
    attached nowhere: the returned descriptor is all that holds it, so keep that open. Linux
    from 6.18 on keeps the fast way until the machine restarts. None where this cannot be had.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    context = libc.syscall(_FSOPEN, b"cgroup", _CLOSE_ON_EXEC)
    if context < 0:
        return None
    try:
        for command, key, value in (
            (_SET_FLAG, b"none", None),
            (_SET_STRING, b"name", b"trivet"),
            (_SET_FLAG, b"favordynmods", None),
            (_CREATE, None, None),
        ):
            if libc.syscall(_FSCONFIG, context, command, key, value, 0) < 0:
                return None
        mount = int(libc.syscall(_FSMOUNT, context, _CLOSE_ON_EXEC, 0))
    finally:
        os.close(context)
    return mount if mount >= 0 else None
