"""Making: an environment from its fork until it is complete, on both sides of a report.

The report is a pair of sockets. The child tells what doors it has opened, or the errno that kept
it from being complete; it is complete when its end closes.
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
from typing import NoReturn

from trivet_worker import kernel, link
from trivet_worker.isolation import REPORT_FD, Isolation, Place

# Of a program that is not Python; a function's own come with INIT.
_VARIABLES = {"LANG": "en_US.UTF-8", "PATH": "/usr/local/bin:/usr/bin:/bin"}

_REPORT = struct.Struct("<Ii")  # DOOR_* bits with the sockets beside them, or an errno


_CLOSED = socket.socket()
_CLOSED.close()


@dataclass
class Environment:
    """What a zygote holds of an environment, from its fork or adoption until its end."""

    number: int
    uid: int
    pidfd: int
    pid: int = 0  # 0: adopted, the child of another
    report: socket.socket = _CLOSED  # closed once it is known whether it is complete
    doors: int = 0  # DOOR_* bits
    given: list[int] = field(default_factory=list)  # what to hand on: a pidfd, then the doors
    failure: int = 0  # the errno that kept it from being complete

    def send(self, number: int) -> None:
        """Send a signal. To one that has ended already it does nothing."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, number)

    def read(self) -> int | None:
        """What its report says now: 0 if it is complete, or the errno that kept it from that.

        None if that is not known yet, or has been known before.
        """
        if self.report.fileno() < 0:
            return None
        try:
            while True:
                message, descriptors = link.receive(self.report, _REPORT.size)
                if not message:
                    self.given.insert(0, os.dup(self.pidfd))
                    return 0
                self.given += descriptors
                self.doors, self.failure = _REPORT.unpack(message)
                if self.failure:
                    return self.failure
        except BlockingIOError:
            return None
        except OSError as error:
            self.failure = error.errno or errno.EPROTO
            return self.failure


def begin(level: Isolation, number: int, uid: int, cgroup: str) -> Environment:
    """Fork an environment, or OSError. In the child, which has REPORT_FD, `pid` is 0."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        pid, pidfd = level.fork(cgroup)
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        os.dup2(theirs.detach(), REPORT_FD, inheritable=False)
    theirs.close()
    return Environment(number, uid, pidfd, pid, ours)


def become(level: Isolation, place: Place, command: tuple[str, ...]) -> None:
    """In the child: all that stands between the fork and the user's code.

    `command` is a program to go on as, if any. Ends this process if anything fails.
    """
    try:
        level.enter(place, _give)
        if command:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.execve(command[0], command, _VARIABLES)
        os.close(REPORT_FD)
    except BaseException as error:
        _fail(getattr(error, "errno", None) or errno.EPROTO)


def _give(doors: Mapping[int, socket.socket]) -> None:
    with socket.socket(fileno=os.dup(REPORT_FD)) as end:
        link.send(end, _REPORT.pack(sum(doors), 0), [each.fileno() for each in doors.values()])


def _fail(number: int) -> NoReturn:
    try:
        os.write(REPORT_FD, _REPORT.pack(0, number))
    finally:
        os._exit(1)


def uids_of(pidfd: int) -> set[int]:
    """All uids of a process; none if it has ended, or is none."""
    try:
        with open(f"/proc/{kernel.pid_of(pidfd)}/status") as file:
            return set(map(int, file.read().partition("\nUid:")[2].split()[:4]))
    except OSError:
        return set()
