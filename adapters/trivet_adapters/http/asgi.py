"""The ASGI application on the public listener: match, invoke, answer. The hot path of HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from trivet import (
    Event,
    Match,
    Platform,
    PlatformError,
    Presented,
    RequestTooLarge,
    Throttled,
    TrivetError,
)
from trivet_adapters.http import urls
from trivet_adapters.http.identities import Identity, new_identity
from trivet_adapters.http.replies import (
    BODILESS,
    Header,
    MalformedReply,
    Response,
    read_reply,
    refusal,
)
from trivet_adapters.http.requests import Request, domain_of, event_payload

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST_BODY_BYTES = 10 * 1024 * 1024  # of an HTTP API
LONGEST_INTEGRATION_S = 30.0  # of an HTTP API, whatever the function's own timeout

NOT_FOUND = refusal(404, "Not Found")
TOO_LARGE = refusal(413, "Request Entity Too Large")
TOO_MANY = refusal(429, "Too Many Requests", (b"retry-after", b"1"))
FAILED = refusal(500, "Internal Server Error")
UNAVAILABLE = refusal(503, "Service Unavailable")

_LIMIT = (LARGEST_BODY_BYTES, TOO_LARGE)
_URL_LIMIT = (urls.LARGEST_BODY_BYTES, urls.TOO_LARGE)


def application(
    platform: Platform, *, longest_integration_s: float = LONGEST_INTEGRATION_S
) -> Application:
    """The ASGI application that serves `platform`'s Routes."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        now_s = time.time()
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"]]
        named = dict(headers)
        identity = new_identity(now_s, named.get("x-amzn-trace-id"))
        match = platform.match(
            domain_of(named.get("host", "")).lower(), scope["method"], scope["path"]
        )
        url = match.url if match is not None else None
        if match is None:
            is_url = urls.HOST in named.get("host", "").lower()
            response = urls.NOT_THERE if is_url else NOT_FOUND
        else:
            limit = _LIMIT if url is None else _URL_LIMIT
            body = await _read_body(receive, named.get("content-length"), *limit)
            if body is None:
                return
            if isinstance(body, Response):
                response = body
            else:
                request = _request(scope, headers, named, body, int(now_s * 1000), identity)
                if url is None:
                    response = await _invoke(platform, request, match, longest_integration_s)
                else:
                    presented = _presented(scope, body)
                    response = await urls.answer(platform, request, match, url, presented)
        if url is None:
            own = [(b"apigw-requestid", identity.request_id.encode())]
        else:
            own = urls.own_headers(url, identity, named.get("origin"))
        await _send(send, response, scope["method"], own)

    return serve


async def _read_body(
    receive: Receive, announced: str | None, most_bytes: int, too_large: Response
) -> bytes | Response | None:
    """The whole body, `too_large` if it is that, or None if the client has gone."""
    # The announced length is the parser's to check; here it only saves reading in vain.
    if announced and announced.isdecimal() and int(announced) > most_bytes:
        return too_large
    message = await receive()
    if message["type"] != "http.request":
        return None
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return body if len(body) <= most_bytes else too_large
    parts = bytearray(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts += message.get("body", b"")
        if len(parts) > most_bytes:
            return too_large
    return bytes(parts)


def _request(
    scope: Scope,
    headers: list[tuple[str, str]],
    named: dict[str, str],
    body: bytes,
    received_ms: int,
    identity: Identity,
) -> Request:
    server, client = scope.get("server"), scope.get("client")
    return Request(
        method=scope["method"],
        protocol=f"HTTP/{scope['http_version']}",
        scheme=scope["scheme"],
        host=named.get("host", ""),
        port=server[1] if server else None,
        source_ip=client[0] if client else "",
        query=scope["query_string"].decode("latin-1"),
        headers=headers,
        body=body,
        received_ms=received_ms,
        identity=identity,
    )


async def _invoke(platform: Platform, request: Request, match: Match, longest_s: float) -> Response:
    event = Event(
        id=request.identity.invocation_id,
        function=match.function,
        source="http",
        payload=event_payload(request, match, platform.account),
        trace_id=request.identity.trace_id,
    )
    try:
        async with asyncio.timeout(longest_s):
            reply = await platform.invoke(event)
    except (PlatformError, TimeoutError):
        return UNAVAILABLE
    except Throttled:
        return TOO_MANY
    except RequestTooLarge:
        return TOO_LARGE
    except TrivetError:
        return FAILED  # the function is gone: a broken integration, not the client's mistake
    if reply.function_error is not None:
        return FAILED
    try:
        return read_reply(reply.payload, match.payload_format)
    except MalformedReply as error:
        log.warning("response.malformed function=%s reason=%s", match.function, error)
        return FAILED


def _presented(scope: Scope, body: bytes) -> Presented:
    return Presented(
        method=scope["method"],
        raw_path=scope["raw_path"],
        query=scope["query_string"],
        headers=scope["headers"],
        body=body,
    )


async def _send(send: Send, response: Response, method: str, own: list[Header]) -> None:
    headers = [*response.headers, *own]
    body = response.body
    if response.status in BODILESS:
        body = b""
    else:
        headers.append((b"content-length", b"%d" % len(body)))
    if method == "HEAD":
        body = b""
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
