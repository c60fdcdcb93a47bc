"""Wires: connections and waiting, once blocking and once on an event loop.

Everything above is written once, against `Network`. The blocking one never suspends, so whoever
drives a coroutine over it gets the result from its first step.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from typing import Protocol

import anyio
import anyio.abc
from anyio.streams.tls import TLSStream

_CHUNK_BYTES = 65_536


class Wire(Protocol):
    """One connection. Deadlines are instants of `time.monotonic`; late is a TimeoutError."""

    async def send(self, data: bytes, deadline: float) -> None: ...

    async def receive(self, deadline: float) -> bytes:
        """What came; nothing at the connection's end."""
        ...

    def is_quiet(self) -> bool:
        """Whether the other side neither said more nor hung up."""
        ...

    async def close(self) -> None: ...


class Network(Protocol):
    """Makes wires, a bounded number at a time, and waits."""

    async def connect(self, host: str, port: int, *, tls: bool, deadline: float) -> Wire: ...

    async def enter(self, deadline: float) -> None:
        """Wait for one of the places for connections."""
        ...

    def enter_now(self) -> bool:
        """Take one of the places if there is any."""
        ...

    def leave(self) -> None: ...

    async def sleep(self, seconds: float) -> None: ...


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining


def _is_quiet(sock: socket.socket) -> bool:
    poll = select.poll()  # unlike select, it takes any descriptor
    poll.register(sock.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    return not poll.poll(0)


class BlockingWire:
    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def send(self, data: bytes, deadline: float) -> None:
        self._socket.settimeout(_remaining(deadline))
        self._socket.sendall(data)

    async def receive(self, deadline: float) -> bytes:
        self._socket.settimeout(_remaining(deadline))
        return self._socket.recv(_CHUNK_BYTES)

    def is_quiet(self) -> bool:
        return _is_quiet(self._socket)

    async def close(self) -> None:
        self._socket.close()


class BlockingNetwork:
    def __init__(self, places: int) -> None:
        self._places = threading.BoundedSemaphore(places)

    async def connect(self, host: str, port: int, *, tls: bool, deadline: float) -> Wire:
        sock = socket.create_connection((host, port), timeout=_remaining(deadline))
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls:
                sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        except BaseException:
            sock.close()
            raise
        return BlockingWire(sock)

    async def enter(self, deadline: float) -> None:
        if not self._places.acquire(timeout=_remaining(deadline)):
            raise TimeoutError

    def enter_now(self) -> bool:
        return self._places.acquire(blocking=False)

    def leave(self) -> None:
        self._places.release()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # nothing else runs on this thread meanwhile


class AsyncWire:
    def __init__(self, stream: anyio.abc.SocketStream | TLSStream) -> None:
        self._stream = stream

    async def send(self, data: bytes, deadline: float) -> None:
        try:
            with anyio.fail_after(_remaining(deadline)):
                await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ConnectionResetError(str(error)) from error

    async def receive(self, deadline: float) -> bytes:
        try:
            with anyio.fail_after(_remaining(deadline)):
                return await self._stream.receive(_CHUNK_BYTES)
        except anyio.EndOfStream:
            return b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ConnectionResetError(str(error)) from error

    def is_quiet(self) -> bool:
        return _is_quiet(self._stream.extra(anyio.abc.SocketAttribute.raw_socket))

    async def close(self) -> None:
        await anyio.aclose_forcefully(self._stream)


class AsyncNetwork:
    def __init__(self, places: int) -> None:
        self._places = anyio.Semaphore(places, max_value=places, fast_acquire=True)

    async def connect(self, host: str, port: int, *, tls: bool, deadline: float) -> Wire:
        with anyio.fail_after(_remaining(deadline)):
            if not tls:
                return AsyncWire(await anyio.connect_tcp(host, port))
            return AsyncWire(
                await anyio.connect_tcp(host, port, tls=True, tls_standard_compatible=False)
            )

    async def enter(self, deadline: float) -> None:
        with anyio.fail_after(_remaining(deadline)):
            await self._places.acquire()

    def enter_now(self) -> bool:
        try:
            self._places.acquire_nowait()
        except anyio.WouldBlock:
            return False
        return True

    def leave(self) -> None:
        self._places.release()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)
