"""The scenario of a crash-point run: a few functions, some thirty events, and how all must end."""

from __future__ import annotations

from dataclasses import dataclass

import msgpack

from trivet.bus import keys
from trivet.core.arns import Place
from trivet.core.destinations import DEFAULT_BUS, bus_arn
from trivet.core.functions import Function, FunctionVersion, function_to_record
from trivet.core.retries import Progress

PLACE = Place("us-east-1", "123456789012")
WAITS_MS = (30, 30)  # before the second attempt and the third
FIRST_BACKOFF_MS = 20

LISTENER = "listener"  # hears of the ends of other functions' events
BUS = bus_arn(PLACE, DEFAULT_BUS)

EVENT_INVOKE: dict[str, dict[str, object]] = {
    "steady": {},
    LISTENER: {},
    "glad-function": {"on_success": PLACE.function_arn(LISTENER)},
    "glad-bus": {"on_success": BUS},
    "sad-function": {"on_failure": PLACE.function_arn(LISTENER), "retries": 0},
    "sad-bus": {"on_failure": BUS, "retries": 1},
    "brief": {"age_s": 0},  # whatever fails there is too old at once
    "keyed": {},
    "shut": {},
}
"""Functions that exist, and what becomes of their asynchronous events."""

SUSPENDED = "shut"  # its reserved concurrency is zero
GONE = "gone"  # was deleted between acceptance and attempt
FUNCTIONS = (*EVENT_INVOKE, GONE)


@dataclass(frozen=True, slots=True)
class Sent:
    """An event of the scenario."""

    function: str
    does: str  # what becomes of an attempt at it, see `ends`
    state: str  # how it must end
    once: str = ""


EVENTS: tuple[Sent, ...] = (
    *(Sent("steady", "ok", "success") for _ in range(9)),
    *(Sent("steady", "slow", "success") for _ in range(2)),
    Sent("steady", "fail", "dead"),
    Sent("steady", "fail once", "success"),
    Sent("steady", "crash once", "success"),
    Sent("steady", "crash", "dead"),
    Sent("steady", "fault once", "success"),
    Sent("glad-function", "ok", "success"),
    Sent("glad-function", "fail once", "success"),
    Sent("glad-bus", "ok", "success"),
    Sent("glad-bus", "slow", "success"),
    Sent("sad-function", "fail", "destination"),
    Sent("sad-function", "ok", "success"),
    Sent("sad-bus", "fail", "destination"),
    Sent("sad-bus", "fail once", "success"),
    Sent("brief", "fail", "expired"),
    Sent("keyed", "ok", "success", once="slot 1"),
    Sent("keyed", "ok", "success", once="slot 1"),
    Sent("keyed", "fail once", "success", once="slot 2"),
    Sent(SUSPENDED, "ok", "dead"),
    Sent(GONE, "ok", "dropped"),
)

JUNK = (b"", b"junk", b"\xc1")
"""Entries that no publisher of ours wrote; they lie on the stream of `steady` from the start."""


def ends(does: str, progress: Progress) -> str:
    """How an attempt ends at an event that has been through `progress`: "ok", "error", "crash", or
    "fault" when the platform could not run it."""
    tried = bool(progress.attempts or progress.backoffs)
    match does.split():
        case ["ok"] | ["slow"]:
            return "ok"
        case [_, "once"] if tried:
            return "ok"
        case ["crash", *_]:
            return "crash"
        case ["fault", *_]:
            return "fault"
    return "error"


def records() -> dict[str, bytes]:
    """Key to value of every function's record."""
    return {
        keys.function_record(name): msgpack.packb(
            function_to_record(
                Function(
                    latest=FunctionVersion(
                        function=name, runtime="python3.11", handler="app.handler", code_sha256=""
                    ),
                    code_bytes=0,
                    revision_id="1",
                    last_modified_ms=0,
                    event_invoke=event_invoke,
                    reserved_concurrency=0 if name == SUSPENDED else None,
                )
            )
        )
        for name, event_invoke in EVENT_INVOKE.items()
    }
