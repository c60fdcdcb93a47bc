"""RESP: raw Redis connections for the hot paths, hiredis over a uvloop protocol.

Commands of one event-loop turn leave in one write, and replies come back in order: about two
microseconds a command, where a client library takes ten times that. redis-py serves the rest.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import hiredis

# How long to wait before the next try, when a server is away.
RECONNECT_S = 0.02
# A server that owes an answer for so long is in trouble: nobody is to wait behind the others.
STALLED_S = 2.0
# After this it is given up. A server that was only stopped goes on with what it was sent before.
GIVEN_UP_S = 15.0
CONNECT_WITHIN_S = 5.0

OnReply = Callable[[Any], None]

Intercept = Callable[["Connection", bytes, list[OnReply]], bool]
"""Given packed commands and who hears their replies; true when it has sent them, or never will."""

intercept: Intercept | None = None  # what a test of crashes puts before every connection


def pack(parts: tuple[str | bytes | int, ...]) -> bytes:
    """One command as it goes over the wire."""
    packed: bytes = hiredis.pack_command(parts)  # type: ignore[arg-type]  # its stub names one item
    return packed


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis server listens, and who we are there."""

    socket: str = ""  # path of a unix socket; empty: TCP
    host: str = ""
    port: int = 6379
    username: str = ""
    password: str = ""
    database: int = 0
    tls: bool = False


def parse_address(url: str) -> Address:
    """`unix:///path`, `redis://[user:password@]host[:port][/db]` or `rediss://` (TLS)."""
    parts = urlsplit(url)
    username, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme == "unix":
        return Address(socket=unquote(parts.path), username=username, password=password)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ValueError(f"not a Redis URL: {url}")
    return Address(
        host=parts.hostname,
        port=parts.port or 6379,
        username=username,
        password=password,
        database=int(parts.path.strip("/") or 0),
        tls=parts.scheme == "rediss",
    )


class Connection(asyncio.Protocol):
    """One connection. Each command gets one reply, or `ConnectionError` when it is lost."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reader = hiredis.Reader()
        self._unsent: list[bytes] = []
        self._waiting: deque[OnReply] = deque()
        self._transport: asyncio.Transport | None = None
        self._progress_at = 0.0  # loop time of the last answer, or of the first unanswered command
        self.writes = 0  # batches of commands so far
        self.lost: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, since uvloop's transports derive from nothing of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        waiting = self._waiting
        while (reply := reader.gets()) is not False:
            waiting.popleft()(reply)
        self._progress_at = self._loop.time()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if not self.lost.done():
            self.lost.set_result(None)
        waiting, self._waiting = self._waiting, deque()
        gone = ConnectionError("the connection to Redis was lost")
        for on_reply in waiting:
            on_reply(gone)

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    @property
    def is_stalled(self) -> bool:
        """Whether the server has answered nothing for too long, and should have. Has no meaning
        where reads are blocked."""
        return bool(self._waiting) and self._loop.time() - self._progress_at > STALLED_S

    def watch(self) -> None:
        """Close the connection when the server owes an answer for too long; from now on."""
        if self._transport is None:
            return
        if self._waiting and self._loop.time() - self._progress_at > GIVEN_UP_S:
            self._transport.abort()
        else:
            self._loop.call_later(GIVEN_UP_S / 3, self.watch)

    def send(self, command: bytes, on_reply: OnReply) -> None:
        """Send a packed command; `on_reply` gets the reply, a hiredis error or ConnectionError."""
        if intercept is not None and intercept(self, command, [on_reply]):
            return
        if self._transport is None:
            self._loop.call_soon(on_reply, ConnectionError("no connection to Redis"))
            return
        if not self._waiting:
            self._progress_at = self._loop.time()
        self._waiting.append(on_reply)
        if not self._unsent:
            self._loop.call_soon(self.flush)
        self._unsent.append(command)

    def send_several(self, commands: bytes, on_replies: list[OnReply]) -> None:
        """Send packed commands that belong together; each has its own reply."""
        if intercept is not None and intercept(self, commands, on_replies):
            return
        first, *rest = on_replies
        self.send(commands, first)
        if self._transport is not None:
            self._waiting.extend(rest)
        else:
            for on_reply in rest:
                self._loop.call_soon(on_reply, ConnectionError("no connection to Redis"))

    def flush(self) -> None:
        """Write what this turn of the loop sent, ahead of its end."""
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None:
            self.writes += 1
            self._transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    async def call(self, *command: str | bytes | int) -> Any:
        """One command off the hot path: its reply. Raises hiredis.ReplyError, ConnectionError."""
        future: asyncio.Future[Any] = self._loop.create_future()

        def on_reply(reply: Any) -> None:
            if future.cancelled():
                return
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        self.send(pack(command), on_reply)
        return await future

    async def call_all(self, *commands: tuple[str | bytes, ...]) -> list[Any]:
        """Commands off the hot path, in one write: their replies, the errors among them."""
        replies: list[Any] = []
        all_there: asyncio.Future[None] = self._loop.create_future()

        def on_reply(reply: Any) -> None:
            replies.append(reply)
            if len(replies) == len(commands) and not all_there.done():
                all_there.set_result(None)

        self.send_several(b"".join(map(pack, commands)), [on_reply] * len(commands))
        await all_there
        return replies

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def connect(address: Address) -> Connection:
    """A connection that is ready for commands. Raises OSError and hiredis.ReplyError."""
    async with asyncio.timeout(CONNECT_WITHIN_S):  # TimeoutError is an OSError
        return await _connect(address)


async def _connect(address: Address) -> Connection:
    loop = asyncio.get_running_loop()
    connection: Connection
    if address.socket:
        _, connection = await loop.create_unix_connection(lambda: Connection(loop), address.socket)
    else:
        context = ssl.create_default_context() if address.tls else None
        _, connection = await loop.create_connection(
            lambda: Connection(loop), address.host, address.port, ssl=context
        )
    try:
        if address.password:
            names = (address.username,) if address.username else ()
            await connection.call("AUTH", *names, address.password)
        if address.database:
            await connection.call("SELECT", address.database)
        # A server that still loads its data accepts connections and refuses commands.
        await connection.call("PING")
    except BaseException:
        connection.close()
        raise
    return connection


@asynccontextmanager
async def connected(address: Address) -> AsyncIterator[Connection]:
    """A connection that is closed at the end, and when the server does not answer. Raises as
    `connect` does. No read may be blocked on it for longer than ten seconds."""
    connection = await connect(address)
    connection.watch()
    try:
        yield connection
    finally:
        connection.close()
