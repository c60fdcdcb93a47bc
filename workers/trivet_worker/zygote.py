"""Zygote: a small single-threaded process that environments are forked from.

It holds the privilege to isolate and to kill, so it takes only commands of a fixed shape and never
reads a byte that a user wrote. It lives as long as the supervisor and the launcher do: when either
end of its two sockets closes, everything it started or adopted ends with it.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from trivet_worker import heritage, isolation, kernel, link
from trivet_worker.heritage import Options
from trivet_worker.isolation import DEFAULT_TMP_MB, REPORT_FD, Isolation, Place
from trivet_worker.wire import (
    ADOPT,
    AS_CUSTOM,
    COMMAND,
    EXITED,
    FILL,
    FILLED,
    ISOLATION_CGROUP,
    ISOLATION_PID,
    ISOLATION_UID,
    KILL,
    MOST_UIDS,
    PROTOCOL,
    READY,
    REFUSED,
    SPAWN,
    STARTED,
    WITH_CGROUP,
    WITH_CODE,
    WITH_LAYERS,
    WITH_NETWORK,
    WITH_SCRATCH,
)

# What an environment in the making tells its zygote: DOOR_* bits with the sockets beside them, or
# the errno that kept it from being complete. It is complete when the end of the pair closes.
_REPORT = struct.Struct("<Ii")

# What KILL may send: the end, or a pause where nothing better can be had.
_SIGNALS = (0, signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT)

_GIVEN = {
    WITH_CODE: "code",
    WITH_LAYERS: "layers",
    WITH_NETWORK: "network",
    WITH_SCRATCH: "scratch",
}

_FURNITURE = WITH_CODE | WITH_LAYERS

_READABLE = select.POLLIN | select.POLLRDHUP
_COMMANDS_PER_TURN = 64
# How long the end of the environments may take before a zygote ends without having seen it.
# The kernel kills 50 processes of one PID namespace in about 60 ms.
_FAREWELL_S = 5.0


@dataclass
class Environment:
    """A child of this zygote, from its fork until it was reaped."""

    number: int
    pidfd: int
    report: socket.socket | None  # None once it is known whether the environment is complete
    doors: int = 0  # DOOR_* bits
    door_fds: list[int] = field(default_factory=list)
    is_refused: bool = False


class Zygote:
    """The loop: commands come in, environments are forked, ends are reported."""

    def __init__(
        self, options: Options, commands: socket.socket, parent: socket.socket, level: Isolation
    ) -> None:
        self.malformed = 0  # commands that were ignored
        self._options = options
        self._commands = commands
        self._parent = parent
        self._level = level
        self._arguments = heritage.argument_range()
        self._environments: dict[int, Environment] = {}  # by pid
        self._fillers: dict[int, int] = {}  # pid of a helper: the cell it fills
        self._reports: dict[int, int] = {}  # descriptor of a report: pid
        self._adopted: dict[int, int] = {}  # pidfd: environment
        self._pidfds: dict[int, int] = {}  # what KILL and FILL may name, started here or adopted
        self._uids: dict[int, int] = {}  # of the same
        # No message: only close the descriptors, which may belong to the message before.
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        self._poll = select.poll()
        self._signals = heritage.signal_pipe()
        for descriptor in (commands.fileno(), parent.fileno(), self._signals):
            self._poll.register(descriptor, _READABLE)

    def serve(self) -> bool:
        """Obey until the end. Returns in each environment that is forked, once it is complete:
        whether it is to be a custom one.

        So an environment runs on a stack that holds nothing of its zygote.
        """
        self._send(READY, 0, PROTOCOL, self._level.bits)
        while True:
            for descriptor, events in self._poll.poll():
                if descriptor == self._commands.fileno():
                    place = self._obey(is_over=bool(events & ~(select.POLLIN | select.POLLOUT)))
                    if place is not None:
                        return place.is_custom
                elif descriptor == self._parent.fileno():
                    if events != select.POLLIN:
                        self._end()
                    self._parent.recv(1)  # only its end has a meaning
                elif descriptor == self._signals:
                    self._handle_signals()
                elif descriptor in self._reports:
                    self._settle(self._reports[descriptor])
                elif descriptor in self._adopted:
                    self._forget_adopted(descriptor)

    # ------------------------------------------------------------------------- commands

    def _obey(self, *, is_over: bool) -> Place | None:
        """Carry out what was sent. In an environment that this forked: its place."""
        self._flush()
        while True:
            batch = self._receive()
            # Killing first: an environment that must end may be burning the processor. Adopting
            # with it: the next command may kill what was adopted.
            batch.sort(key=lambda command: command[0][:1] not in (bytes([KILL]), bytes([ADOPT])))
            for message, descriptors in batch:
                place = self._carry_out(message, descriptors)
                if place is not None:
                    return place
                _close_all(descriptors)
            if not is_over:
                return None
            # The other end is gone, but what it sent before still counts, to the last ADOPT.
            if not batch or not all(message for message, _ in batch):
                self._end()

    def _receive(self) -> list[tuple[bytes, list[int]]]:
        batch: list[tuple[bytes, list[int]]] = []
        while len(batch) < _COMMANDS_PER_TURN:
            try:
                message, descriptors = link.receive(self._commands)
            except OSError:
                break  # nothing is left, or the next poll says that the other end is gone
            batch.append((message, descriptors))
            if not message:
                break  # an empty message, or the end: only the poll can tell
        return batch

    def _carry_out(self, message: bytes, descriptors: list[int]) -> Place | None:
        if len(message) != COMMAND.size:
            self.malformed += 1
            return None
        kind, number, first, second = COMMAND.unpack(message)
        has_cells = self._options.kind == "node"
        if kind == SPAWN and number not in self._pidfds:
            given = _given(second, descriptors[2:])
            is_whole = len(descriptors) >= 2 and given is not None
            if is_whole and (has_cells or second & (WITH_CODE | AS_CUSTOM)):
                return self._spawn(number, first, second, descriptors[:2], given or {})
        elif kind == FILL and has_cells and second & WITH_CODE and not second & ~_FURNITURE:
            given = _given(second, descriptors)
            if given is not None:
                self._fill(number, given)
                return None
        elif kind == KILL and first in _SIGNALS and not descriptors:
            if number in self._pidfds:
                _send_signal(self._pidfds[number], first or signal.SIGKILL)
            return None
        elif kind == ADOPT and len(descriptors) == 1:
            if self._may_adopt(number, first, descriptors[0]):
                pidfd = self._pidfds[number] = descriptors.pop()
                self._uids[number] = first
                self._adopted[pidfd] = number
                self._poll.register(pidfd, select.POLLIN)
            return None
        self.malformed += 1
        return None

    def _may_adopt(self, number: int, uid: int, pidfd: int) -> bool:
        """Whether a process that is not ours may be an environment of a zygote that died."""
        if number in self._pidfds or not self._level.bits & ISOLATION_UID:
            return number not in self._pidfds  # all run as this very user
        if not self._is_free(uid):
            return False
        with open(f"/proc/self/fdinfo/{pidfd}") as file:
            pid = file.read().rpartition("\nPid:")[2].split()[:1]
        try:
            with open(f"/proc/{pid[0]}/status") as file:
                uids = file.read().partition("\nUid:")[2].split()[:4]
        except (OSError, IndexError):
            return False
        return uids == [str(uid)] * 4

    def _is_free(self, uid: int) -> bool:
        """Whether `uid` is nobody's on this machine: neither a user's nor a service's."""
        first = self._options.first_uid
        return 0 < first <= uid < first + MOST_UIDS

    def _spawn(
        self, number: int, uid: int, second: int, pipes: list[int], given: dict[str, int]
    ) -> Place | None:
        cgroup = str(uid) if second & WITH_CGROUP else ""
        # With root's power every environment has a uid of its own; without, none has.
        is_lawful = self._is_free(uid) if self._level.bits & ISOLATION_UID else uid == 0
        if not is_lawful or (cgroup and not self._level.bits & ISOLATION_CGROUP):
            self._send(REFUSED, number, errno.EPERM)
            return None
        reader = writer = None
        try:
            reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = self._level.fork(cgroup)
        except OSError as error:
            for end in (reader, writer):
                if end is not None:
                    end.close()
            self._send(REFUSED, number, error.errno or errno.EAGAIN)
            return None
        if pid == 0:
            place = Place(
                channel=pipes[0],
                log=pipes[1],
                uid=uid,
                tmp_mb=second >> 8 or DEFAULT_TMP_MB,
                cgroup=cgroup,
                is_custom=bool(second & AS_CUSTOM),
                **given,
            )
            os.dup2(writer.detach(), REPORT_FD, inheritable=False)
            self._become(place, reader)
            return place
        writer.close()
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)  # its number cannot be another's before it is reaped
            reader.close()
            self._send(REFUSED, number, error.errno or errno.EMFILE)
            return None
        self._environments[pid] = Environment(number, pidfd, reader)
        self._pidfds[number], self._uids[number] = pidfd, uid
        self._reports[reader.fileno()] = pid
        self._poll.register(reader, select.POLLIN)
        return None

    def _become(self, place: Place, reader: socket.socket) -> None:
        """In the child: all that stands between the fork and the user's code."""
        heritage.leave_signals()
        kernel.overwrite(*self._arguments)  # they name places of the host
        # Their numbers may soon be the user's files: nothing here may close them any more.
        for end in (self._commands, self._parent, reader):
            end.detach()
        for environment in self._environments.values():
            if environment.report is not None:
                environment.report.detach()
        try:
            self._level.enter(place, _give)
            if self._options.kind == "node":
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                _execute(self._options.program, self._options.bootstrap)
            os.close(REPORT_FD)
        except OSError as error:
            _report_failure(error.errno or errno.EPROTO)
        except BaseException:
            _report_failure(errno.EPROTO)

    def _fill(self, number: int, given: dict[str, int]) -> None:
        try:
            if number not in self._pidfds:
                raise ProcessLookupError(errno.ESRCH, "there is no such cell")
            pid = os.fork()
        except OSError as error:
            self._send(REFUSED, number, error.errno or errno.EAGAIN)
            return
        if pid:
            self._fillers[pid] = number
            return
        status = errno.EPROTO
        try:
            self._level.fill(self._pidfds[number], given["code"], given.get("layers", -1))
            status = 0
        except OSError as error:
            status = error.errno or errno.EPROTO
        finally:
            os._exit(status)

    # ---------------------------------------------------------------------------- ends

    def _handle_signals(self) -> None:
        for number in os.read(self._signals, 512):
            if number == signal.SIGTERM:
                self._end()
        self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid in self._fillers:
                number = self._fillers.pop(pid)
                if code:
                    self._send(REFUSED, number, code if code > 0 else errno.EPROTO)
                else:
                    self._send(FILLED, number)
            elif pid in self._environments:
                self._bury(pid, code)
            self._end_orphans()

    def _bury(self, pid: int, code: int) -> None:
        self._settle(pid)  # whether it ever was complete is known now, if not before
        environment = self._environments.pop(pid)
        self._forget(environment.number)
        if not environment.is_refused:
            self._send(EXITED, environment.number, code)
        self._outbox.append((b"", [environment.pidfd]))  # STARTED may still wait to send it
        self._flush()

    def _settle(self, pid: int) -> None:
        """Take what an environment in the making reports, and tell of it when it is complete."""
        environment = self._environments[pid]
        report = environment.report
        if report is None:
            return
        message = b""
        try:
            message, descriptors = link.receive(report, _REPORT.size)
            doors, failure = _REPORT.unpack(message) if message else (0, 0)
        except BlockingIOError:
            return
        if message and not failure:
            environment.doors, environment.door_fds = doors, descriptors
            self._settle(pid)  # the end may be there as well
            return
        self._poll.unregister(report)
        del self._reports[report.fileno()]
        report.close()
        environment.report = None
        if failure:
            environment.is_refused = True
            _close_all(environment.door_fds)
            self._send(REFUSED, environment.number, failure)
        else:
            given = [environment.pidfd, *environment.door_fds]
            self._send(STARTED, environment.number, pid, environment.doors, given)
            self._outbox.append((b"", environment.door_fds))
            self._flush()

    def _end_orphans(self) -> bool:
        """Kill what dead environments left behind: without PID namespaces it came to us.

        Returns whether there was any.
        """
        if self._level.bits & ISOLATION_PID:
            return False
        pid = os.getpid()
        try:
            with open(f"/proc/{pid}/task/{pid}/children") as file:
                children = {int(child) for child in file.read().split()}
        except OSError:
            return False
        orphans = children - self._environments.keys() - self._fillers.keys()
        for orphan in orphans:
            os.kill(orphan, signal.SIGKILL)  # its own children come to us next
        return bool(orphans)

    def _forget_adopted(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        os.close(pidfd)
        self._forget(self._adopted.pop(pidfd))

    def _forget(self, number: int) -> None:
        del self._pidfds[number], self._uids[number]

    def _end(self) -> NoReturn:
        """Kill everything, wait for it, and exit."""
        pidfds = [environment.pidfd for environment in self._environments.values()]
        deadline = time.monotonic() + _FAREWELL_S
        waiting = select.poll()
        for pidfd in (*pidfds, *self._adopted):
            _send_signal(pidfd, signal.SIGKILL)
            waiting.register(pidfd, select.POLLIN)
        for uid in self._uids.values():
            self._level.thaw(uid)  # a frozen one does not die on version 1
        remaining = len(pidfds) + len(self._adopted)
        while remaining and time.monotonic() < deadline:
            for pidfd, _ in waiting.poll((deadline - time.monotonic()) * 1000):
                waiting.unregister(pidfd)
                remaining -= 1
            self._reap()
        while self._end_orphans():
            os.waitpid(-1, 0)
        os._exit(0)

    # ------------------------------------------------------------------------- answers

    def _send(
        self, kind: int, number: int, first: int = 0, second: int = 0, fds: Sequence[int] = ()
    ) -> None:
        self._outbox.append((COMMAND.pack(kind, number, first, second), list(fds)))
        self._flush()

    def _flush(self) -> None:
        """Send what the supervisor has room for; the rest when it reads again."""
        while self._outbox:
            message, descriptors = self._outbox[0]
            try:
                if message:
                    link.send(self._commands, message, descriptors)
                else:
                    _close_all(descriptors)
            except BlockingIOError:
                self._poll.modify(self._commands, _READABLE | select.POLLOUT)
                return
            except OSError:
                pass  # the supervisor is gone, as the poll is about to say
            self._outbox.popleft()
        self._poll.modify(self._commands, _READABLE)


def main(argv: list[str]) -> None:
    options = Options.parse(argv)
    heritage.forget_signals()
    commands, parent = heritage.take_descriptors(options.commands, options.parent)
    heritage.forget_variables()
    heritage.raise_file_limit()
    os.chdir("/")
    level = isolation.establish(options.needs, options.without)
    runs = []
    if options.kind == "python":
        from trivet_worker import hooks

        with hooks.deferred():
            from trivet_worker import custom, runtime

            runtime.preload()
        runs = [runtime.run, custom.run]
    zygote = Zygote(options, commands, parent, level)
    gc.collect()
    gc.freeze()  # a collection in an environment would copy every page of this heap
    is_custom = zygote.serve()
    del zygote, commands, parent, level
    runs[is_custom]()


def _given(second: int, descriptors: list[int]) -> dict[str, int] | None:
    """The descriptors that `WITH_*` bits name, by what they are; None if their count is wrong."""
    names = [name for bit, name in _GIVEN.items() if second & bit]
    return dict(zip(names, descriptors)) if len(names) == len(descriptors) else None


def _give(doors: int, sockets: Sequence[socket.socket]) -> None:
    with socket.socket(fileno=os.dup(REPORT_FD)) as end:
        socket.send_fds(end, [_REPORT.pack(doors, 0)], [each.fileno() for each in sockets])


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _send_signal(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except OSError:
        return  # it has ended already, or it never was a process


def _execute(program: str, bootstrap: str) -> NoReturn:
    variables: dict[str, str] = {"LANG": "en_US.UTF-8", "PATH": "/usr/local/bin:/usr/bin:/bin"}
    os.execve(program, [program, bootstrap], variables)


def _report_failure(number: int) -> NoReturn:
    try:
        os.write(REPORT_FD, _REPORT.pack(0, number))
    finally:
        os._exit(1)
