"""Relays: bytes both ways between a function and a service that the operator serves elsewhere.

Each side is read only as fast as the other takes it. When one has said all, the other hears that,
and may still answer.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import cast

import structlog

from trivet.core.endpoints import ServiceEndpoint

log = structlog.get_logger()

CONNECT_WITHIN_S = 5.0
# A relay by which nothing came for so long is given up: no invocation lasts as long.
IDLE_S = 960.0
# What may wait on one side before the other is no longer read.
WAITING_BYTES = 65_536


class Relay:
    """One function's connection and the one made for it. Ends when both are gone."""

    def __init__(self) -> None:
        self._near, self._far = _Side(self), _Side(self)
        self._near.other, self._far.other = self._far, self._near
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Relay {self._moved()} bytes>"

    async def run(self, connection: socket.socket, target: ServiceEndpoint) -> None:
        """Relay until both have said all and taken all, one is gone, or nothing came for long.

        Owns `connection`. Cancelled, it cuts both.
        """
        loop = asyncio.get_running_loop()
        try:
            try:
                async with asyncio.timeout(CONNECT_WITHIN_S):
                    await loop.create_connection(lambda: self._far, target.host, target.port)
            except (OSError, TimeoutError) as error:
                log.warning("endpoint.unreachable", service=target.name, error=str(error))
                return
            await loop.connect_accepted_socket(lambda: self._near, sock=connection)
            self._far.listen()
            self._near.listen()
            await self._watched()
        finally:
            if not self._near.was_connected:
                connection.close()
            self._near.cut()
            self._far.cut()

    def lost(self) -> None:
        """Told by a side whose connection is closed."""
        if self._near.is_gone and self._far.is_gone:
            self._ended.set()

    async def _watched(self) -> None:
        moved = -1
        while not self._ended.is_set() and moved != self._moved():
            moved = self._moved()
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_S):
                    await self._ended.wait()

    def _moved(self) -> int:
        return self._near.received_bytes + self._far.received_bytes


class _Side(asyncio.Protocol):
    """One of the two connections. `other` is set before it is made."""

    other: _Side

    def __init__(self, relay: Relay) -> None:
        self.received_bytes = 0
        self.was_connected = False
        self.has_said_all = False
        self._relay = relay
        self._transport: asyncio.Transport | None = None

    @property
    def is_gone(self) -> bool:
        return self._transport is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.was_connected = True
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._transport.set_write_buffer_limits(high=WAITING_BYTES)
        self._transport.pause_reading()  # until there is a side to write to

    def listen(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def hush(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self.other.take(data)

    def take(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def eof_received(self) -> bool:
        self.has_said_all = True
        if self.other.has_said_all:
            self.close()
            self.other.close()
        else:
            self.other.take_end()
        return True

    def take_end(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def pause_writing(self) -> None:
        self.other.hush()

    def resume_writing(self) -> None:
        self.other.listen()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.other.close()
        self._relay.lost()

    def close(self) -> None:
        """Once what waits for it is written."""
        if self._transport is not None:
            self._transport.close()

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()
