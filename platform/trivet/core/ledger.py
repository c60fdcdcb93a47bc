"""Ledger: what is kept of an asynchronous event, and how it may have ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trivet.core.retries import (
    EVENT_AGE_EXCEEDED,
    FUNCTION_DELETED,
    MOST_CRASHES,
    POISON,
    RECURSIVE,
    RETRIES_EXHAUSTED,
    STATES,
    SUCCESS,
    ZERO_CONCURRENCY,
    Progress,
    State,
)

Standing = State | Literal["waiting", "delayed"]
"""How an event ended; or it is on its stream, to be run or being run; or it waits for its next
attempt."""

WAITING: Literal["waiting"] = "waiting"
DELAYED: Literal["delayed"] = "delayed"
STANDINGS: tuple[Standing, ...] = (*STATES, WAITING, DELAYED)

MOST_ATTEMPTS = 3  # whatever a function asks for: AWS allows two retries

_CRASHES = ("crash", "oom")
_FAILURES = frozenset({RETRIES_EXHAUSTED, ZERO_CONCURRENCY, POISON, RECURSIVE})
_CONDITIONS: Mapping[str, frozenset[str]] = {
    "success": frozenset({SUCCESS}),
    "destination": frozenset({*_FAILURES, EVENT_AGE_EXCEEDED}),
    "dead": _FAILURES,
    "expired": frozenset({EVENT_AGE_EXCEEDED}),
    "dropped": frozenset({FUNCTION_DELETED}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An event as it is kept, wherever that is."""

    function: str
    request_id: str
    standing: Standing
    progress: Progress
    condition: str = ""  # why it ended
    entry_id: str = ""  # of the ledger or the stream; a delayed event has none
    due_ms: int | None = None  # of a delayed event: since the Unix epoch
    target: str = ""  # ARN that was to be told, where that was written down
    packed: bytes = b""  # the event; empty if it was not kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What is counted of a function, all of it at one moment."""

    totals: Mapping[str, int] = field(default_factory=dict)  # counters that only grow, by name
    on_stream: int = 0
    parked: int = 0  # wait for their next attempt
    delayed: int = 0  # of those, how many have a time when they are due
    kept: int = 0  # entries of the ledger
    outbox: int = 0

    def total(self, name: str) -> int:
        return self.totals.get(name, 0)

    @property
    def ended(self) -> int:
        return sum(self.total(state) for state in STATES)

    @property
    def in_flight(self) -> int:
        return self.on_stream + self.parked


def illegal(record: Record) -> str:
    """Why an event cannot have ended as its entry says; empty if it can."""
    attempts, condition = record.progress.attempts, record.condition
    if condition not in _CONDITIONS.get(record.standing, ()):
        return f"ended as {record.standing!r} for {condition!r}"
    last = attempts[-1].status if attempts else ""
    if (condition == SUCCESS) != (last == "ok"):
        return f"ended for {condition} after {last or 'no attempt'}"
    if condition == RETRIES_EXHAUSTED and not attempts:
        return "exhausted its retries without an attempt"
    if condition == POISON and _crashes(record.progress) < MOST_CRASHES:
        return f"was quarantined after {_crashes(record.progress)} crashes"
    return ""


def undeclared(progress: Progress) -> str:
    """Which of its attempts no policy asked for; empty if all are accounted for."""
    statuses = [attempt.status for attempt in progress.attempts]
    if len(statuses) > MOST_ATTEMPTS:
        return f"was attempted {len(statuses)} times"
    if _crashes(progress) > MOST_CRASHES:
        return f"crashed {_crashes(progress)} times"
    if "ok" in statuses[:-1]:
        return "was run again after it had succeeded"
    return ""


def _crashes(progress: Progress) -> int:
    return sum(attempt.status in _CRASHES for attempt in progress.attempts)
