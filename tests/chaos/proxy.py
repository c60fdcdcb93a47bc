"""Proxy: stands between the platform and a server, and can delay, swallow and cut what passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

_CHUNK_BYTES = 65_536
_CLOSED = (ConnectionError, OSError, asyncio.CancelledError)


class Tcp(NamedTuple):
    host: str
    port: int


Place = Tcp | str
"""Where something listens: a TCP address, or the path of a unix socket."""


class Proxy:
    """Passes connections on, on a loopback port of its own or on the path that it is given.

    `delay_s` holds each chunk back, both ways. `swallow()` is a partition: connections stay open
    and are taken, and nothing passes before `let_pass()`, when all of it does. `cut()` ends the
    connections there are; `cut_after(n)` does so once n more bytes have left for the clients.
    """

    def __init__(self, upstream: Place) -> None:
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._passing = asyncio.Event()
        self._passing.set()
        self._links: set[_Link] = set()
        self._left: int | None = None  # bytes to the clients before all is cut
        self.delay_s = 0.0
        self.taken = 0  # connections since the start

    def __repr__(self) -> str:
        return f"<Proxy to {self._upstream}, {len(self._links)} connections>"

    async def start(self, path: str = "") -> Place:
        """Listen; returns where."""
        if path:
            self._server = await asyncio.start_unix_server(self._take, path)
            return path
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return Tcp(host, port)

    async def close(self) -> None:
        self.let_pass()
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def swallow(self) -> None:
        self._passing.clear()

    def let_pass(self) -> None:
        self._passing.set()

    def cut(self) -> None:
        for link in list(self._links):
            link.abort()

    def cut_after(self, count: int) -> None:
        self._left = count

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        link = _Link(writer)
        self._links.add(link)
        try:
            await self._passing.wait()
            there, back = await self._connect()
            link.join(back)
            await asyncio.gather(
                self._pump(reader, back, lambda data: data), self._pump(there, writer, self._kept)
            )
        except _CLOSED:
            pass
        finally:
            link.abort()
            self._links.discard(link)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._upstream, str):
            return await asyncio.open_unix_connection(self._upstream)
        return await asyncio.open_connection(*self._upstream)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        kept: Callable[[bytes], bytes],
    ) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            await self._passing.wait()
            rest = kept(data)
            writer.write(rest)
            await writer.drain()
            if len(rest) < len(data):
                self.cut()
        if not writer.transport.is_closing():
            with suppress(OSError):
                writer.write_eof()

    def _kept(self, data: bytes) -> bytes:
        """What of it may leave before all is cut."""
        if self._left is None:
            return data
        rest = data[: self._left]
        self._left = None if len(rest) < len(data) else self._left - len(rest)
        return rest


class _Link:
    """A connection of a client, and ours to the server once there is one."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._transports = [writer.transport]

    def join(self, writer: asyncio.StreamWriter) -> None:
        self._transports.append(writer.transport)

    def abort(self) -> None:
        for transport in self._transports:
            # What was written to it still leaves with `close`, and nothing with `abort`.
            transport.close()
            if not transport.get_write_buffer_size():
                transport.abort()
