"""Faults: what went wrong in a function, in the words and the form of AWS's Python runtime."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from typing import Any

from trivet_worker.wire import MAX_RESPONSE_BYTES

Payload = dict[str, Any]

MARSHAL_ERROR = "Runtime.MarshalError"
UNMARSHAL_ERROR = "Runtime.UnmarshalError"
IMPORT_MODULE_ERROR = "Runtime.ImportModuleError"
USER_CODE_SYNTAX_ERROR = "Runtime.UserCodeSyntaxError"
HANDLER_NOT_FOUND = "Runtime.HandlerNotFound"
MALFORMED_HANDLER_NAME = "Runtime.MalformedHandlerName"
BUILT_IN_MODULE_CONFLICT = "Runtime.BuiltInModuleConflict"
CONTEXT_UNMARSHAL_ERROR = "Runtime.LambdaContextUnmarshalError"

RESPONSE_TOO_LARGE: Payload = {
    "errorMessage": "Response payload size exceeded maximum allowed payload size "
    f"({MAX_RESPONSE_BYTES} bytes).",
    "errorType": "Function.ResponseSizeTooLarge",
}

# Frames of this package stand above the user's in every traceback. AWS does not show its own.
_OWN_FOLDER = __file__.rpartition("/")[0] + "/"

_NO_BREAK_SPACE = "\u00a0"


class Fault(Exception):
    """The function cannot be loaded or called, or its result cannot be sent."""

    def __init__(self, kind: str, message: str, trace: list[str] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.trace = trace or []

    def payload(self, request_id: str = "") -> Payload:
        return _payload(self.message, self.kind, request_id, self.trace)


def payload_of(error: BaseException, request_id: str = "") -> Payload:
    """What the caller gets to know of an exception that user code raised."""
    frames = traceback.extract_tb(error.__traceback__)
    while frames and frames[0].filename.startswith(_OWN_FOLDER):
        del frames[0]
    # Plain tuples: AWS's traces have no carets below the source line.
    trace = traceback.format_list([(f.filename, f.lineno or 0, f.name, f.line) for f in frames])
    try:
        message = str(error)
    except Exception:
        message = f"<unprintable {type(error).__name__} object>"
    return _payload(message, type(error).__name__, request_id, trace)


def log_line(payload: Payload) -> str:
    """The line that AWS's runtime logs about a fault: carriage returns hold it together."""
    description = "[ERROR]"
    if payload["errorType"]:
        description += f" {payload['errorType']}"
    if payload["errorMessage"]:
        description += f"{':' if payload['errorType'] else ''} {payload['errorMessage']}"
    lines = [description]
    if "stackTrace" in payload:
        lines.append("Traceback (most recent call last):")
        for entry in payload["stackTrace"]:
            for line in entry.splitlines():
                text = line.lstrip(" ")
                lines.append(_NO_BREAK_SPACE * (len(line) - len(text)) + text)
    return "\r".join(lines) + "\n"


def to_json(payload: Payload) -> bytes:
    # AWS's runtimes write characters as they are from Python 3.12 on.
    text = json.dumps(payload, ensure_ascii=sys.version_info < (3, 12))
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair cannot be sent as it is
        return json.dumps(payload).encode()


def report(payload: Payload) -> None:
    """Write a fault to the function's log, as far as the function left one open."""
    text = log_line(payload).encode("utf-8", "backslashreplace").decode()
    with contextlib.suppress(Exception):
        sys.stdout.write(text)


def _payload(message: str, kind: str, request_id: str, trace: list[str]) -> Payload:
    return {
        "errorMessage": message,
        "errorType": kind,
        "requestId": request_id,
        "stackTrace": trace,
    }
