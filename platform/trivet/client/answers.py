"""Answers: what comes back from the platform, as values and as errors of ours."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from trivet.client.places import command
from trivet.errors import (
    CallerError,
    Conflict,
    FunctionNotFound,
    InvalidRequestContent,
    NotImplementedHere,
    PlatformError,
    PreconditionFailed,
    RequestTooLarge,
    Throttled,
    TrivetError,
    Unavailable,
    ValidationFailed,
)

_KINDS: dict[str, type[TrivetError]] = {
    **{
        kind.error_type: kind
        for kind in (
            CallerError,
            Conflict,
            FunctionNotFound,
            InvalidRequestContent,
            NotImplementedHere,
            PlatformError,
            PreconditionFailed,
            RequestTooLarge,
            Throttled,
            Unavailable,
            ValidationFailed,
        )
    },
    "RequestEntityTooLargeException": RequestTooLarge,
}

_REPORT = re.compile(
    r"^REPORT RequestId: (\S+)\tDuration: ([\d.]+) ms\tBilled Duration: (\d+) ms\t(.*)$",
    re.MULTILINE,
)


class NoAnswer(Unavailable, TimeoutError):
    """The platform did not answer within the timeout. What was asked for may still happen."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response. Names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a function answered."""

    payload: Any  # what the handler returned, or AWS's description of its error
    function_error: str | None  # "Unhandled", when the handler raised, timed out or crashed
    logs: str = field(repr=False)  # the last 4 KB that this invocation wrote
    duration_ms: float  # of the handler
    billed_ms: int  # initialisation included, rounded up
    request_id: str
    cold: bool  # a new environment was started for it


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of a function's log."""

    at_ms: int  # since the Unix epoch
    text: str
    stream: str  # the environment that wrote it


def result_of(answer: Answer) -> Result:
    request_id = answer.headers.get("x-amzn-requestid", "")
    tail = base64.b64decode(answer.headers.get("x-amz-log-result", ""))
    logs = tail.decode("utf-8", "replace")
    duration_ms, billed_ms, is_cold = 0.0, 0, False
    # The last one: a handler may write what looks like a report, but never after the platform's.
    for told, duration, billed, rest in _REPORT.findall(logs):
        if told == request_id:
            duration_ms, billed_ms = float(duration), int(billed)
            is_cold = "Init Duration: " in rest
    return Result(
        payload=json.loads(answer.body) if answer.body else None,
        function_error=answer.headers.get("x-amz-function-error"),
        logs=logs,
        duration_ms=duration_ms,
        billed_ms=billed_ms,
        request_id=request_id,
        cold=is_cold,
    )


def ids_of(results: Iterable[dict[str, Any]]) -> tuple[list[str], TrivetError | None]:
    """Ids of published events, empty for those that were dropped or refused; the first refusal."""
    ids: list[str] = []
    refusal: TrivetError | None = None
    for result in results:
        kind = result.get("ErrorCode", "")
        if kind and refusal is None:
            refusal = _error(kind, 0, result.get("ErrorMessage", ""), {})
        is_new = not kind and not result.get("Duplicate", False)
        ids.append(str(result["Id"]) if is_new else "")
    return ids, refusal


def checked(answer: Answer) -> Answer:
    """The answer, unless it is an error: then that is raised."""
    if answer.status < 400:
        return answer
    try:
        members = json.loads(answer.body)
    except ValueError:
        members = {}
    if not isinstance(members, dict):
        members = {}
    kind = answer.headers.get("x-amzn-errortype") or str(members.get("__type", ""))
    # Some services write a namespace in front of the type, or a link behind it.
    kind = kind.rpartition("#")[2].partition(":")[0]
    told = [members.pop(name, "") for name in ("message", "Message")]
    message = next((str(text) for text in told if text), f"HTTP {answer.status}")
    raise _error(kind, answer.status, message, members)


def _error(kind: str, status: int, message: str, members: dict[str, object]) -> TrivetError:
    fallback = PlatformError if status >= 500 else CallerError
    found = _KINDS.get(kind, fallback)
    hint = ""
    if status == 403:
        hint = f'eval "$({command()} env)"'  # another platform's key, or that of an earlier one
    error = found(message, hint=hint)
    error.members.update(members)
    if kind:
        error.error_type = kind
    if status:
        error.status = status
    return error
