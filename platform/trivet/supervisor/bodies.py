"""Bodies: the process an environment lives in, with its channel and its log pipe.

A forked body is made for one environment. A cell is a body that was booted blank, and gets its
tenant later; the code is moved into its walls then.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Protocol

from trivet.supervisor.zygotes import Zygote
from trivet_worker import wire

READ_BYTES = 262_144


class Tenant(Protocol):
    """The environment that lives in a body."""

    def embodied(self) -> None:
        """The process runs, walled in, and sees the code."""
        ...

    def received(self, data: bytes) -> None:
        """Bytes from the channel; empty when the process closed it."""
        ...

    def wrote_log(self) -> bool:
        """The log pipe has bytes, or has ended: false then."""
        ...

    def exited(self, status: int | None) -> None: ...


class Body:
    """One process under a zygote. Implements `zygotes.Process`."""

    def __init__(
        self, zygote: Zygote, uid: int, *, ended: Callable[[Body], None], tree: int | None
    ) -> None:
        """Start the process. `tree`, the code of a forked body, is closed once it is sent.

        `ended` is told when the process is gone, tenant or not: its uid is free again.
        """
        self.zygote = zygote
        self.uid = uid
        self.is_started = False
        self.is_refused = False
        self._tenant: Tenant | None = None
        self._tree: int | None = None  # to be moved in, for a cell with a tenant
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._unsent = b""
        self._is_killed = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        self._channel = ours
        self.log_pipe, log_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.log_pipe, False)
        fds = [theirs.detach(), log_end]
        if tree is not None:
            fds.append(tree)
        self._is_forked = tree is not None
        given = wire.WITH_CODE if self._is_forked else 0
        self.number = zygote.spawn(self, uid=uid, given=given, fds=fds)

    def __repr__(self) -> str:
        return f"<Body {self.number} of {self.zygote.runtime}>"

    def move_in(self, tenant: Tenant, tree: int | None) -> None:
        """Give the body its tenant; `tree` is the code for a cell, closed once it is sent."""
        self._tenant = tenant
        self._tree = tree
        self._loop.add_reader(self._channel.fileno(), self._readable)
        self._loop.add_reader(self.log_pipe, self._log_readable)
        if self.is_started:
            self._furnish()

    def _furnish(self) -> None:
        assert self._tenant is not None
        if self._is_forked:
            self._tenant.embodied()
        elif self._tree is not None:
            self.zygote.fill(self.number, self._tree)
            self._tree = None

    # ------------------------------------------------------------------ told by the zygote

    def started(self, pidfd: int) -> None:
        self.is_started = True
        if self._is_killed:
            self.zygote.kill(self.number)
        elif self._tenant is not None:
            self._furnish()

    def refused(self) -> None:
        self.is_refused = True

    def filled(self) -> None:
        if self._tenant is not None:
            self._tenant.embodied()

    def exited(self, status: int | None) -> None:
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._loop.remove_reader(self.log_pipe)
        if self._tenant is not None:
            self._receive_rest()
            self._tenant.exited(status)
        self._channel.close()
        os.close(self.log_pipe)
        if self._tree is not None:
            os.close(self._tree)
        self._ended(self)

    # ------------------------------------------------------------------ the channel

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
        if self._tenant is not None and not self._tenant.wrote_log():
            self._loop.remove_reader(self.log_pipe)

    # ------------------------------------------------------------------ ending

    def kill(self) -> None:
        """SIGKILL to the first process of its PID namespace: nothing inside survives that."""
        if not self._is_killed:
            self._is_killed = True
            if self.is_started:
                self.zygote.kill(self.number)
