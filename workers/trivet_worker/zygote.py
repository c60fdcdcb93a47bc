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
from collections.abc import Sequence
from typing import NoReturn

from trivet_worker import heritage, kernel, link, making, pools, template, trials, wire
from trivet_worker.heritage import Options
from trivet_worker.isolation import Isolation
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

_COMMANDS_PER_TURN = 64
# How long the end of the environments may take before a zygote ends without having seen it.
# The kernel kills 50 processes of one PID namespace in about 60 ms.
_FAREWELL_S = 5


class Zygote:
    """The loop: commands come in, environments are ordered, ends are reported."""

    def __init__(
        self,
        options: Options,
        commands: socket.socket,
        parent: socket.socket,
        level: Isolation,
        template: Environment,
        orders: socket.socket,
    ) -> None:
        """`orders` leads to the template."""
        self.malformed = 0  # commands that were ignored
        self._options = options
        self._commands = commands
        self._parent = parent
        self._level = level
        self._template = template
        self._named: dict[int, Environment] = {}  # what KILL and FILL may name
        self._children: dict[int, Environment] = {}  # complete ones, by pid
        self._in_making: dict[int, Environment] = {}  # by report
        self._adopted: dict[int, Environment] = {}  # by pidfd
        self._has_orphans = False  # there may be some
        self._poll = select.poll()
        self._signals = heritage.signal_pipe()
        # In this order they are looked at: what was commanded before an end still counts.
        self._answers = link.Outbox(commands, self._poll, select.POLLIN | select.POLLRDHUP)
        self._orders = link.Outbox(orders, self._poll, 0)
        self._poll.register(parent, select.POLLRDHUP)  # only its end has a meaning
        for descriptor in (self._signals, template.pidfd):
            self._poll.register(descriptor, select.POLLIN)

    def serve(self) -> NoReturn:
        """Obey until the end."""
        self._send(wire.READY, 0, wire.PROTOCOL, self._level.bits)
        while True:
            for descriptor, events in self._poll.poll():
                if descriptor == self._commands.fileno():
                    self._obey(is_over=bool(events & ~(select.POLLIN | select.POLLOUT)))
                elif events & select.POLLOUT:
                    self._orders.flush()
                elif descriptor in (self._parent.fileno(), self._template.pidfd):
                    self._end()
                elif descriptor == self._signals:
                    if signal.SIGTERM in os.read(self._signals, 512):
                        self._end()
                    self._reap()
                elif descriptor in self._in_making:
                    self._settle(self._in_making[descriptor])
                elif descriptor in self._adopted:
                    self._poll.unregister(descriptor)
                    self._forget(self._adopted.pop(descriptor))
            # What is in the making is a child of ours too, and not known yet.
            if self._has_orphans and not self._in_making:
                self._end_orphans()

    # ------------------------------------------------------------------------- commands

    def _obey(self, *, is_over: bool) -> None:
        """Carry out what was sent."""
        self._answers.flush()
        while True:
            batch = self._receive()
            # Killing first: an environment that must end may be burning the processor. Adopting
            # with it: the next command may kill what was adopted.
            batch.sort(key=lambda command: command[0][:1] not in _URGENT)
            for message, descriptors in batch:
                self._carry_out(message, descriptors)
                link.close_all(descriptors)
            # If the other end is gone, what it sent before still counts, to the last ADOPT.
            if not is_over:
                return
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

    def _carry_out(self, message: bytes, descriptors: list[int]) -> None:
        """Do what a command says, or count it as malformed. Takes the descriptors that it keeps."""
        is_whole = len(message) == wire.COMMAND.size
        kind, number, first, second = wire.COMMAND.unpack(message) if is_whole else (0, 0, 0, 0)
        is_node = self._options.kind == "node"
        if kind == wire.SPAWN and number not in self._named:
            given = _by_name(second, descriptors, "channel", "log")
            if given and (is_node or second & (wire.WITH_CODE | wire.AS_CUSTOM)):
                self._spawn(number, first, second, given)
                return
        elif kind == wire.FILL and is_node and second & ~wire.WITH_LAYERS == wire.WITH_CODE:
            given = _by_name(second, descriptors)
            if given:
                self._fill(number, given)
                return
        elif kind == wire.KILL and first in _SIGNALS and not descriptors:
            if number in self._named:
                self._named[number].send(first or signal.SIGKILL)
            return
        elif kind == wire.ADOPT and self._may_adopt(number, first, descriptors):
            environment = Environment(number, first, descriptors.pop())
            self._named[number] = self._adopted[environment.pidfd] = environment
            self._poll.register(environment.pidfd, select.POLLIN)
            return
        self.malformed += 1

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

    def _spawn(self, number: int, uid: int, second: int, given: dict[str, int]) -> None:
        cgroup = str(uid) if second & wire.WITH_CGROUP else ""
        # With root's power every environment has a uid of its own; without, none has.
        is_lawful = self._is_free(uid) if self._level.bits & wire.ISOLATION_UID else uid == 0
        try:
            if not is_lawful or (cgroup and not self._level.bits & wire.ISOLATION_CGROUP):
                raise PermissionError(errno.EPERM, "no uid or cgroup of an environment")
            environment, order, beside = making.prepare(
                self._level, number, uid, second, given, cgroup
            )
        except OSError as error:
            self._send(wire.REFUSED, number, error.errno or errno.EAGAIN)
            return
        self._named[number] = self._in_making[environment.report.fileno()] = environment
        self._poll.register(environment.report, select.POLLIN)
        self._orders.put(bytes(order), beside)

    def _fill(self, number: int, given: dict[str, int]) -> None:
        try:
            if number not in self._named:
                raise ProcessLookupError(errno.ESRCH, "there is no such cell")
            making.fill(self._level, self._named[number].pidfd, given)
        except OSError as error:
            self._send(wire.REFUSED, number, error.errno or errno.EAGAIN)
        else:
            self._send(wire.FILLED, number)

    # ---------------------------------------------------------------------------- ends

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid not in self._children:
                    # What it had to say it has said. Until it is reaped its pid is its own.
                    for environment in [*self._in_making.values()]:
                        self._settle(environment)
                pid, status = os.waitpid(ended.si_pid, 0)
                self._has_orphans = not self._level.bits & wire.ISOLATION_PID
                if pid in self._children:
                    environment = self._children.pop(pid)
                    self._forget(environment)
                    code = os.waitstatus_to_exitcode(status)
                    self._send(wire.EXITED, environment.number, code)

    def _forget(self, environment: Environment) -> None:
        del self._named[environment.number]
        os.close(environment.pidfd)

    def _settle(self, environment: Environment) -> None:
        """Take what an environment in the making reports, and tell of it when that is the end."""
        failure = environment.read()
        if failure is None:
            return
        self._poll.unregister(environment.report)
        del self._in_making[environment.report.fileno()]
        environment.report.close()
        number = environment.number
        if failure:
            environment.discard()
            del self._named[number]
            self._send(wire.REFUSED, number, failure)
        else:
            self._children[environment.pid] = environment
            self._send(wire.STARTED, number, environment.pid, environment.doors, environment.given)

    def _end_orphans(self) -> None:
        """Kill what dead environments left behind: without PID namespaces it came to us."""
        self._has_orphans = False
        for orphan in kernel.children() - self._children.keys() - {self._template.pid}:
            os.kill(orphan, signal.SIGKILL)  # its own children come to us next

    def _end(self) -> NoReturn:
        """Kill everything, wait for it, and exit."""
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.alarm(_FAREWELL_S)
        self._template.send(signal.SIGKILL)
        for environment in [*self._in_making.values()]:
            self._settle(environment)
        for environment in self._named.values():
            environment.send(signal.SIGKILL)
            making.thaw(self._level, environment.uid)  # a frozen one does not die on version 1
        for environment in (self._template, *self._named.values()):
            if environment.pidfd >= 0:
                ended = select.poll()
                ended.register(environment.pidfd, select.POLLIN)
                ended.poll()
        # What is in the making still, and what dead environments left to us.
        while left := kernel.children():
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)
        os._exit(0)

    # ------------------------------------------------------------------------- answers

    def _send(
        self, kind: int, number: int, first: int = 0, second: int = 0, fds: Sequence[int] = ()
    ) -> None:
        """Tell the supervisor, and close `fds` once they are on their way."""
        self._answers.put(wire.COMMAND.pack(kind, number, first, second), fds)


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
    gc.collect()
    pools.fill()
    gc.freeze()  # a collection in an environment would copy every page of this heap
    pid, orders = template.fork((commands, parent))
    if pid:
        own = Environment(0, 0, os.pidfd_open(pid), pid)
        Zygote(options, commands, parent, level, own, orders).serve()
    is_custom = template.serve(level, orders, options.command)
    del options, commands, parent, level, orders
    runs[is_custom]()


def _by_name(second: int, descriptors: list[int], *always: str) -> dict[str, int] | None:
    """The descriptors that come `always` and those of `WITH_*` bits; None if the count differs."""
    names = [*always, *(name for bit, name in _GIVEN.items() if second & bit)]
    return dict(zip(names, descriptors)) if len(names) == len(descriptors) else None
