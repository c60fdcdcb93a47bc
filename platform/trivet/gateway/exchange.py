"""Exchange: one request and its response, as the application sees them."""

from __future__ import annotations

import asyncio
import http
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

log = structlog.get_logger()

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Outlet(asyncio.Transport):
    """The transport as an exchange sees it: a response leaves whole, closing is left to others."""

    def __init__(self, transport: asyncio.Transport, finish: Callable[[], None]) -> None:
        super().__init__()
        self.transport = transport
        self.finish = finish
        self.is_closing = transport.is_closing  # type: ignore[method-assign]  # saves a call
        self.is_head_next = False
        self.head = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        # uvloop sends what it gets at once. Head and body together save one of two system calls,
        # and wake the client once only.
        if self.is_head_next:
            self.head = bytes(data)
            self.is_head_next = False
        elif self.head and len(data) <= HIGH_WATER_LIMIT:
            head, self.head = self.head, b""
            self.transport.write(head + data)
        else:
            self.flush()
            self.transport.write(data)

    def flush(self) -> None:
        if self.head:
            head, self.head = self.head, b""
            self.transport.write(head)

    def close(self) -> None:
        self.flush()
        self.finish()


class Exchange(RequestResponseCycle):
    """One request and its response."""

    @property
    def outlet(self) -> Outlet:
        assert isinstance(self.transport, Outlet)
        return self.transport

    async def run_asgi(self, app: Application) -> None:  # type: ignore[override]  # our own alias
        try:
            await app(self.scope, self.receive, self.send)  # type: ignore[arg-type]  # the same
        except Exception:
            log.exception("request.failed", path=self.scope["path"])
        if not self.disconnected and not self.response_complete:
            if self.response_started:
                self.disconnected = True
                self.transport.close()
            else:
                await self.send_500_response()

    async def send(self, message: Message) -> None:  # type: ignore[override]  # our own alias
        if not self.response_started:
            self.outlet.is_head_next = True
            if self.more_body:
                self.keep_alive = False  # nobody will read the rest of the request
            await super().send(message)  # type: ignore[arg-type]  # the same
        else:
            await super().send(message)  # type: ignore[arg-type]  # the same
            self.outlet.flush()  # a response to HEAD has no body to carry its head along

    async def send_500_response(self) -> None:
        body = refusal_body(500)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def abandon(self) -> None:
        """Let the application know that there is nobody to answer."""
        self.disconnected = True
        self.message_event.set()


def refusal_body(status: int) -> bytes:
    return b'{"message":"%b"}' % http.HTTPStatus(status).phrase.encode()
