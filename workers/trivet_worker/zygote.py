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
from dataclasses import dataclass
from typing import NoReturn

from trivet_worker import heritage, isolation, link
from trivet_worker.heritage import Options
from trivet_worker.isolation import Isolation, Place
from trivet_worker.wire import (
    ADOPT,
    CHANNEL_FD,
    COMMAND,
    EXITED,
    FILL,
    FILLED,
    ISOLATION_PID,
    ISOLATION_UID,
    KILL,
    PROTOCOL,
    READY,
    REFUSED,
    SPAWN,
    STARTED,
    WITH_CODE,
)

_FAILURE = struct.Struct("<i")  # the errno that kept an environment from being complete
_FAILURE_FD = CHANNEL_FD + 1

# What KILL may send: the end, or a pause where nothing better can be had.
_SIGNALS = (0, signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT)

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
    failure: int  # read end; -1 once it is known whether the environment is complete
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
        self._null = os.open(os.devnull, os.O_RDWR)
        self._environments: dict[int, Environment] = {}  # by pid
        self._fillers: dict[int, int] = {}  # pid of a helper: the cell it fills
        self._failures: dict[int, int] = {}  # read end: pid
        self._adopted: dict[int, int] = {}  # pidfd: environment
        self._pidfds: dict[int, int] = {}  # what KILL and FILL may name, started here or adopted
        self._outbox: deque[tuple[bytes, int]] = deque()  # no message: close the descriptor
        self._poll = select.poll()
        self._signals = heritage.signal_pipe()
        for descriptor in (commands.fileno(), parent.fileno(), self._signals):
            self._poll.register(descriptor, _READABLE)

    def serve(self) -> bool:
        """Obey until the end. Returns True in each environment that is forked, once it is complete.

        So an environment runs on a stack that holds nothing of its zygote.
        """
        self._send(READY, 0, PROTOCOL, self._level.bits)
        while True:
            for descriptor, events in self._poll.poll():
                if descriptor == self._commands.fileno():
                    if self._obey(is_over=bool(events & ~(select.POLLIN | select.POLLOUT))):
                        return True
                elif descriptor == self._parent.fileno():
                    if events != select.POLLIN:
                        self._end()
                    self._parent.recv(1)  # only its end has a meaning
                elif descriptor == self._signals:
                    self._handle_signals()
                elif descriptor in self._failures:
                    self._settle(self._failures[descriptor])
                elif descriptor in self._adopted:
                    self._forget_adopted(descriptor)

    # ------------------------------------------------------------------------- commands

    def _obey(self, *, is_over: bool) -> bool:
        """Carry out what was sent. True in an environment that this forked."""
        self._flush()
        while True:
            batch = self._receive()
            # Killing first: an environment that must end may be burning the processor. Adopting
            # with it: the next command may kill what was adopted.
            batch.sort(key=lambda command: command[0][:1] not in (bytes([KILL]), bytes([ADOPT])))
            for message, descriptors in batch:
                if self._carry_out(message, descriptors):
                    return True
                for descriptor in descriptors:
                    os.close(descriptor)
            if not is_over:
                return False
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

    def _carry_out(self, message: bytes, descriptors: list[int]) -> bool:
        if len(message) != COMMAND.size:
            self.malformed += 1
            return False
        kind, number, first, second = COMMAND.unpack(message)
        count = len(descriptors)
        with_code = bool(second & WITH_CODE)
        if kind == SPAWN and count == 2 + with_code and (with_code or self._has_cells):
            return self._spawn(number, first, descriptors)
        if kind == FILL and count == 1 and with_code and self._has_cells:
            self._fill(number, *descriptors)
        elif kind == KILL and first in _SIGNALS and not count:
            if number in self._pidfds:
                _send_signal(self._pidfds[number], first or signal.SIGKILL)
        elif kind == ADOPT and count == 1 and number not in self._pidfds:
            pidfd = self._pidfds[number] = descriptors.pop()
            self._adopted[pidfd] = number
            self._poll.register(pidfd, select.POLLIN)
        else:
            self.malformed += 1
        return False

    @property
    def _has_cells(self) -> bool:
        return self._options.kind == "node"

    def _spawn(self, number: int, uid: int, descriptors: list[int]) -> bool:
        if number in self._pidfds:
            self.malformed += 1  # a number is one process, for good
            return False
        if (uid != 0) != bool(self._level.bits & ISOLATION_UID) or uid < 0:
            # With root's power every environment has a uid of its own; without, none has.
            self._send(REFUSED, number, errno.EPERM)
            return False
        reader = writer = -1
        try:
            reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            pid = self._level.fork()
        except OSError as error:
            for end in (reader, writer):
                if end >= 0:
                    os.close(end)
            self._send(REFUSED, number, error.errno or errno.EAGAIN)
            return False
        if pid == 0:
            code = descriptors[2] if len(descriptors) == 3 else None
            channel, log = descriptors[:2]
            self._become(Place(channel, log, code, self._null, writer, uid))
            return True
        os.close(writer)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)  # its number cannot be another's before it is reaped
            os.close(reader)
            self._send(REFUSED, number, error.errno or errno.EMFILE)
            return False
        self._environments[pid] = Environment(number, pidfd, reader)
        self._pidfds[number] = pidfd
        self._failures[reader] = pid
        self._poll.register(reader, select.POLLIN)
        return False

    def _become(self, place: Place) -> None:
        """In the child: all that stands between the fork and the user's code."""
        heritage.leave_signals()
        # Their numbers may soon be the user's files: nothing here may close them any more.
        self._commands.detach()
        self._parent.detach()
        failure = place.failure
        try:
            self._level.enter(place)
            failure = _FAILURE_FD
            if self._options.kind == "node":
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                _execute(self._options.program, self._options.bootstrap)
            os.close(failure)
        except OSError as error:
            _report_failure(failure, error.errno or errno.EPROTO)
        except BaseException:
            _report_failure(failure, errno.EPROTO)

    def _fill(self, number: int, code: int) -> None:
        cell = self._pidfds.get(number, -1)
        try:
            if cell < 0:
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
            self._level.fill(cell, code)
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
        del self._pidfds[environment.number]
        if not environment.is_refused:
            self._send(EXITED, environment.number, code)
        self._outbox.append((b"", environment.pidfd))  # STARTED may still wait to send it
        self._flush()

    def _settle(self, pid: int) -> None:
        """Tell whether an environment is complete, when its end of the pipe has closed."""
        environment = self._environments[pid]
        if environment.failure < 0:
            return
        try:
            failure = os.read(environment.failure, _FAILURE.size)
        except BlockingIOError:
            return  # the poll spoke of an earlier pipe with this number
        self._poll.unregister(environment.failure)
        os.close(environment.failure)
        del self._failures[environment.failure]
        environment.failure = -1
        if failure:
            environment.is_refused = True
            self._send(REFUSED, environment.number, *_FAILURE.unpack(failure))
        else:
            self._send(STARTED, environment.number, pid, descriptor=environment.pidfd)

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
        del self._pidfds[self._adopted.pop(pidfd)]

    def _end(self) -> NoReturn:
        """Kill everything, wait for it, and exit."""
        pidfds = [environment.pidfd for environment in self._environments.values()]
        deadline = time.monotonic() + _FAREWELL_S
        waiting = select.poll()
        for pidfd in (*pidfds, *self._adopted):
            _send_signal(pidfd, signal.SIGKILL)
            waiting.register(pidfd, select.POLLIN)
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
        self, kind: int, number: int, first: int = 0, second: int = 0, descriptor: int = -1
    ) -> None:
        self._outbox.append((COMMAND.pack(kind, number, first, second), descriptor))
        self._flush()

    def _flush(self) -> None:
        """Send what the supervisor has room for; the rest when it reads again."""
        while self._outbox:
            message, descriptor = self._outbox[0]
            try:
                if message:
                    link.send(self._commands, message, descriptor)
                else:
                    os.close(descriptor)
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
    level = isolation.establish(options.needed_folders)
    run = None
    if options.kind == "python":
        from trivet_worker import runtime

        runtime.preload()
        run = runtime.run
    zygote = Zygote(options, commands, parent, level)
    gc.collect()
    gc.freeze()  # a collection in an environment would copy every page of this heap
    is_environment = zygote.serve()
    del zygote, commands, parent, level
    if is_environment and run is not None:
        run()


def _send_signal(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except OSError:
        return  # it has ended already, or it never was a process


def _execute(program: str, bootstrap: str) -> NoReturn:
    variables: dict[str, str] = {"LANG": "en_US.UTF-8", "PATH": "/usr/local/bin:/usr/bin:/bin"}
    os.execve(program, [program, bootstrap], variables)


def _report_failure(failure: int, number: int) -> NoReturn:
    try:
        os.write(failure, _FAILURE.pack(number))
    finally:
        os._exit(1)
