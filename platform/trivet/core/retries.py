"""Retries: what becomes of an asynchronous event when an attempt at it has ended.

Pure: an event's Progress, its function's RetryPolicy and the time give a Verdict. The intervals
and conditions are AWS's; a function's error counts as an attempt, a fault of the platform does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trivet.core.functions import Function
from trivet.core.lineage import MOST_PASSES, TERMINATE

AttemptStatus = Literal["ok", "error", "timeout", "oom", "crash"]
State = Literal["success", "destination", "dead", "expired", "dropped"]

STATES: tuple[State, ...] = ("success", "destination", "dead", "expired", "dropped")
"""How an event may end: it succeeded; it failed and its on-failure destination is told; it failed
and is kept as a dead letter; it grew too old; its function was deleted."""

SUCCESS = "Success"
RETRIES_EXHAUSTED = "RetriesExhausted"
EVENT_AGE_EXCEEDED = "EventAgeExceeded"
ZERO_CONCURRENCY = "ZeroReservedConcurrency"
POISON = "PoisonPill"  # ours: AWS is told RetriesExhausted
RECURSIVE = "RecursiveInvocation"  # ours: AWS is told RetriesExhausted
FUNCTION_DELETED = "FunctionDeleted"  # ours: nobody is left to be told

DEFAULT_RETRIES = 2
DEFAULT_AGE_S = 21_600
MOST_CRASHES = 3  # of environments: whatever may be left of its tries, it gets no other
_CRASHES = ("crash", "oom")

# Faults of the platform are tried again after one second, then twice as long each time.
FIRST_BACKOFF_MS = 1_000
LONGEST_BACKOFF_MS = 300_000


@dataclass(frozen=True, slots=True)
class Attempt:
    """One that ran to some end."""

    ended_ms: int  # since the Unix epoch
    status: AttemptStatus
    error_type: str
    version: str
    billed_ms: int
    memory_mb: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What an accepted event has been through. It travels with the event."""

    origin: str  # id of its first entry on the stream, which no other event of its function has
    attempts: tuple[Attempt, ...] = ()
    backoffs: int = 0  # faults of the platform since the last attempt
    aborted: int = 0  # deliveries that were never heard of again: their supervisor died

    @property
    def accepted_ms(self) -> int:
        """By the durable server's clock."""
        return int(self.origin.partition("-")[0])

    def with_attempt(self, attempt: Attempt) -> Progress:
        return Progress(self.origin, (*self.attempts, attempt), 0, self.aborted)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """What a function's configuration asks for."""

    most_attempts: int = 1 + DEFAULT_RETRIES
    most_age_ms: int = DEFAULT_AGE_S * 1_000
    on_success: str = ""  # ARN
    on_failure: str = ""
    is_suspended: bool = False  # its reserved concurrency is zero
    stops_loops: bool = True


@dataclass(frozen=True, slots=True)
class Again:
    """Another attempt, not before `due_ms` (since the Unix epoch)."""

    due_ms: int


@dataclass(frozen=True, slots=True)
class Over:
    """The event has ended. `target` is the ARN to be told, if any."""

    state: State
    condition: str
    target: str = ""


Verdict = Again | Over


def policy_of(function: Function) -> RetryPolicy:
    """What the function's record asks for."""
    event_invoke = function.event_invoke
    retries, age_s = event_invoke.get("retries"), event_invoke.get("age_s")
    return RetryPolicy(
        most_attempts=1 + (DEFAULT_RETRIES if retries is None else retries),
        most_age_ms=1_000 * (DEFAULT_AGE_S if age_s is None else age_s),
        on_success=event_invoke.get("on_success") or "",
        on_failure=event_invoke.get("on_failure") or "",
        is_suspended=function.reserved_concurrency == 0,
        stops_loops=function.recursive_loop == TERMINATE,
    )


def before_attempt(
    progress: Progress, policy: RetryPolicy, passes: int, now_ms: int
) -> Over | None:
    """Why an event is not to be run any more, or None. `passes`: how often it came to this
    function, as its lineage tells."""
    if policy.is_suspended:
        return _failed(policy, "dead", ZERO_CONCURRENCY)
    if passes >= MOST_PASSES and policy.stops_loops:
        return _failed(policy, "dead", RECURSIVE)
    if now_ms - progress.accepted_ms > policy.most_age_ms:
        return _failed(policy, "expired", EVENT_AGE_EXCEEDED)
    return None


def after_attempt(
    progress: Progress, policy: RetryPolicy, waits_ms: Sequence[int], now_ms: int
) -> Verdict:
    """`progress` includes the attempt that ended. `waits_ms`: before the second attempt, the third,
    and so on; the last one stands for all that follow."""
    attempts = progress.attempts
    if attempts[-1].status == "ok":
        return Over("success", SUCCESS, policy.on_success)
    if sum(attempt.status in _CRASHES for attempt in attempts) >= MOST_CRASHES:
        return _failed(policy, "dead", POISON)
    if len(attempts) >= policy.most_attempts:
        return _failed(policy, "dead", RETRIES_EXHAUSTED)
    due_ms = now_ms + waits_ms[min(len(attempts), len(waits_ms)) - 1]
    if due_ms - progress.accepted_ms > policy.most_age_ms:
        return _failed(policy, "expired", EVENT_AGE_EXCEEDED)
    return Again(due_ms)


def after_fault(progress: Progress, now_ms: int) -> Again:
    """The platform could not run it. Its age is looked at before the next attempt."""
    wait_ms = FIRST_BACKOFF_MS << min(progress.backoffs, 16)
    return Again(now_ms + min(wait_ms, LONGEST_BACKOFF_MS))


def deleted() -> Over:
    return Over("dropped", FUNCTION_DELETED)


def _failed(policy: RetryPolicy, state: State, condition: str) -> Over:
    if policy.on_failure:
        return Over("destination", condition, policy.on_failure)
    return Over(state, condition)


def untold(over: Over) -> Over:
    """The same without its target, which cannot be told: a failure is kept as a dead letter."""
    return Over("dead" if over.state == "destination" else over.state, over.condition)


def told(condition: str) -> str:
    """The word for it in a destination record, which knows AWS's conditions only."""
    return RETRIES_EXHAUSTED if condition in (POISON, RECURSIVE) else condition
