"""Cors: what browsers are told of a function URL, by the platform and not by the function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trivet import Cors
from trivet_adapters.http.replies import Header

ANY = "*"


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a browser asks what it may send, before it does."""
    return method == "OPTIONS" and "origin" in headers and _ASKED_METHOD in headers


def response_headers(cors: Cors, origin: str | None) -> list[Header]:
    """For every response to a page of `origin`. None for an origin that is not let in."""
    allowed = _allowed_origin(cors, origin)
    if allowed is None:
        return []
    headers = [(b"access-control-allow-origin", allowed.encode("latin-1"))]
    if allowed != ANY:
        headers.append((b"vary", b"Origin"))
    if cors.allow_credentials:
        headers.append((b"access-control-allow-credentials", b"true"))
    if cors.expose_headers:
        headers.append((b"access-control-expose-headers", _listed(cors.expose_headers)))
    return headers


def preflight_headers(cors: Cors, asked: Mapping[str, str]) -> list[Header]:
    """What a preflight is told beyond that: methods, headers, and for how long it holds."""
    if _allowed_origin(cors, asked.get("origin")) is None:
        return []
    headers: list[Header] = []
    for name, values, wanted in (
        (b"access-control-allow-methods", cors.allow_methods, asked.get(_ASKED_METHOD)),
        (b"access-control-allow-headers", cors.allow_headers, asked.get(_ASKED_HEADERS)),
    ):
        if values and ANY in values and cors.allow_credentials and wanted:
            # With credentials browsers take the star for a name, not for everything.
            headers.append((name, wanted.encode("latin-1")))
        elif values:
            headers.append((name, _listed(values)))
    if cors.max_age_s is not None:
        headers.append((b"access-control-max-age", b"%d" % cors.max_age_s))
    return headers


_ASKED_METHOD = "access-control-request-method"
_ASKED_HEADERS = "access-control-request-headers"


def _allowed_origin(cors: Cors, origin: str | None) -> str | None:
    """The origin as the answer names it. With the star it is never named, so that a browser does
    not send anybody's credentials along to a page that nobody thought of."""
    if origin is None or not cors.allow_origins:
        return None
    if origin in cors.allow_origins:
        return origin
    return ANY if ANY in cors.allow_origins else None


def _listed(values: Sequence[str]) -> bytes:
    return ",".join(values).encode("latin-1", "replace")
