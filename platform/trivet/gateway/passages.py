"""Passages: what the supervisor and the gateway say to each other about doors.

A door is an environment's way to the gateway: its AWS endpoint and its resolver. The supervisor
hands over what arrives there, as descriptors; no byte of it passes through the link.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack

# supervisor -> gateway, each with the door's number
CONNECTION = 1  # function.  fd: a connection that was made to the AWS endpoint
NAMES = 2  # egress, as text.  fd: the resolver's socket, at its first query
GONE = 3  # nothing.  The environment has ended, and so has everything of its door
PERMITTED = 4  # ticket.  The addresses under this ticket can be reached now

# gateway -> supervisor, with the door's number
PERMIT = 5  # ticket, address, seconds.  DNS gave this address for a name that may be reached

MAX_MESSAGE_BYTES = 32_768

Heard = Callable[[list[Any], int], None]
"""Takes a message ([kind, door, ...]) and the descriptor beside it or -1, which it owns."""


class Passage:
    """One end of the link. Nothing here waits; messages leave in the order they were given."""

    def __init__(
        self,
        link: socket.socket,
        *,
        heard: Heard,
        lost: Callable[[Passage], None],
        drained: Callable[[], None] = lambda: None,
    ) -> None:
        """Owns `link`. `lost` is told when the other side is gone, `drained` when nothing waits."""
        link.setblocking(False)
        self._link = link
        self._heard = heard
        self._lost = lost
        self._drained = drained
        self._unsent: deque[tuple[bytes, int]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(link.fileno(), self._readable)

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<Passage {state}, {len(self._unsent)} waiting>"

    @property
    def is_open(self) -> bool:
        return self._link.fileno() >= 0

    @property
    def is_stuck(self) -> bool:
        """The other side does not keep up."""
        return bool(self._unsent)

    def send(self, kind: int, door: int, *said: Any, fd: int = -1) -> None:
        """Say it as soon as there is room; `fd` is closed here once it is handed over."""
        if not self.is_open:
            _close(fd)
            return
        self._unsent.append((msgpack.packb((kind, door, *said)), fd))
        if len(self._unsent) == 1:
            self._flush()

    def close(self) -> None:
        """Give up the link; `lost` is not told."""
        if not self.is_open:
            return
        self._loop.remove_reader(self._link.fileno())
        self._loop.remove_writer(self._link.fileno())
        self._link.close()
        while self._unsent:
            _close(self._unsent.popleft()[1])

    def _flush(self) -> None:
        while self._unsent:
            message, fd = self._unsent[0]
            try:
                socket.send_fds(self._link, [message], [fd] if fd >= 0 else [])
            except BlockingIOError:
                self._loop.add_writer(self._link.fileno(), self._writable)
                return
            except OSError:
                self._break()
                return
            self._unsent.popleft()
            _close(fd)

    def _writable(self) -> None:
        self._loop.remove_writer(self._link.fileno())
        self._flush()
        if self.is_open and not self._unsent:
            self._drained()

    def _readable(self) -> None:
        while self.is_open:
            try:
                message, fds, _, _ = socket.recv_fds(
                    self._link, MAX_MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                message, fds = b"", []
            if not message:
                self._break()
                return
            self._heard(msgpack.unpackb(message), fds[0] if fds else -1)

    def _break(self) -> None:
        self.close()
        self._lost(self)


def _close(fd: int) -> None:
    if fd >= 0:
        with suppress(OSError):
            os.close(fd)
