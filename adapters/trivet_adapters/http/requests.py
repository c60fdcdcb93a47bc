"""Requests: what a client sent, and the event that an AWS HTTP API would make of it."""

from __future__ import annotations

import time
from binascii import b2a_base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_plus

import orjson

from trivet import Match
from trivet_adapters.http.identities import Identity

# These concern one connection, or are rewritten below; the function never sees the client's.
_REPLACED = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-amzn-trace-id",
        "x-forwarded-for",
        "x-forwarded-port",
        "x-forwarded-proto",
    }
)

# What an HTTP API hands over as text; everything else, forms included, comes as base64.
_TEXT_TYPES = frozenset({"application/json", "application/xml", "application/javascript"})

# Format 1.0 spells these names so and leaves others in lower case. AWS capitalises Content-Type
# as well; handlers look for it in lower case, as in format 2.0, so that one stays as it is.
_NAMES_1_0 = {
    "content-length": "Content-Length",
    "host": "Host",
    "user-agent": "User-Agent",
    "x-amzn-trace-id": "X-Amzn-Trace-Id",
    "x-forwarded-for": "X-Forwarded-For",
    "x-forwarded-port": "X-Forwarded-Port",
    "x-forwarded-proto": "X-Forwarded-Proto",
}

# Members of format 1.0 that only an authorizer could fill.
_NOBODY: dict[str, None] = dict.fromkeys(
    (
        "accessKey",
        "accountId",
        "caller",
        "cognitoAmr",
        "cognitoAuthenticationProvider",
        "cognitoAuthenticationType",
        "cognitoIdentityId",
        "cognitoIdentityPoolId",
        "principalOrgId",
    )
)

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An HTTP request that was read to its end."""

    method: str
    protocol: str  # "HTTP/1.1"
    scheme: str
    host: str  # as sent, port included
    port: int | None  # of the listener that took it
    source_ip: str
    query: str  # as sent, without "?"
    headers: list[tuple[str, str]]  # names in lower case, in the order sent
    body: bytes
    received_ms: int  # since the Unix epoch
    identity: Identity

    @property
    def domain(self) -> str:
        return domain_of(self.host)


def domain_of(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0][1:]
    return host.partition(":")[0]


def event_payload(request: Request, match: Match, account: str) -> bytes:
    """The event for the function, in the payload format that its Route asks for."""
    if match.payload_format == "1.0":
        return orjson.dumps(_event_1_0(request, match, account))
    return orjson.dumps(event_2_0(request, match, account))


def event_2_0(request: Request, match: Match, account: str) -> dict[str, Any]:
    """The event of format 2.0, as members of JSON."""
    headers: dict[str, str] = {}
    cookies: list[str] = []
    for name, value in _headers_shown(request):
        if name == "cookie":
            cookies += [cookie for cookie in map(str.strip, value.split(";")) if cookie]
        elif name in headers:
            headers[name] = f"{headers[name]},{value}"
        else:
            headers[name] = value
    domain = request.domain
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": match.route_key,
        "rawPath": match.path,
        "rawQueryString": request.query,
    }
    if cookies:
        event["cookies"] = cookies
    event["headers"] = headers
    if request.query:
        event["queryStringParameters"] = {
            name: ",".join(values) for name, values in _parameters(request.query).items()
        }
    event["requestContext"] = {
        "accountId": account,
        "apiId": match.api_id,
        "domainName": domain,
        "domainPrefix": domain.partition(".")[0],
        "http": {
            "method": request.method,
            "path": match.path,
            "protocol": request.protocol,
            "sourceIp": request.source_ip,
            "userAgent": headers.get("user-agent", ""),
        },
        "requestId": request.identity.request_id,
        "routeKey": match.route_key,
        "stage": match.stage,
        "time": _common_log_time(request.received_ms // 1000),
        "timeEpoch": request.received_ms,
    }
    if match.path_parameters:
        event["pathParameters"] = match.path_parameters
    body, is_base64 = _body_shown(request.body, headers.get("content-type", ""))
    if body is not None:
        event["body"] = body
    event["isBase64Encoded"] = is_base64
    return event


def _event_1_0(request: Request, match: Match, account: str) -> dict[str, Any]:
    headers: dict[str, list[str]] = {}
    for name, value in _headers_shown(request):
        headers.setdefault(_NAMES_1_0.get(name, name), []).append(value)
    parameters = _parameters(request.query) if request.query else None
    content_type = headers.get("content-type")
    body, is_base64 = _body_shown(request.body, content_type[-1] if content_type else "")
    resource = match.route_key.rpartition(" ")[2]
    return {
        "version": "1.0",
        "resource": resource,
        "path": match.path,
        "httpMethod": request.method,
        "headers": _last_values(headers),
        "multiValueHeaders": headers,
        "queryStringParameters": _last_values(parameters) if parameters else None,
        "multiValueQueryStringParameters": parameters,
        "requestContext": _context_1_0(request, match, account, resource, headers),
        "pathParameters": match.path_parameters or None,
        "stageVariables": None,
        "body": body,
        "isBase64Encoded": is_base64,
    }


def _context_1_0(
    request: Request,
    match: Match,
    account: str,
    resource: str,
    headers: Mapping[str, list[str]],
) -> dict[str, Any]:
    domain = request.domain
    user_agent = headers.get("User-Agent")
    return {
        "accountId": account,
        "apiId": match.api_id,
        "domainName": domain,
        "domainPrefix": domain.partition(".")[0],
        "extendedRequestId": request.identity.request_id,
        "httpMethod": request.method,
        "identity": {
            **_NOBODY,
            "sourceIp": request.source_ip,
            "user": None,
            "userAgent": user_agent[-1] if user_agent else "",
            "userArn": None,
        },
        "path": match.path,
        "protocol": request.protocol,
        "requestId": request.identity.request_id,
        "requestTime": _common_log_time(request.received_ms // 1000),
        "requestTimeEpoch": request.received_ms,
        "resourceId": match.route_key,
        "resourcePath": resource,
        "stage": match.stage,
    }


def _headers_shown(request: Request) -> list[tuple[str, str]]:
    """The client's headers, and those that API Gateway sets, its own word over the client's."""
    shown: list[tuple[str, str]] = []
    forwarded = request.source_ip
    for pair in request.headers:
        name = pair[0]
        if name not in _REPLACED:
            shown.append(pair)
        elif name == "x-forwarded-for" and pair[1]:
            forwarded = f"{pair[1]}, {forwarded}"
    shown.append(("content-length", str(len(request.body))))
    shown.append(("x-amzn-trace-id", request.identity.trace_id))
    shown.append(("x-forwarded-for", forwarded))
    shown.append(("x-forwarded-port", str(request.port or "")))
    shown.append(("x-forwarded-proto", request.scheme))
    return shown


def _body_shown(body: bytes, content_type: str) -> tuple[str | None, bool]:
    """The body as a member of JSON, and whether it had to be encoded for that."""
    if not body:
        return None, False
    kind = content_type.partition(";")[0].strip().lower()
    if kind in _TEXT_TYPES or kind.startswith("text/"):
        try:
            return body.decode(), False
        except UnicodeDecodeError:
            pass  # it is not the text that its type claims
    return b2a_base64(body, newline=False).decode(), True


def _parameters(query: str) -> dict[str, list[str]]:
    """Decoded names and values, in order; a name without "=" has the empty value."""
    parameters: dict[str, list[str]] = {}
    for part in query.split("&"):
        if part:
            name, _, value = part.partition("=")
            if "%" in part or "+" in part:
                name, value = unquote_plus(name), unquote_plus(value)
            parameters.setdefault(name, []).append(value)
    return parameters


def _last_values(values: Mapping[str, list[str]]) -> dict[str, str]:
    return {name: several[-1] for name, several in values.items()}


@lru_cache(maxsize=2)
def _common_log_time(second: int) -> str:
    """The time as access logs write it. Cached: all requests of a second share it."""
    t = time.gmtime(second)
    clock = f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
    return f"{t.tm_mday:02}/{_MONTHS[t.tm_mon - 1]}/{t.tm_year}:{clock} +0000"
