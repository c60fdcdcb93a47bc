"""Making: the zygote's side of an environment, from what it needs before its birth to its end.

Whatever needs the host's files or network is done here; the rest is an order to the template. The
environment answers it through a pair of sockets, its report: with 0 when it is walled in, or the
errno that kept it from that. It is complete when its end closes after a 0.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from trivet_worker import doors, kernel, landlock, view, wire
from trivet_worker.isolation import NAMES, OF_SPAWN, WITH_MEMORY, Isolation, Order
from trivet_worker.template import ERRNO

_SENDER = struct.Struct("iII")  # what the kernel says of it: pid, uid, gid
_ROOM = socket.CMSG_SPACE(_SENDER.size)

_INODES_PER_MB = 128  # empty files cost kernel memory too
_DEFAULT_TMP_MB = 512

_FOLDER_MODE = kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV

_CLOSED = socket.socket()
_CLOSED.close()


@dataclass
class Environment:
    """What a zygote holds of an environment, from the order for it or its adoption to its end."""

    number: int
    uid: int
    pidfd: int = -1  # not known before its report
    pid: int = 0
    report: socket.socket = _CLOSED  # closed once it is known whether it is complete
    doors: int = 0  # DOOR_* bits
    given: list[int] = field(default_factory=list)  # what to hand on: a pidfd, then the doors
    is_doomed: bool = False  # killed before it was complete

    def send(self, number: int) -> None:
        """Send a signal. To one that has ended already it does nothing."""
        if self.pidfd < 0:
            self.is_doomed |= number == signal.SIGKILL
            return
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, number)

    def read(self) -> int | None:
        """What its report says: 0 if it is complete, or the errno that kept it from that.

        None if that is not known yet.
        """
        try:
            message, extras, _, _ = self.report.recvmsg(ERRNO.size, _ROOM)
        except BlockingIOError:
            return None
        if not message:
            return errno.ECANCELED if self.is_doomed else 0 if self.pidfd >= 0 else errno.EPROTO
        (failure,) = ERRNO.unpack(message)
        return failure or self._identify(extras[0][2]) or self.read()

    def _identify(self, sender: bytes) -> int:
        self.pid, _, _ = _SENDER.unpack(sender)
        try:
            self.pidfd = os.pidfd_open(self.pid)
            self.given.insert(0, os.dup(self.pidfd))
        except OSError as error:
            os.kill(self.pid, signal.SIGKILL)  # its number is its own until it is reaped
            return error.errno or errno.EPROTO
        return 0

    def discard(self) -> None:
        """Let go of what never was complete."""
        self.send(signal.SIGKILL)
        for each in (self.pidfd, *self.given):
            if each >= 0:
                os.close(each)


class _Kept(contextlib.ExitStack):
    """Descriptors that are closed again unless all goes well."""

    def own(self, descriptor: int) -> int:
        self.callback(os.close, descriptor)
        return descriptor


def prepare(
    level: Isolation, number: int, uid: int, second: int, given: Mapping[str, int], cgroup: str
) -> tuple[Environment, Order, list[int]]:
    """An environment to be, and the order for it with its descriptors, the caller's from now on.

    `second` is as SPAWN has it. `given`, what came beside it by name, stays the caller's. OSError
    if something cannot be had.
    """
    with _Kept() as kept:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.setblocking(False)
        environment = Environment(number, uid, report=ours)
        report = kept.own(theirs.detach())
        beside = {"report": report, **_folders(level, given, kept)}
        for name in given.keys() & {"channel", "log", "scratch"}:
            beside[name] = kept.own(os.dup(given[name]))
        if level.bits & wire.ISOLATION_LANDLOCK:
            beside["rules"] = kept.own(_rules(level, beside.get("code", -1)))
        flags, rest = (os.O_PATH, "") if level.is_unified else (os.O_WRONLY, "/cgroup.procs")
        places = [f"{base}/{cgroup}{rest}" for base in level.cgroups if cgroup]
        cgroups = [kept.own(os.open(place, flags)) for place in places]
        os.set_blocking(beside["channel"], True)
        if level.bits & wire.ISOLATION_UID:
            _give_log(beside["log"], uid)
        if level.bits & wire.ISOLATION_NETWORK:
            is_custom = bool(second & wire.AS_CUSTOM)
            beside["network"], bound = doors.open_doors(
                level, given.get("network", -1), is_custom=is_custom
            )
            environment.doors = sum(bound)
            environment.given = [door.detach() for door in bound.values()]
        kept.pop_all()
    descriptors = [beside.get(name, report) for name in NAMES]
    descriptors += cgroups or [report] * len(level.cgroups)
    tmp_mb = second >> 8 or _DEFAULT_TMP_MB
    tmp = f"mode=1777,size={tmp_mb}m,nr_inodes={tmp_mb * _INODES_PER_MB}"
    bits = second & OF_SPAWN | (0 if "scratch" in given else WITH_MEMORY)
    return environment, Order(uid, bits, tmp.encode()), descriptors


def _folders(level: Isolation, given: Mapping[str, int], kept: _Kept) -> dict[str, int]:
    """Code and layers, by name, as an environment is to be shown them.

    Read-only copies, which can be made only in the mount namespace that holds the folders. Whoever
    opened them may live among other mounts; if a path leads to the same folder here, then this is
    the folder that was meant, wherever the path came from.
    """
    folders = {}
    for name in sorted(given.keys() & {"code", "layers"}):
        path = os.readlink(f"/proc/self/fd/{given[name]}")
        if level.bits & wire.ISOLATION_MOUNT:
            folders[name] = kept.own(view.clone(path, given[name]))
            kernel.restrict_tree(folders[name], _FOLDER_MODE)
        else:
            # Anew, since one that was opened among other mounts would have no path inside.
            folders[name] = kept.own(os.open(path, os.O_PATH | os.O_DIRECTORY))
    return folders


def _rules(level: Isolation, code: int) -> int:
    """Of Landlock: the same for all behind a root of their own."""
    if level.rules >= 0:
        return os.dup(level.rules)
    return landlock.rules_of_the_host(level.folders, code)


def _give_log(log: int, uid: int) -> None:
    """Let /dev/stdout be opened, as on AWS. Root gives away a pipe, and nothing that has a name."""
    if os.readlink(f"/proc/self/fd/{log}").startswith("pipe:"):
        os.fchown(log, uid, uid)


def fill(level: Isolation, cell: int, given: Mapping[str, int]) -> None:
    """Put code and layers before the eyes of a waiting cell. OSError if that cannot be.

    Not another /tmp: the cell's rules of Landlock name the one that it has. Where nothing hides the
    code, INIT says where it is.
    """
    if level.bits & wire.ISOLATION_MOUNT:
        with _Kept() as kept:
            trees = _folders(level, given, kept)
            home = kept.own(os.open("/proc/self/ns/mnt", os.O_RDONLY))
            common = (os.fstat(home).st_ino, os.fstat(level.view).st_ino)
            if os.stat(f"/proc/{kernel.pid_of(cell)}/ns/mnt").st_ino in common:
                raise PermissionError(errno.EPERM, "it has no view of its own")
            try:
                kernel.join_namespaces(cell, kernel.CLONE_NEWNS)
                for name, tree in trees.items():
                    kernel.call(*kernel.attaching(tree, view.PLACES[name]))
            finally:
                kernel.come_back(home, kernel.CLONE_NEWNS)


def thaw(level: Isolation, uid: int) -> None:
    """Let what is frozen of `uid` go on, if only to its end."""
    for base in level.cgroups:
        with contextlib.suppress(OSError), open(f"{base}/{uid}/freezer.state", "w") as file:
            file.write("THAWED")


def uids_of(pidfd: int) -> set[int]:
    """All uids of a process; none if it has ended, or is none."""
    try:
        with open(f"/proc/{kernel.pid_of(pidfd)}/status") as file:
            return set(map(int, file.read().partition("\nUid:")[2].split()[:4]))
    except OSError:
        return set()
