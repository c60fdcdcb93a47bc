"""Zygote: a small single-threaded process that environments are forked from.

It holds the privilege to isolate and to kill, so it takes only commands of a fixed shape and never
reads a byte that a user wrote. It lives as long as the supervisor and the launcher do: when either
end of its two sockets closes, everything it started or adopted ends with it.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import socket
from collections import deque
from collections.abc import Sequence
from typing import NoReturn

from trivet_worker import errands, heritage, kernel, link, making, trials, wire
from trivet_worker.heritage import Options
from trivet_worker.isolation import Isolation, Place
from trivet_worker.making import Environment

# What KILL may send: the end, or a pause where nothing better can be had.
_SIGNALS = (0, signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT)

_GIVEN = {
    wire.WITH_CODE: "code",
    wire.WITH_LAYERS: "layers",
    wire.WITH_NETWORK: "network",
    wire.WITH_SCRATCH: "scratch",
}
_URGENT = (bytes([wire.KILL]), bytes([wire.ADOPT]))

_READABLE = select.POLLIN | select.POLLRDHUP
_COMMANDS_PER_TURN = 64
# How long the end of the environments may take before a zygote ends without having seen it.
# The kernel kills 50 processes of one PID namespace in about 60 ms.
_FAREWELL_S = 5


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
        self._named: dict[int, Environment] = {}  # what KILL and FILL may name
        self._children: dict[int, Environment] = {}  # by pid
        self._watched: dict[int, Environment] = {}  # by its report, or the pidfd of an adopted one
        self._fillers: dict[int, int] = {}  # pid of a helper: the cell it fills
        self._outbox: deque[tuple[bytes, Sequence[int]]] = deque()
        self._poll = select.poll()
        self._signals = heritage.signal_pipe()
        self._poll.register(commands, _READABLE)
        self._poll.register(parent, select.POLLRDHUP)  # only its end has a meaning
        self._poll.register(self._signals, select.POLLIN)

    def serve(self) -> bool:
        """Obey until the end. Returns in each environment that is forked, once it is complete:
        whether it is to be a custom one.

        So an environment runs on a stack that holds nothing of its zygote.
        """
        self._send(wire.READY, 0, wire.PROTOCOL, self._level.bits)
        while True:
            for descriptor, events in self._poll.poll():
                if descriptor == self._commands.fileno():
                    place = self._obey(is_over=bool(events & ~(select.POLLIN | select.POLLOUT)))
                    if place is not None:
                        return place.is_custom
                elif descriptor == self._parent.fileno():
                    self._end()
                elif descriptor == self._signals:
                    if signal.SIGTERM in os.read(self._signals, 512):
                        self._end()
                    self._reap()
                elif descriptor in self._watched:
                    self._look_at(self._watched[descriptor])

    # ------------------------------------------------------------------------- commands

    def _obey(self, *, is_over: bool) -> Place | None:
        """Carry out what was sent. In an environment that this forked: its place."""
        self._flush()
        while True:
            batch = self._receive()
            # Killing first: an environment that must end may be burning the processor. Adopting
            # with it: the next command may kill what was adopted.
            batch.sort(key=lambda command: command[0][:1] not in _URGENT)
            for message, descriptors in batch:
                place = self._carry_out(message, descriptors)
                if place is not None:
                    return place
                link.close_all(descriptors)
            # If the other end is gone, what it sent before still counts, to the last ADOPT.
            if not is_over:
                return None
            if not any(message for message, _ in batch):
                self._end()

    def _receive(self) -> list[tuple[bytes, list[int]]]:
        """What has arrived, up to a bound. Messages are empty from the end on."""
        batch: list[tuple[bytes, list[int]]] = []
        for _ in range(_COMMANDS_PER_TURN):
            try:
                batch.append(link.receive(self._commands))
            except BlockingIOError:
                break
            except OSError:  # too many descriptors; or the end before our answers were read
                batch.append((b"?", []))
        return batch

    def _carry_out(self, message: bytes, descriptors: list[int]) -> Place | None:
        """Do what a command says, or count it as malformed. Takes the descriptors that it keeps."""
        is_whole = len(message) == wire.COMMAND.size
        kind, number, first, second = wire.COMMAND.unpack(message) if is_whole else (0, 0, 0, 0)
        is_node = self._options.kind == "node"
        if kind == wire.SPAWN and number not in self._named:
            given = _by_name(second, descriptors, "channel", "log")
            if given and (is_node or second & (wire.WITH_CODE | wire.AS_CUSTOM)):
                return self._spawn(number, first, second, given)
        elif kind == wire.FILL and is_node and second & ~wire.WITH_LAYERS == wire.WITH_CODE:
            given = _by_name(second, descriptors)
            if given:
                self._fill(number, **given)
                return None
        elif kind == wire.KILL and first in _SIGNALS and not descriptors:
            if number in self._named:
                self._named[number].send(first or signal.SIGKILL)
            return None
        elif kind == wire.ADOPT and self._may_adopt(number, first, descriptors):
            environment = Environment(number, first, descriptors.pop())
            self._named[number] = self._watched[environment.pidfd] = environment
            self._poll.register(environment.pidfd, select.POLLIN)
            return None
        self.malformed += 1
        return None

    def _may_adopt(self, number: int, uid: int, pidfds: list[int]) -> bool:
        """Whether a process that is not ours may be an environment of a zygote that died."""
        if number in self._named or len(pidfds) != 1:
            return False
        if not self._level.bits & wire.ISOLATION_UID:
            return True  # all run as this very user
        return self._is_free(uid) and making.uids_of(*pidfds) == {uid}

    def _is_free(self, uid: int) -> bool:
        """Whether `uid` is nobody's on this machine: neither a user's nor a service's."""
        first = self._options.first_uid
        return 0 < first <= uid < first + wire.MOST_UIDS

    def _spawn(self, number: int, uid: int, second: int, given: dict[str, int]) -> Place | None:
        cgroup = str(uid) if second & wire.WITH_CGROUP else ""
        # With root's power every environment has a uid of its own; without, none has.
        is_lawful = self._is_free(uid) if self._level.bits & wire.ISOLATION_UID else uid == 0
        try:
            if not is_lawful or (cgroup and not self._level.bits & wire.ISOLATION_CGROUP):
                raise PermissionError(errno.EPERM, "no uid or cgroup of an environment")
            environment = making.begin(self._level, number, uid, cgroup)
        except OSError as error:
            self._send(wire.REFUSED, number, error.errno or errno.EAGAIN)
            return None
        self._watched[environment.report.fileno()] = environment
        if environment.pid:
            self._named[number] = self._children[environment.pid] = environment
            self._poll.register(environment.report, select.POLLIN)
            return None
        heritage.leave_signals()
        kernel.overwrite(*self._arguments)  # they name places of the host
        # Their numbers may soon be the user's files: nothing here may close them any more.
        for end in (
            self._commands,
            self._parent,
            *(each.report for each in self._watched.values()),
        ):
            end.detach()
        is_custom = bool(second & wire.AS_CUSTOM)
        place = Place(uid=uid, tmp_mb=second >> 8, cgroup=cgroup, is_custom=is_custom, **given)
        making.become(self._level, place, self._options.command)
        return place

    def _fill(self, number: int, code: int, layers: int = -1) -> None:
        try:
            if number not in self._named:
                raise ProcessLookupError(errno.ESRCH, "there is no such cell")
            cell = self._named[number].pidfd
            pid = errands.begin(lambda: self._level.fill(cell, code, layers))
        except OSError as error:
            self._send(wire.REFUSED, number, error.errno or errno.EAGAIN)
        else:
            self._fillers[pid] = number

    # ---------------------------------------------------------------------------- ends

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid in self._fillers:
                    number, failure = self._fillers.pop(pid), errands.as_errno(status)
                    self._send(wire.REFUSED if failure else wire.FILLED, number, failure)
                elif pid in self._children:
                    self._bury(self._children.pop(pid), os.waitstatus_to_exitcode(status))
                self._end_orphans()

    def _bury(self, environment: Environment, code: int) -> None:
        self._settle(environment)  # whether it ever was complete is known now, if not before
        del self._named[environment.number]
        os.close(environment.pidfd)
        if not environment.failure:
            self._send(wire.EXITED, environment.number, code)

    def _look_at(self, environment: Environment) -> None:
        if environment.pid:
            self._settle(environment)
        else:  # adopted, and over
            self._poll.unregister(environment.pidfd)
            del self._watched[environment.pidfd], self._named[environment.number]
            os.close(environment.pidfd)

    def _settle(self, environment: Environment) -> None:
        """Take what an environment in the making reports, and tell of it when that is the end."""
        failure = environment.read()
        if failure is None:
            return
        self._poll.unregister(environment.report)
        del self._watched[environment.report.fileno()]
        environment.report.close()
        if failure:
            environment.send(signal.SIGKILL)
            link.close_all(environment.given)
            self._send(wire.REFUSED, environment.number, failure)
        else:
            about = (environment.number, environment.pid, environment.doors)
            self._send(wire.STARTED, *about, environment.given)

    def _end_orphans(self) -> bool:
        """Kill what dead environments left behind: without PID namespaces it came to us.

        Returns whether there was any.
        """
        if self._level.bits & wire.ISOLATION_PID:
            return False
        orphans = kernel.children() - self._children.keys() - self._fillers.keys()
        for orphan in orphans:
            os.kill(orphan, signal.SIGKILL)  # its own children come to us next
        return bool(orphans)

    def _end(self) -> NoReturn:
        """Kill everything, wait for it, and exit."""
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.alarm(_FAREWELL_S)
        for environment in self._named.values():
            environment.send(signal.SIGKILL)
            self._level.thaw(environment.uid)  # a frozen one does not die on version 1
        for environment in self._named.values():
            ended = select.poll()
            ended.register(environment.pidfd, select.POLLIN)
            ended.poll()
        while self._end_orphans():
            os.waitpid(-1, 0)
        os._exit(0)

    # ------------------------------------------------------------------------- answers

    def _send(
        self, kind: int, number: int, first: int = 0, second: int = 0, fds: Sequence[int] = ()
    ) -> None:
        """Tell the supervisor, and close `fds` once they are on their way."""
        self._outbox.append((wire.COMMAND.pack(kind, number, first, second), fds))
        self._flush()

    def _flush(self) -> None:
        """Send what the supervisor has room for; the rest when it reads again."""
        while self._outbox:
            message, descriptors = self._outbox[0]
            try:
                link.send(self._commands, message, descriptors)
            except BlockingIOError:
                self._poll.modify(self._commands, _READABLE | select.POLLOUT)
                return
            except OSError:
                pass  # the supervisor is gone, as the poll is about to say
            link.close_all(descriptors)
            self._outbox.popleft()
        self._poll.modify(self._commands, _READABLE)


def main(argv: list[str]) -> None:
    options = Options.parse(argv)
    heritage.forget_signals()
    commands, parent = heritage.take_descriptors(options.commands, options.parent)
    heritage.forget_variables()
    heritage.raise_file_limit()
    os.chdir("/")
    level = trials.establish(options)
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


def _by_name(second: int, descriptors: list[int], *always: str) -> dict[str, int] | None:
    """The descriptors that come `always` and those of `WITH_*` bits; None if the count differs."""
    names = [*always, *(name for bit, name in _GIVEN.items() if second & bit)]
    return dict(zip(names, descriptors)) if len(names) == len(descriptors) else None
