"""Invocations: an Event meets a function version, and a Reply comes back."""

from __future__ import annotations

from dataclasses import dataclass

from trivet.core.urls import FunctionUrl


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened outside, as an adapter hands it in."""

    id: str  # becomes the invocation's request id; a UUID
    function: str  # name of the function
    source: str  # which kind of adapter: "http", "invoke", ...
    payload: bytes  # JSON
    trace_id: str = ""
    client_context: bytes = b""  # JSON, or empty
    wants_log_tail: bool = False
    invoked_arn: str = ""  # as the caller named it; empty: the function's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the caller gets. A user's exception is a Reply too: `function_error` says so."""

    request_id: str
    payload: bytes  # JSON
    function_error: str | None = None  # AWS: "Unhandled", "Handled", or None
    executed_version: str = "$LATEST"
    log_tail: bytes = b""  # the last 4 KB, when asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A Route that an HTTP request met."""

    function: str
    payload_format: str  # "1.0" or "2.0"
    route_key: str  # "GET /users/{id}", "ANY /hello-world" or "$default"
    api_id: str
    stage: str = "$default"
    path: str  # what the function sees as the path: begins with "/"
    path_parameters: dict[str, str]
    url: FunctionUrl | None = None  # by which it came, if not by a Route: it must be authorized
