"""Zygotes: the supervisor's ends of the command sockets, one per runtime.

A zygote may die and come back: environments live on without it. So what must end an environment
is its pidfd, which any zygote can be handed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import anyio
import structlog

from trivet_worker import wire

log = structlog.get_logger()


_DOORS = (wire.DOOR_AWS, wire.DOOR_NAMES, wire.DOOR_RUNTIME)


class Process(Protocol):
    """Who started a process through a zygote, and is told what becomes of it."""

    def started(self, doors: Mapping[int, int]) -> None:
        """It runs. `doors`: descriptors by wire.DOOR_*, now its own."""
        ...

    def filled(self) -> None: ...

    def refused(self) -> None:
        """Its zygote could not start it, or not complete it. `exited` follows, in its time."""
        ...

    def exited(self, status: int | None) -> None:
        """Its exit status, or minus the signal; None when no zygote saw it or could start it."""
        ...


@dataclass(slots=True)
class _Entry:
    process: Process
    uid: int
    pidfd: int = -1
    is_gone: bool = False  # it exited; how, its zygote is about to tell
    is_orphan: bool = False  # its zygote died before it: nobody will tell how it exits


@dataclass(slots=True, eq=False)
class Zygote:
    """The zygote of one runtime, dead or alive."""

    runtime: str
    isolation: int = 0  # bits of wire.ISOLATION_*
    ready: anyio.Event = field(default_factory=anyio.Event)  # said once that it serves
    on_ready: Callable[[], None] = lambda: None
    _link: socket.socket | None = None
    _entries: dict[int, _Entry] = field(default_factory=dict)
    # Commands that wait: for a zygote that is restarting, or for room in its socket.
    _unsent: deque[tuple[int, bytes, Sequence[int]]] = field(default_factory=deque)
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __repr__(self) -> str:
        state = "up" if self._link else "down"
        return f"<Zygote {self.runtime} {state}, {len(self._entries)} processes>"

    @property
    def is_up(self) -> bool:
        return self._link is not None

    def attach(self, link: socket.socket) -> None:
        """Use a new zygote; the processes of the one before are handed to it."""
        if self._link is not None:
            self._readable()  # its last words, and its end, are usually there already
        if self._link is not None:
            self._lose()
        link.setblocking(False)
        self._link = link
        asyncio.get_running_loop().add_reader(link.fileno(), self._readable)
        for number, entry in self._entries.items():
            if entry.is_orphan:
                # Before what waits already: a KILL names only what a zygote knows.
                adopt = wire.COMMAND.pack(wire.ADOPT, number, entry.uid, 0)
                self._unsent.appendleft((number, adopt, [os.dup(entry.pidfd)]))
        self._flush()

    def _lose(self) -> None:
        log.warning("zygote.lost", runtime=self.runtime, processes=len(self._entries))
        self._detach()
        self._orphan_all()

    def _detach(self) -> None:
        if self._link is not None:
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            asyncio.get_running_loop().remove_writer(self._link.fileno())
            self._link.close()
            self._link = None

    # ------------------------------------------------------------------ commands

    def spawn(self, process: Process, *, uid: int, given: int, fds: list[int]) -> int:
        """Start a process. `given`: wire.WITH_* and the size of its /tmp, as SPAWN has them.

        `fds` (channel, log pipe, and those that `given` names) are closed here once sent.
        """
        number = next(self._ids)
        self._entries[number] = _Entry(process, uid)
        self._send(wire.SPAWN, number, uid, given, fds=fds)
        return number

    def fill(self, number: int, tree: int) -> None:
        """Move the code tree into the waiting cell `number`; closes `tree` once sent."""
        self._send(wire.FILL, number, 0, wire.WITH_CODE, fds=[tree])

    def signal(self, number: int, sent: int) -> None:
        """SIGKILL; or SIGSTOP and SIGCONT, to the first process of `number` only."""
        entry = self._entries.get(number)
        if entry is not None and entry.pidfd >= 0:
            self._send(wire.KILL, number, 0 if sent == signal.SIGKILL else sent)

    def _send(
        self, kind: int, number: int, first: int = 0, second: int = 0, *, fds: Sequence[int] = ()
    ) -> None:
        self._unsent.append((number, wire.COMMAND.pack(kind, number, first, second), fds))
        self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._unsent and self._link is not None:
            _, message, fds = self._unsent[0]
            try:
                socket.send_fds(self._link, [message], list(fds))
            except BlockingIOError:
                loop.add_writer(self._link.fileno(), self._writable)
                return
            except OSError:
                return  # it died; its successor gets what waits
            self._unsent.popleft()
            for fd in fds:
                os.close(fd)

    def _writable(self) -> None:
        if self._link is not None:
            asyncio.get_running_loop().remove_writer(self._link.fileno())
        self._flush()

    # ------------------------------------------------------------------ what it tells

    def _readable(self) -> None:
        while self._link is not None:
            try:
                message, fds, _, _ = socket.recv_fds(
                    self._link, wire.COMMAND.size, wire.MOST_DESCRIPTORS
                )
            except BlockingIOError:
                return
            except OSError:
                message, fds = b"", []
            if not message:
                self._lose()
                return
            kind, number, first, second = wire.COMMAND.unpack(message)
            self._on_message(kind, number, first, second, fds)

    def _on_message(self, kind: int, number: int, first: int, second: int, fds: list[int]) -> None:
        entry = self._entries.get(number)
        if kind == wire.READY:
            self.isolation = second
            self.ready.set()
            self._flush()
            self.on_ready()
        elif entry is None:
            for fd in fds:
                os.close(fd)
        elif kind == wire.STARTED:
            self._started(number, entry, second, fds)
        elif kind == wire.FILLED:
            entry.process.filled()
        elif kind == wire.EXITED:
            self._end(number, first)
        elif kind == wire.REFUSED:
            log.error("environment.refused", runtime=self.runtime, error=os.strerror(first))
            entry.process.refused()
            if entry.pidfd < 0:
                self._end(number, None)
            else:
                self.signal(number, signal.SIGKILL)  # a cell: it lives until its end is told

    def _started(self, number: int, entry: _Entry, doors: int, fds: list[int]) -> None:
        if not fds:
            # No descriptor was free here to take it with: it cannot be watched, so it must end.
            self._send(wire.KILL, number)
            entry.process.refused()
            return
        entry.pidfd = fds[0]
        asyncio.get_running_loop().add_reader(entry.pidfd, self._gone, number)
        bits = [bit for bit in _DOORS if doors & bit]
        entry.process.started(dict(zip(bits, fds[1:], strict=False)))

    def _gone(self, number: int) -> None:
        """The process exited. Its zygote tells how; without a zygote nobody will."""
        entry = self._entries.get(number)
        if entry is None:
            return
        entry.is_gone = True
        asyncio.get_running_loop().remove_reader(entry.pidfd)
        if entry.is_orphan:
            self._end(number, None)

    def _end(self, number: int, status: int | None) -> None:
        entry = self._entries.pop(number)
        if entry.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(entry.pidfd)
            os.close(entry.pidfd)
        entry.process.exited(status)

    def _orphan_all(self) -> None:
        """The zygote died, and with it what it had not started yet. The started live on."""
        unsent = {number for number, _, _ in self._unsent}
        for number, entry in list(self._entries.items()):
            entry.is_orphan = entry.pidfd >= 0
            if entry.is_gone or (entry.pidfd < 0 and number not in unsent):
                self._end(number, None)
