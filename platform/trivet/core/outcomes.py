"""Outcomes: what AWS answers when an environment did not, and the lines it logs.

Payload texts as recorded from AWS in November 2025.
"""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, replace
from typing import Literal

from trivet.core.retries import AttemptStatus

MOST_ERROR_TYPE = 256

_SIGNALS = {
    signal.SIGSEGV: "segmentation fault",
    signal.SIGABRT: "aborted",
    signal.SIGKILL: "killed",
    signal.SIGBUS: "bus error",
    signal.SIGFPE: "floating point exception",
    signal.SIGILL: "illegal instruction",
    signal.SIGTERM: "terminated",
    signal.SIGTRAP: "trace/breakpoint trap",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended. `status` and `error_type` go to the REPORT line."""

    payload: bytes
    function_error: str | None = None
    status: Literal["", "timeout", "error"] = ""
    error_type: str = ""
    log_line: str = ""  # what the platform itself writes between the handler's lines and END
    ended: AttemptStatus = "ok"  # for the ledger, which tells deaths apart


def timed_out(request_id: str, timeout_ms: int, at: str) -> Outcome:
    """`at`: the time as an ISO string, for the log line."""
    text = f"Task timed out after {timeout_ms / 1000:.2f} seconds"
    return Outcome(
        payload=_error("Sandbox.Timedout", f"RequestId: {request_id} Error: {text}"),
        function_error="Unhandled",
        status="timeout",
        log_line=f"{at} {request_id} {text}",
        ended="timeout",
    )


def exited(request_id: str, status: int | None) -> Outcome:
    """`status` as a zygote reports it: exit status, or minus the signal; None: nobody saw it."""
    text = f"RequestId: {request_id} Error: {_reason(status)}"
    return Outcome(
        payload=_error("Runtime.ExitError", text),
        function_error="Unhandled",
        status="error",
        error_type="Runtime.ExitError",
        log_line=text,
        ended="crash",
    )


def out_of_memory(request_id: str) -> Outcome:
    """It wanted more memory than its function has: the caller is told of a kill, REPORT why."""
    killed = exited(request_id, -signal.SIGKILL)
    return replace(killed, error_type="Runtime.OutOfMemory", ended="oom")


def _reason(status: int | None) -> str:
    if status is None or status == 0:
        return "Runtime exited without providing a reason"
    if status < 0:
        try:
            name = _SIGNALS.get(signal.Signals(-status), f"signal {-status}")
        except ValueError:
            name = f"signal {-status}"
        return f"Runtime exited with error: signal: {name}"
    return f"Runtime exited with error: exit status {status}"


def raised(payload: bytes) -> Outcome:
    """The runtime's own report of an exception, as it came from inside: JSON, or made so."""
    try:
        # The user's own text, which goes into a line of the log: it must stay one, and short.
        error_type = _one_line(str(json.loads(payload)["errorType"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        error_type = "Function.Unknown"
        payload = _error(error_type, "The function's error could not be read.")
    return Outcome(
        payload=payload,
        function_error="Unhandled",
        status="error",
        error_type=error_type,
        ended="error",
    )


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:MOST_ERROR_TYPE])


def broke_protocol(request_id: str) -> Outcome:
    """The environment wrote nonsense on its channel, as a handler can that finds it."""
    return exited(request_id, None)


def returned(payload: bytes) -> Outcome:
    return Outcome(payload=payload)


def _error(error_type: str, message: str) -> bytes:
    body = {"errorType": error_type, "errorMessage": message}
    return json.dumps(body, separators=(",", ":")).encode()
