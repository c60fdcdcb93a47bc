"""The door: one ASGI application for every AWS service that is here.

The scope of the signature says which service is meant. A request is claimed by its headers,
proven with its body, understood by the service's own model, run, and answered in the service's
own protocol; what fails on the way is answered as AWS answers it, never as a traceback.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol
from uuid import uuid4

import structlog
from anyio.to_thread import run_sync

from trivet.errors import NotImplementedHere, PlatformError, TrivetError

from .canonical import normalized
from .json_target import JsonTarget
from .model import Answer, Model, Request, load, unknown
from .query import Query
from .refusals import Refused, not_serializable
from .rest_json import RestJson
from .router import Found
from .services import Caller, Operation, Services
from .sigv4 import Claim, Verifier

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

log = structlog.get_logger()

# What AWS takes as one request, by service: a zip of 50 MB in base64 and the rest of the call.
_BODY_LIMITS_BYTES = {"lambda": 70_167_211}
_BODY_LIMIT_BYTES = 10_485_760

# Hashing and parsing this much would hold up every other request of this process.
_BIG_BODY_BYTES = 1_048_576

# An invocation has its own log, and there may be thousands of them in a second.
_UNLOGGED = frozenset({"Invoke", "InvokeAsync", "InvokeWithResponseStream"})


class Speaker(Protocol):
    """One protocol of AWS, for one service."""

    model: Model

    def find(self, request: Request) -> Found: ...

    def read(self, found: Found, request: Request) -> dict[str, Any]: ...

    def write(self, operation: str, result: Mapping[str, Any], request_id: str) -> Answer: ...

    def refuse(self, error: TrivetError, request_id: str) -> Answer: ...


_SPEAKERS: Mapping[str, Callable[[Model], Speaker]] = {
    "json": JsonTarget,
    "query": Query,
    "rest-json": RestJson,
}


class Hangup(Exception):
    """The client left before its request was whole."""


@dataclass(slots=True)
class _Call:
    """One request on its way through the door, and what is known of it so far."""

    request: Request
    request_id: str
    speaker: Speaker
    operation: str = ""


class Door:
    """`tables` holds the operations of each service, by botocore's name of the service."""

    def __init__(
        self,
        services: Services,
        verifier: Verifier,
        tables: Mapping[str, Mapping[str, Operation]],
    ) -> None:
        self._services = services
        self._verifier = verifier
        self._tables = tables
        self._speakers: dict[str, list[Speaker]] = {}
        for service in tables:
            model = load(service)
            speaker = _SPEAKERS[model.protocol](model)
            self._speakers.setdefault(model.signing_name, []).append(speaker)
        self._strangers = {
            protocol: made(unknown(protocol)) for protocol, made in _SPEAKERS.items()
        }

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the AWS door does not speak {scope['type']}")
        request_id = str(uuid4())
        started = perf_counter()
        fields = dict(scope["headers"])
        query = scope["query_string"]
        request = Request(scope["method"], normalized(scope["raw_path"]), query, fields)
        call = _Call(request, request_id, self._strangers[_protocol_of(request)])
        error = ""
        try:
            answer = await self._answer(call, scope, receive)
        except Hangup:
            return
        except TrivetError as refusal:
            error = refusal.error_type
            answer = _refuse(call, refusal)
        except Exception:
            log.exception("aws.failed", operation=call.operation, request_id=request_id)
            message = "An internal error occurred. Please retry your request."
            failure = PlatformError(message)
            error = failure.error_type
            answer = _refuse(call, failure)
        if call.operation not in _UNLOGGED:
            log.info(
                "aws.called",
                service=call.speaker.model.service,
                operation=call.operation,
                request_id=request_id,
                status=answer.status,
                error=error,
                ms=round((perf_counter() - started) * 1_000, 3),
            )
        await _send(send, answer, request_id)

    async def _answer(
        self, call: _Call, scope: MutableMapping[str, Any], receive: Receive
    ) -> Answer:
        request = call.request
        claim = self._verifier.claim(
            request.method, scope["raw_path"], request.query, scope["headers"]
        )
        speakers = self._speakers.get(claim.service, ())
        if speakers:
            call.speaker = speakers[0]
        request.body = await self._body(call, claim, receive)
        if len(request.body) > _BIG_BODY_BYTES:
            await run_sync(self._verifier.prove, claim, request.body)
        else:
            self._verifier.prove(claim, request.body)
        if not speakers:
            raise NotImplementedHere(f"Trivet does not implement {claim.service} yet.")
        found = _found(call, speakers)
        operation = self._tables[call.speaker.model.service].get(found.operation)
        if operation is None:
            name = f"{call.speaker.model.service}:{found.operation}"
            raise NotImplementedHere(f"Trivet does not implement {name} yet.")
        params = await _read(call, found)
        caller = Caller(claim.access_key, call.request_id)
        result = await operation(self._services, params, caller)
        return call.speaker.write(found.operation, result, call.request_id)

    async def _body(self, call: _Call, claim: Claim, receive: Receive) -> bytes:
        limit = _BODY_LIMITS_BYTES.get(claim.service, _BODY_LIMIT_BYTES)
        announced = call.request.headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            raise _too_large(call, limit)
        parts: list[bytes] = []
        received = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Hangup
            part = message.get("body", b"")
            received += len(part)
            if received > limit:
                raise _too_large(call, limit)
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)


def _protocol_of(request: Request) -> str:
    """The protocol to refuse in, until the signature says which service is meant."""
    if b"x-amz-target" in request.headers:
        return "json"
    content_type = request.headers.get(b"content-type", b"")
    if content_type.startswith(b"application/x-www-form-urlencoded") or (
        b"Action=" in request.query
    ):
        return "query"
    return "rest-json"


def _found(call: _Call, speakers: list[Speaker] | tuple[Speaker, ...]) -> Found:
    """The operation meant. Services that share a signing name are asked one after the other."""
    for speaker in speakers[:-1]:
        try:
            found = speaker.find(call.request)
        except Refused:
            continue
        call.speaker, call.operation = speaker, found.operation
        return found
    call.speaker = speakers[-1]
    found = call.speaker.find(call.request)
    call.operation = found.operation
    return found


async def _read(call: _Call, found: Found) -> dict[str, Any]:
    try:
        if len(call.request.body) > _BIG_BODY_BYTES:
            return await run_sync(call.speaker.read, found, call.request)
        return call.speaker.read(found, call.request)
    except RecursionError:
        raise not_serializable("The request body is nested too deeply.") from None


def _too_large(call: _Call, limit: int) -> Refused:
    message = f"Request must be smaller than {limit} bytes"
    with suppress(Refused):  # a path of no operation, or one that only the body would name
        message += f" for the {call.speaker.find(call.request).operation} operation"
    return Refused("RequestEntityTooLargeException", message, status=413)


def _refuse(call: _Call, error: TrivetError) -> Answer:
    answer = call.speaker.refuse(error, call.request_id)
    if answer.status == 429:
        answer.headers.setdefault("Retry-After", "1")
    return answer


async def _send(send: Send, answer: Answer, request_id: str) -> None:
    headers = [(b"x-amzn-requestid", request_id.encode())]
    if answer.status != 204:
        headers.append((b"content-type", answer.content_type.encode()))
        headers.append((b"content-length", str(len(answer.body)).encode()))
    for name, value in answer.headers.items():
        headers.append((name.lower().encode(), _clean(value)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _clean(value: str) -> bytes:
    # A line break in a value would let it write headers of its own.
    text = value if value.isprintable() else "".join(c if c.isprintable() else " " for c in value)
    return text.encode("latin-1", "replace")
