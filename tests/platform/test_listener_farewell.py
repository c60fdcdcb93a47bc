"""The listener as it gives way to a successor: what is on its way is answered, and is the last."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.abc
import pytest

from trivet.gateway.exchange import Receive, Scope, Send
from trivet.gateway.listener import Limits, serve

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
PATIENT = Limits(farewell_ms=600_000)  # beyond the time limit of a test


@pytest.fixture(params=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@dataclass
class Site:
    """A listener, and an application that answers once it may."""

    port: int = 0
    stop: anyio.Event = field(default_factory=anyio.Event)
    succeeded: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    entered: anyio.Event = field(default_factory=anyio.Event)
    release: anyio.Event = field(default_factory=anyio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.set()
        await self.release.wait()
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async def connect(self) -> anyio.abc.SocketStream:
        return await anyio.connect_tcp("127.0.0.1", self.port)

    async def refuses(self) -> bool:
        """Whether it has stopped listening."""
        try:
            await (await self.connect()).aclose()
        except OSError:
            return True
        return False

    def give_way(self) -> None:
        self.succeeded.set()
        self.stop.set()


@asynccontextmanager
async def listening(limits: Limits) -> AsyncIterator[Site]:
    sock = socket.create_server(("127.0.0.1", 0))
    site = Site(sock.getsockname()[1])

    async def run() -> None:
        await serve(site, sock=sock, stop=site.stop, succeeded=site.succeeded, limits=limits)
        site.ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield site
        site.release.set()
        site.stop.set()
        tasks.cancel_scope.cancel()


async def answered(stream: anyio.abc.SocketStream) -> bytes:
    received = b""
    while not received.endswith(b"\r\n\r\nok"):
        received += await stream.receive()
    return received


async def rest(stream: anyio.abc.SocketStream) -> bytes:
    received = b""
    while True:
        try:
            received += await stream.receive()
        except anyio.EndOfStream:
            return received


async def test_a_connection_at_rest_gets_one_more_answer_and_then_ends() -> None:
    async with listening(PATIENT) as site, await site.connect() as idle:
        site.release.set()
        await idle.send(GET)
        assert b"connection: close" not in await answered(idle)
        site.give_way()
        while not await site.refuses():
            pass
        await idle.send(GET)
        answer = await rest(idle)
        assert b"connection: close" in answer
        assert answer.endswith(b"ok")
        await site.ended.wait()


async def test_a_connection_that_has_said_nothing_yet_is_answered() -> None:
    async with listening(PATIENT) as site, await site.connect() as new:
        site.release.set()
        site.give_way()
        await new.send(GET)
        assert b"connection: close" in await rest(new)
        await site.ended.wait()


async def test_what_is_in_flight_is_answered_and_told_to_close() -> None:
    async with listening(PATIENT) as site, await site.connect() as busy:
        await busy.send(GET)
        await site.entered.wait()
        site.give_way()
        site.release.set()
        assert b"connection: close" in await rest(busy)
        await site.ended.wait()


async def test_half_a_head_is_read_to_its_end() -> None:
    async with listening(PATIENT) as site, await site.connect() as slow:
        site.release.set()
        await slow.send(GET[:10])
        site.give_way()
        await slow.send(GET[10:])
        assert b"connection: close" in await rest(slow)
        await site.ended.wait()


async def test_a_connection_that_stays_at_rest_ends_after_a_moment() -> None:
    async with listening(Limits(farewell_ms=50)) as site, await site.connect() as idle:
        site.release.set()
        await idle.send(GET)
        await answered(idle)
        site.give_way()
        assert await rest(idle) == b""
        await site.ended.wait()
