"""What becomes of an asynchronous event when an attempt at it has ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.core import retries
from trivet.core.functions import Function, FunctionVersion
from trivet.core.retries import Again, Attempt, AttemptStatus, Over, Progress, RetryPolicy

WAITS_MS = (60_000, 120_000)
NOW_MS = 1_790_000_000_000
FUNCTION = "arn:aws:lambda:us-east-1:123456789012:function:told"


def progress(*statuses: AttemptStatus, accepted_ms: int = NOW_MS) -> Progress:
    attempts = tuple(Attempt(NOW_MS, status, "", "$LATEST", 1, 128) for status in statuses)
    return Progress(f"{accepted_ms}-0", attempts)


ERROR: AttemptStatus = "error"


def after(*statuses: AttemptStatus, policy: RetryPolicy | None = None, **options: Any) -> object:
    made = progress(*statuses, **options)
    return retries.after_attempt(made, policy or RetryPolicy(), WAITS_MS, NOW_MS)


def test_a_function_error_is_tried_again_after_one_minute_and_after_two() -> None:
    assert after("error") == Again(NOW_MS + 60_000)
    assert after("error", "timeout") == Again(NOW_MS + 120_000)
    assert after("error", "timeout", "error") == Over("dead", "RetriesExhausted")
    assert after("error", "ok") == Over("success", "Success")


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_attempts_than_configured(most: int) -> None:
    policy = RetryPolicy(most_attempts=most)
    assert after(*[ERROR] * most, policy=policy) == Over("dead", "RetriesExhausted")
    if most > 1:
        assert isinstance(after(*[ERROR] * (most - 1), policy=policy), Again)


def test_the_third_crash_is_the_last_whatever_else_happened() -> None:
    policy = RetryPolicy(most_attempts=100, on_failure=FUNCTION)
    assert isinstance(after("crash", "error", "oom", policy=policy), Again)
    over = after("crash", "error", "oom", "crash", policy=policy)
    assert over == Over("destination", "PoisonPill", FUNCTION)
    assert retries.told("PoisonPill") == "RetriesExhausted"


def test_an_event_that_would_be_too_old_by_then_is_not_tried_again() -> None:
    policy = RetryPolicy(most_age_ms=90_000)
    assert after("error", policy=policy, accepted_ms=NOW_MS - 20_000) == Again(NOW_MS + 60_000)
    late = after("error", policy=policy, accepted_ms=NOW_MS - 40_000)
    assert late == Over("expired", "EventAgeExceeded")


def test_what_is_too_old_or_suspended_is_not_begun() -> None:
    fresh, old = progress(), progress(accepted_ms=NOW_MS - 21_600_001)
    assert retries.before_attempt(fresh, RetryPolicy(), 0, NOW_MS) is None
    assert retries.before_attempt(old, RetryPolicy(), 0, NOW_MS) == Over(
        "expired", "EventAgeExceeded"
    )
    over = retries.before_attempt(fresh, RetryPolicy(is_suspended=True), 0, NOW_MS)
    assert over == Over("dead", "ZeroReservedConcurrency")


def test_destinations_are_told_of_what_they_asked_for() -> None:
    policy = RetryPolicy(most_attempts=1, on_success="s", on_failure="f")
    assert after("ok", policy=policy) == Over("success", "Success", "s")
    assert after("error", policy=policy) == Over("destination", "RetriesExhausted", "f")
    assert retries.untold(Over("destination", "X", "f")) == Over("dead", "X")
    assert retries.untold(Over("success", "X", "s")) == Over("success", "X")


def test_faults_of_the_platform_back_off_from_a_second_to_five_minutes() -> None:
    waits = [
        retries.after_fault(replace(progress(), backoffs=n), NOW_MS).due_ms - NOW_MS
        for n in range(40)
    ]
    assert waits[:4] == [1_000, 2_000, 4_000, 8_000]
    assert max(waits) == waits[-1] == 300_000


def function(**members: Any) -> Function:
    latest = FunctionVersion(function="f", runtime="python3.11", handler="h", code_sha256="0")
    return Function(latest=latest, code_bytes=1, revision_id="", last_modified_ms=0, **members)


def test_a_record_with_nothing_in_it_is_awss_default() -> None:
    assert retries.policy_of(function()) == RetryPolicy()
    chosen = {"retries": 0, "age_s": 60, "on_failure": "f"}
    policy = retries.policy_of(
        function(event_invoke=chosen, reserved_concurrency=0, recursive_loop="Allow")
    )
    assert policy == RetryPolicy(
        most_attempts=1,
        most_age_ms=60_000,
        on_failure="f",
        is_suspended=True,
        stops_loops=False,
    )


def test_what_goes_round_in_a_loop_is_stopped_the_sixteenth_time() -> None:
    assert retries.before_attempt(progress(), RetryPolicy(), 15, NOW_MS) is None
    over = retries.before_attempt(progress(), RetryPolicy(), 16, NOW_MS)
    assert over == Over("dead", "RecursiveInvocation")
    policy = RetryPolicy(stops_loops=False)
    assert retries.before_attempt(progress(), policy, 16, NOW_MS) is None


STATUSES = st.sampled_from(["ok", "error", "timeout", "oom", "crash"])


@given(st.lists(STATUSES, min_size=1, max_size=6), st.integers(1, 3))
def test_every_event_ends(statuses: list[AttemptStatus], most: int) -> None:
    """However attempts end, there are at most `most` of them, and then exactly one end."""
    made = progress()
    policy = RetryPolicy(most_attempts=most, most_age_ms=10**12)
    for count, status in enumerate((*statuses, *[ERROR] * most), 1):
        made = made.with_attempt(Attempt(NOW_MS, status, "", "$LATEST", 1, 128))
        verdict = retries.after_attempt(made, policy, WAITS_MS, NOW_MS)
        if isinstance(verdict, Over):
            assert (verdict.state == "success") == (status == "ok")
            assert count <= most
            return
    raise AssertionError("it never ended")
