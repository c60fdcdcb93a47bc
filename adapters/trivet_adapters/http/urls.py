"""Urls: a request to a function's own URL: let in or refused, run, and answered as Lambda does."""

from __future__ import annotations

import logging
from typing import Any

import orjson

from trivet import (
    Event,
    FunctionNotFound,
    FunctionUrl,
    Match,
    Platform,
    PlatformError,
    Presented,
    RequestTooLarge,
    Signer,
    TrivetError,
)
from trivet_adapters.http import cors
from trivet_adapters.http.identities import Identity
from trivet_adapters.http.replies import Header, MalformedReply, Response, read_reply
from trivet_adapters.http.requests import Request, event_2_0

log = logging.getLogger(__name__)

HOST = ".lambda-url."  # part of every host name of a function URL

LARGEST_BODY_BYTES = 6 * 1024 * 1024  # of what a function is given, so of what it is made from

_JSON: Header = (b"content-type", b"application/json")

# The platform names request and trace itself.
_OURS = frozenset({b"x-amzn-requestid", b"x-amzn-trace-id"})


def refusal(status: int, error_type: str, message: str | None) -> Response:
    """A response of the platform's own, in Lambda's words."""
    named = (b"x-amzn-errortype", error_type.encode())
    return Response(status, [_JSON, named], orjson.dumps({"Message": message}))


NOT_THERE = refusal(403, "AccessDeniedException", None)
TOO_LARGE = refusal(
    413,
    "RequestEntityTooLargeException",
    f"Request must be smaller than {LARGEST_BODY_BYTES} bytes for the InvokeFunction operation",
)
UNAVAILABLE = refusal(503, "ServiceUnavailableException", "Service Unavailable")
FAILED = Response(502, [_JSON], b"Internal Server Error")


async def answer(
    platform: Platform, request: Request, match: Match, url: FunctionUrl, presented: Presented
) -> Response:
    """The response, but for `own_headers`."""
    asked = dict(request.headers)
    if url.cors is not None and cors.is_preflight(request.method, asked):
        return Response(200, [_JSON, *cors.preflight_headers(url.cors, asked)], b"")
    try:
        signer = await platform.authorize(url, presented)
        event = Event(
            id=request.identity.invocation_id,
            function=url.function,
            source="url",
            payload=_event_payload(request, match, signer),
            trace_id=request.identity.trace_id,
        )
        reply = await platform.invoke(event)
    except RequestTooLarge:
        return TOO_LARGE
    except FunctionNotFound:
        return NOT_THERE  # it was deleted a moment ago
    except PlatformError:
        return UNAVAILABLE
    except TrivetError as error:
        return _refused(error)
    if reply.function_error is not None:
        return FAILED
    try:
        response = read_reply(reply.payload, match.payload_format)
    except MalformedReply as error:
        log.warning("response.malformed function=%s reason=%s", url.function, error)
        return FAILED
    response.headers[:] = [header for header in response.headers if header[0] not in _OURS]
    return response


def own_headers(url: FunctionUrl, identity: Identity, origin: str | None) -> list[Header]:
    """What the platform adds to every response of a function URL."""
    headers: list[Header] = [
        (b"x-amzn-requestid", identity.invocation_id.encode()),
        (b"x-amzn-trace-id", identity.trace_id.encode("latin-1")),
    ]
    if url.cors is not None:
        headers += cors.response_headers(url.cors, origin)
    return headers


def _refused(error: TrivetError) -> Response:
    response = refusal(error.status, error.error_type, error.message)
    if error.status == 429:
        response.headers.append((b"retry-after", b"1"))
    return response


def _event_payload(request: Request, match: Match, signer: Signer | None) -> bytes:
    """An event of format 2.0, whose context says who signed the request."""
    event = event_2_0(request, match, signer.account if signer else "anonymous")
    context: dict[str, Any] = event["requestContext"]
    context["domainPrefix"] = match.api_id
    context["requestId"] = request.identity.invocation_id
    if signer is not None:
        context["authentication"] = None
        context["authorizer"] = {
            "iam": {
                "accessKey": signer.access_key,
                "accountId": signer.account,
                "callerId": signer.user_id,
                "cognitoIdentity": None,
                "principalOrgId": None,
                "userArn": signer.arn,
                "userId": signer.user_id,
            }
        }
    return orjson.dumps(event)
