"""Bodies: the process an environment lives in, with its channel and its log pipe.

A forked body is made for one function version, and may wait for its tenant as a spare. A cell is
booted blank; its tenant's code is moved into its walls when there is one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from trivet.core.functions import FunctionVersion
from trivet.runtimes import CUSTOM_NAMES
from trivet.supervisor.quarters import Premises, Quarters
from trivet.supervisor.runtime_api import RuntimeApi
from trivet.supervisor.zygotes import Zygote
from trivet_worker import wire

log = structlog.get_logger()

READ_BYTES = 262_144


class Tenant(Protocol):
    """The environment that lives in a body."""

    def embodied(self) -> None:
        """The process runs, walled in, and sees the code."""
        ...

    def received(self, data: bytes) -> None:
        """Bytes from the channel; empty when the process closed it."""
        ...

    def wrote_log(self) -> float | None:
        """The log pipe has bytes. Returns how long it may wait for the next look, in s.

        None when it has ended.
        """
        ...

    def exited(self, status: int | None) -> None: ...


class Body:
    """One process under a zygote. Implements `zygotes.Process`."""

    def __init__(
        self,
        zygote: Zygote,
        premises: Premises,
        version: FunctionVersion | None,
        tree: int | None,
        *,
        ended: Callable[[Body], None],
    ) -> None:
        """Start the process. `tree`, the code of a forked body, is owned here; a cell has none.

        `ended` is told when the process is gone, tenant or not. Raises OSError.
        """
        self.zygote = zygote
        self.number = 0  # until it is asked of the zygote
        self.is_started = False
        self.is_refused = False
        self._version = version
        self._is_custom = version is not None and version.runtime in CUSTOM_NAMES
        self._tenant: Tenant | None = None
        self._tree = tree  # to be sent with SPAWN, or to a cell with FILL
        self._is_forked = tree is not None
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._unsent = b""
        self._is_killed = False
        self._is_over = False
        self._quarters: Quarters | None = None
        self._runtime_door = -1
        self._runtime_api: RuntimeApi | None = None
        try:
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            with self._channel, theirs:
                self.log_pipe, log_end = os.pipe2(os.O_CLOEXEC)
                self._channel = socket.socket(fileno=self._channel.detach())
                self._far_ends = [theirs.detach(), log_end]
        except OSError:
            if tree is not None:
                os.close(tree)
            raise
        self._channel.setblocking(False)
        os.set_blocking(self.log_pipe, False)
        premises.take(zygote.isolation, version, self._housed)

    def __repr__(self) -> str:
        return f"<Body {self.number} of {self.zygote.runtime}>"

    def _housed(self, quarters: Quarters | None) -> None:
        if self._is_over:
            if quarters is not None:
                quarters.leave()
            return
        self._quarters = quarters
        try:
            if quarters is None:
                raise OSError("there is no place for it")
            if self._version is not None:
                quarters.limit(self._version)
        except OSError as error:
            log.error("environment.homeless", runtime=self.zygote.runtime, error=str(error))
            self.is_refused = True
            self._loop.call_soon(self.exited, None)  # whoever made this does not know it yet
            return
        given, fds = quarters.given, self._far_ends
        if self._is_custom:
            given |= wire.AS_CUSTOM
        if self._is_forked:
            given |= wire.WITH_CODE
            fds += self._take_tree()
        fds += quarters.hand_over()
        self._far_ends = []
        self.number = self.zygote.spawn(self, uid=quarters.uid, given=given, fds=fds)

    def _take_tree(self) -> list[int]:
        trees, self._tree = [self._tree] if self._tree is not None else [], None
        return trees

    def move_in(self, tenant: Tenant, version: FunctionVersion, tree: int | None) -> None:
        """Give the body its tenant; `tree` is the code for a cell, owned here from now on."""
        self._tenant = tenant
        self._version = version
        if tree is not None:
            self._tree = tree
        self._loop.add_reader(self._channel.fileno(), self._readable)
        self._watch_log()
        if self.is_started:
            self._furnish()

    def _furnish(self) -> None:
        """It runs and has a tenant: what they need of each other."""
        assert self._tenant is not None
        assert self._version is not None
        assert self._quarters is not None
        if self._runtime_door >= 0:
            listener = socket.socket(fileno=self._runtime_door)
            self._runtime_door = -1
            self._runtime_api = RuntimeApi(listener, self._tenant.received)
        if self._is_forked:
            self._tenant.embodied()
        else:
            self._fill()
        # While it begins: whoever comes to the door that early waits in its queue.
        self._quarters.open_door(self._version)

    def _fill(self) -> None:
        """Move the code into a cell, and bound it by what the function was given."""
        assert self._version is not None
        assert self._quarters is not None
        for each in self._take_tree():
            self.zygote.fill(self.number, each)
        try:
            self._quarters.limit(self._version)
        except OSError as error:
            log.error("environment.homeless", runtime=self.zygote.runtime, error=str(error))
            self.is_refused = True
            self.kill()

    # ------------------------------------------------------------------ told by the zygote

    def started(self, doors: Mapping[int, int]) -> None:
        self.is_started = True
        assert self._quarters is not None
        others = dict(doors)
        self._runtime_door = others.pop(wire.DOOR_RUNTIME, -1)
        self._quarters.has_doors(others)
        if self._is_custom and self._runtime_door < 0:
            log.error("environment.refused", error="a custom runtime needs a network of its own")
            self.is_refused = True
            self._is_killed = True
        if self._is_killed:
            self._end()
        elif self._tenant is not None:
            self._furnish()

    def refused(self) -> None:
        self.is_refused = True

    def filled(self) -> None:
        if self._tenant is not None:
            self._tenant.embodied()

    def exited(self, status: int | None) -> None:
        """It is gone, or never came to be: everything of it is given back, once."""
        if self._is_over:
            return
        self._is_over = True
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._loop.remove_reader(self.log_pipe)
        if self._tenant is not None:
            self._receive_rest()
            self._tenant.exited(status)
        if self._runtime_api is not None:
            self._runtime_api.close()
        self._channel.close()
        for fd in (self.log_pipe, self._runtime_door, *self._far_ends, *self._take_tree()):
            if fd >= 0:
                os.close(fd)
        if self._quarters is not None:
            self._quarters.leave()
        self._ended(self)

    # ------------------------------------------------------------------ the channel

    def deliver(self, event: bytes) -> None:
        """Hand over one EVENT frame."""
        if self._runtime_api is not None:
            self._runtime_api.send(event)
        else:
            self.send(event)

    def send(self, data: bytes) -> None:
        """Write to the process, without waiting for it to read."""
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._channel.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # it closed its end; its exit is about to be told
        if sent < len(data):
            self._unsent = data[sent:]
            self._loop.add_writer(self._channel.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            sent = self._channel.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._unsent)
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._loop.remove_writer(self._channel.fileno())

    def _readable(self) -> None:
        try:
            data = self._channel.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._channel.fileno())
            if self._runtime_api is not None:
                return  # it became the user's program, which has no channel
        if self._tenant is not None:
            self._tenant.received(data)

    def _receive_rest(self) -> None:
        """What it wrote before it ended counts, though its end was told first."""
        assert self._tenant is not None
        while True:
            try:
                data = self._channel.recv(READ_BYTES)
            except OSError:
                return
            if not data:
                return
            self._tenant.received(data)

    def _log_readable(self) -> None:
        assert self._tenant is not None
        pause_s = self._tenant.wrote_log()
        if pause_s != 0.0:
            self._loop.remove_reader(self.log_pipe)
        if pause_s:
            self._loop.call_later(pause_s, self._watch_log)

    def _watch_log(self) -> None:
        if not self._is_over:
            self._loop.add_reader(self.log_pipe, self._log_readable)

    # ------------------------------------------------------------------ frost and use

    def throttle(self) -> None:
        """From the first event on it gets the CPU that its memory buys, where that is a limit."""
        if self._quarters is not None and self._quarters.cgroup is not None:
            try:
                self._quarters.cgroup.throttle()
            except OSError as error:
                log.error("environment.unthrottled", number=self.number, error=str(error))

    def freeze(self) -> None:
        """None of its threads runs until `thaw`. Raises OSError."""
        if self._quarters is not None and self._quarters.cgroup is not None:
            self._quarters.cgroup.freeze()
        else:
            self.zygote.signal(self.number, signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`. What cannot be thawed is killed."""
        if self._quarters is None or self._quarters.cgroup is None:
            self.zygote.signal(self.number, signal.SIGCONT)
            return
        try:
            self._quarters.cgroup.thaw()
        except OSError as error:
            log.error("environment.stays_frozen", number=self.number, error=str(error))
            self.kill()

    def peak_kib(self) -> int | None:
        """The most memory it ever held, as the kernel counts it; None: nobody counts."""
        cgroup = self._quarters.cgroup if self._quarters is not None else None
        return None if cgroup is None else _counted(cgroup.peak_kib)

    def oom_kills(self) -> int:
        """How many of its processes wanted more memory than there is for it."""
        cgroup = self._quarters.cgroup if self._quarters is not None else None
        return 0 if cgroup is None else _counted(cgroup.oom_kills)

    # ------------------------------------------------------------------ ending

    def kill(self) -> None:
        """SIGKILL to the first process of its PID namespace: nothing inside survives that."""
        if self._is_killed:
            return
        self._is_killed = True
        if self.is_started:
            self._end()
        elif not self.number:
            self._loop.call_soon(self.exited, None)  # nothing of it exists yet

    def _end(self) -> None:
        cgroup = self._quarters.cgroup if self._quarters is not None else None
        try:
            if cgroup is not None:
                cgroup.kill()
            self.zygote.signal(self.number, signal.SIGKILL)
            if cgroup is not None:
                cgroup.thaw()  # in v1 what is frozen dies when it is thawed
        except OSError as error:
            log.warning("cgroup.lost", number=self.number, error=str(error))


def _counted(count: Callable[[], int]) -> int:
    try:
        return count()
    except (OSError, ValueError):
        return 0  # whoever took the cgroup away took its counters along
