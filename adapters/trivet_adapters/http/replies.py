"""Replies: what a function returned, read as the HTTP response that an AWS HTTP API makes of it."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

Header = tuple[bytes, bytes]

_JSON: Header = (b"content-type", b"application/json")
_PLAIN: Header = (b"content-type", b"text/plain;charset=UTF-8")

# Statuses that never have a body; HTTP forbids 204 to announce one either.
BODILESS = frozenset({204, 304})

# The server speaks for these itself: they belong to one connection, or frame the body.
_OURS = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "apigw-requestid",
    }
)

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_NOT_IN_VALUES = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class MalformedReply(Exception):
    """The function returned a response that cannot be sent. The client learns only a 500."""


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response, without what the server adds to every one."""

    status: int
    headers: list[Header]
    body: bytes


def refusal(status: int, message: str, *extra: Header) -> Response:
    """A response of the gateway's own, in API Gateway's words."""
    return Response(status, [_JSON, *extra], orjson.dumps({"message": message}))


def read_reply(payload: bytes, payload_format: str) -> Response:
    """The response that `payload` stands for. Raises MalformedReply."""
    try:
        result = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise MalformedReply("the result is not JSON") from error
    is_2_0 = payload_format != "1.0"
    if not isinstance(result, dict) or "statusCode" not in result:
        if is_2_0:
            return _inferred(result, payload)
        raise MalformedReply("the result has no statusCode")
    status = _status(result["statusCode"])
    body = _body(result.get("body"), result.get("isBase64Encoded"))
    headers = list(_headers(_mapping(result, "headers")))
    if is_2_0:
        headers.extend(_cookies(result.get("cookies")))
    elif result.get("multiValueHeaders"):
        headers = _merged(headers, _mapping(result, "multiValueHeaders"))
    if body and not any(name == b"content-type" for name, _ in headers):
        headers.append(_PLAIN)
    return Response(status, headers, body)


def _inferred(result: Any, payload: bytes) -> Response:
    """Format 2.0 takes a result without a statusCode for the body of a success."""
    return Response(200, [_JSON], result.encode() if isinstance(result, str) else payload)


def _status(value: Any) -> int:
    if type(value) is str and len(value) == 3 and value.isascii() and value.isdigit():
        value = int(value)
    # 1xx announce a response that is still to come: as the only one they would desync the client.
    if type(value) is not int or not 200 <= value <= 599:
        raise MalformedReply("statusCode is not an HTTP status")
    return value


def _body(value: Any, is_base64: Any) -> bytes:
    if value is None:
        return b""
    if type(value) is not str:
        raise MalformedReply("body is not a string")
    if not is_base64:
        return value.encode()
    if is_base64 is not True:
        raise MalformedReply("isBase64Encoded is not a boolean")
    try:
        return binascii.a2b_base64(value.encode(), strict_mode=True)
    except binascii.Error as error:
        raise MalformedReply("body is not base64") from error


def _mapping(result: dict[str, Any], member: str) -> dict[str, Any]:
    value = result.get(member)
    if value is None:
        return {}
    if type(value) is not dict:
        raise MalformedReply(f"{member} is not an object")
    return value


def _headers(given: dict[str, Any]) -> Iterator[Header]:
    for name, value in given.items():
        known = header_name(name)
        if known and value is not None:
            yield known, _header_value(value)


def _merged(single: list[Header], given: dict[str, Any]) -> list[Header]:
    """Both kinds of headers; of a name and value that stand in both, only one."""
    several: list[Header] = []
    for name, values in given.items():
        if type(values) is not list:
            raise MalformedReply("a member of multiValueHeaders is not a list")
        known = header_name(name)
        if known:
            several.extend((known, _header_value(value)) for value in values)
    repeated = set(several)
    return [header for header in single if header not in repeated] + several


def _cookies(given: Any) -> list[Header]:
    if given is None:
        return []
    if type(given) is not list or not all(type(cookie) is str for cookie in given):
        raise MalformedReply("cookies is not a list of strings")
    return [(b"set-cookie", _header_value(cookie)) for cookie in given]


@lru_cache(maxsize=512)
def header_name(name: str) -> bytes | None:
    """`name` for the wire, or None if that header is the server's to send."""
    if len(name) > 256 or not _TOKEN.match(name):
        raise MalformedReply("a header has an impossible name")
    lower = name.lower()
    return None if lower in _OURS else lower.encode("ascii")


def _header_value(value: Any) -> bytes:
    if type(value) is str:
        text = value.strip(" \t")
    elif type(value) is bool:
        text = "true" if value else "false"
    elif type(value) in (int, float):
        text = str(value)
    else:
        raise MalformedReply("a header's value is not a string, number or boolean")
    if not (text.isascii() and text.isprintable()) and _NOT_IN_VALUES.search(text):
        raise MalformedReply("a header's value has control characters")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise MalformedReply("a header's value is not Latin-1") from error
