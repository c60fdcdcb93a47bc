"""The door: one ASGI application for every AWS service that is here.

The scope of the signature says which service is meant. A request is claimed by its headers,
proven with its body, understood by the service's own model, run, and answered in the service's
own protocol; what fails on the way is answered as AWS answers it, never as a traceback.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol
from uuid import uuid4

import structlog
from anyio.to_thread import run_sync

from trivet.core.arns import Place, parse_function_ref
from trivet.core.roles import Session, action_of, allows, refusal
from trivet.errors import Forbidden, NotImplementedHere, PlatformError, Throttled, TrivetError

from .canonical import normalized
from .json_target import JsonTarget
from .model import Answer, Model, Request, load, unknown
from .query import Query
from .refusals import Refused, not_serializable
from .rest_json import RestJson
from .router import Found
from .services import Caller, Operation, Services
from .sigv4 import Claim, Verifier, bad_token

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

log = structlog.get_logger()

# What AWS takes as one request, by service: a zip of 50 MB in base64 and the rest of the call.
_BODY_LIMITS_BYTES = {"lambda": 70_167_211}
_BODY_LIMIT_BYTES = 10_485_760

# A function is hostile and holds a genuine key: what it may let us keep at once is bounded, for
# one request and for all of its environments together.
_SESSION_BODY_LIMIT_BYTES = 10_485_760
_SESSION_BODIES_BYTES = 134_217_728

INSIDE = "trivet.inside"
"""Key of a scope's `state`: the function from inside whose environment the request comes."""

# Hashing and parsing this much would hold up every other request of this process.
_BIG_BODY_BYTES = 1_048_576

# An invocation has its own log, and there may be thousands of them in a second.
_UNLOGGED = frozenset({"Invoke", "InvokeAsync", "InvokeWithResponseStream"})

# Not here, and to be told so in words that their clients read: these read no JSON.
_XML_SERVICES = frozenset({"s3", "s3express", "route53", "cloudfront"})


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
    session: Session | None = None
    kept_bytes: int = 0  # of the body, counted against the function that sends it


class Door:
    """`tables` holds the operations of each service, by botocore's name of the service.

    `function_actions` are what functions may do with the credentials they run with.
    """

    def __init__(
        self,
        services: Services,
        verifier: Verifier,
        tables: Mapping[str, Mapping[str, Operation]],
        function_actions: Sequence[str] = (),
    ) -> None:
        self._services = services
        self._function_actions = tuple(function_actions)
        self._kept_bytes: dict[str, int] = {}  # bodies being handled, by the function that sent
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
        finally:
            self._release(call)
        if call.operation not in _UNLOGGED:
            log.info(
                "aws.called",
                service=call.speaker.model.service,
                operation=call.operation,
                by=call.session.function if call.session else "",
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
        elif claim.service in _XML_SERVICES:
            call.speaker = self._strangers["query"]
        call.session = claim.session
        inside = scope.get("state", {}).get(INSIDE)
        if inside is not None and (claim.session is None or claim.session.function != inside):
            raise bad_token()  # a function's own credentials, and nobody else's
        if claim.session is not None:
            self._check_early(call, claim.session, speakers)
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
        if claim.session is not None:
            self._check(call, claim.session, params)
        trace = request.headers.get(b"x-amzn-trace-id", b"").decode("latin-1")
        caller = Caller(claim.access_key, call.request_id, claim.session, trace)
        result = await operation(self._services, params, caller)
        return call.speaker.write(found.operation, result, call.request_id)

    def _check_early(self, call: _Call, session: Session, speakers: Sequence[Speaker]) -> None:
        """Refuse before the body is read what its headers and path already tell of."""
        try:
            found = _found(call, speakers) if speakers else None
        except Refused:
            return  # the body names it, or nobody knows it: told once it is proven
        if found is not None:
            self._check(call, session, found.labels)

    def _check(self, call: _Call, session: Session, params: Mapping[str, Any]) -> None:
        """Raise Forbidden unless functions may do what `call` asks for."""
        action = action_of(call.speaker.model.signing_name, call.operation)
        if not allows(self._function_actions, action):
            place = self._services.place
            resource = _resource(call.speaker.model.signing_name, place, params)
            raise Forbidden(refusal(session.arn(place.account), action, resource))

    def _keep(self, call: _Call, session: Session, size: int) -> None:
        kept = self._kept_bytes.get(session.function, 0) + size
        if kept > _SESSION_BODIES_BYTES:
            raise Throttled("Rate Exceeded.", Reason="FunctionInvocationRateLimitExceeded")
        self._kept_bytes[session.function] = kept
        call.kept_bytes += size

    def _release(self, call: _Call) -> None:
        if call.session is None or not call.kept_bytes:
            return
        left = self._kept_bytes[call.session.function] - call.kept_bytes
        if left:
            self._kept_bytes[call.session.function] = left
        else:
            del self._kept_bytes[call.session.function]

    async def _body(self, call: _Call, claim: Claim, receive: Receive) -> bytes:
        limit = _BODY_LIMITS_BYTES.get(claim.service, _BODY_LIMIT_BYTES)
        if claim.session is not None:
            limit = min(limit, _SESSION_BODY_LIMIT_BYTES)
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
            if claim.session is not None:
                self._keep(call, claim.session, len(part))
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


def _resource(service: str, place: Place, params: Mapping[str, Any]) -> str:
    """The ARN that IAM would name: the function's, where the request says which it means."""
    if service != "lambda":
        return "*"
    named = params.get("FunctionName", params.get("Resource"))
    ref = parse_function_ref(named) if isinstance(named, str) else None
    return "*" if ref is None else place.function_arn(ref.name, ref.qualifier)


def _found(call: _Call, speakers: Sequence[Speaker]) -> Found:
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
    if answer.status in (429, 503):
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
