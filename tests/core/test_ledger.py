"""The check of the ledger: it passes what is right, and each break of an invariant fails it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trivet.core.audit import INVARIANTS, Audit, Demands, Finding, in_all, report
from trivet.core.billing import Reading, Usage, usage_of
from trivet.core.ledger import DELAYED, WAITING, Counts, Record, Standing
from trivet.core.retries import (
    EVENT_AGE_EXCEEDED,
    FUNCTION_DELETED,
    POISON,
    RETRIES_EXHAUSTED,
    STATES,
    SUCCESS,
    ZERO_CONCURRENCY,
    Attempt,
    AttemptStatus,
    Progress,
)

T0_MS = 1_795_000_000_000  # 18 November 2026
MONTH = "2026-11"


@dataclass(frozen=True)
class Life:
    """What an event goes through, from its acceptance on."""

    stages: tuple[Record, ...]
    is_told: bool = False  # a destination hears of its end

    def at(self, stage: int) -> Record | None:
        """As it is kept after so many steps; None before its acceptance."""
        return self.stages[min(stage, len(self.stages)) - 1] if stage else None


@dataclass
class World:
    """All that is kept of one function; a test may break any of it."""

    ledger: list[Record] = field(default_factory=list)
    in_flight: list[Record] = field(default_factory=list)
    outbox: list[str] = field(default_factory=list)  # origins
    readings: list[Reading] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    bill: Usage = field(default_factory=Usage)
    undue: int = 0  # parked events without a time when they are due

    @property
    def counts(self) -> Counts:
        parked = sum(record.standing == DELAYED for record in self.in_flight)
        return Counts(
            totals=dict(self.totals),
            on_stream=len(self.in_flight) - parked,
            parked=parked,
            delayed=parked - self.undue,
            kept=len(self.ledger),
            outbox=len(self.outbox),
        )


def world_of(lives: Sequence[Life], stages: Sequence[int]) -> World:
    """Everything as the platform would have counted it by then."""
    world = World()
    totals = dict.fromkeys((*STATES, "accepted", "requests", "mb_ms", "aborted", "outbox"), 0)
    totals["delivered"] = totals["undelivered"] = 0
    for life, stage in zip(lives, stages, strict=True):
        record = life.at(stage)
        if record is None:
            continue
        totals["accepted"] += 1
        totals["aborted"] += record.progress.aborted
        readings = [reading_of(record, attempt) for attempt in record.progress.attempts]
        world.readings += readings
        totals["requests"] += len(readings)
        totals["mb_ms"] += usage_of(readings).mb_ms
        if record.standing not in STATES:
            world.in_flight.append(record)
            continue
        world.ledger.append(record)
        totals[record.standing] += 1
        if life.is_told:
            totals["outbox"] += 1
            if record.progress.aborted:
                world.outbox.append(record.progress.origin)
            else:
                totals["delivered"] += 1
    world.totals = totals
    world.bill = usage_of(world.readings)
    return world


def reading_of(record: Record, attempt: Attempt) -> Reading:
    return Reading(
        request_id=record.request_id,
        function="f",
        version=attempt.version,
        ended_ms=attempt.ended_ms,
        memory_mb=attempt.memory_mb,
        billed_ms=attempt.billed_ms,
        init_ms=None,
        start="warm",
        status="",
    )


def checked(
    world: World,
    *,
    demands: Demands | None = None,
    seen: Iterable[str] | None = None,
    readings_since_ms: int | None = None,
) -> dict[str, Finding]:
    """The findings over a world in which nothing moves; `seen`: ids a client saw accepted."""
    unseen = {*(seen or ())}
    found = audited(world, unseen, readings_since_ms)
    count = None if seen is None else len({*seen})
    return {f.invariant: f for f in report([found], demands or Demands(), count, unseen)}


def audited(world: World, unseen: set[str], readings_since_ms: int | None) -> list[Finding]:
    audit = Audit("f", world.counts, unseen)
    for origin in world.outbox:
        audit.outgoing(origin)
    for record in world.ledger:
        audit.ended(record)
    parked = [record for record in world.in_flight if record.standing == DELAYED]
    waiting = [record for record in world.in_flight if record.standing == WAITING]
    for record in (*parked, *waiting, *parked):
        audit.in_flight(record)
    audit.events_read()
    audit.metered(world.readings)
    return audit.findings(world.counts, {MONTH: (world.bill, world.bill)}, readings_since_ms)


def broken(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if not finding.holds}


# -------------------------------------------------------------------------- histories

failures: st.SearchStrategy[AttemptStatus] = st.sampled_from(["error", "timeout", "oom", "crash"])


@st.composite
def lives(draw: st.DrawFn, number: int) -> Life:
    """A legal life of event `number`."""
    progress = Progress(f"{T0_MS + number}-0")
    steps: list[tuple[Standing, str, Progress]] = [(WAITING, "", progress)]
    statuses = draw(st.lists(failures, max_size=3))
    is_ok = len(statuses) < 3 and draw(st.booleans())
    if is_ok:
        statuses = [*statuses, "ok"]
    for status in statuses:
        if draw(st.integers(0, 4)) == 0:  # its supervisor died, or the platform had no room
            progress = replace(progress, aborted=progress.aborted + 1, backoffs=1)
            steps += [(DELAYED, "", progress), (WAITING, "", progress)]
        ended_ms = T0_MS + 1_000 * number + 100 * len(progress.attempts)
        billed = draw(st.integers(1, 900_000))
        attempt = Attempt(
            ended_ms, status, "", "$LATEST", billed, draw(st.sampled_from([128, 512]))
        )
        progress = progress.with_attempt(attempt)
        steps += [(DELAYED, "", progress), (WAITING, "", progress)]
    if progress.attempts:
        del steps[-2:]  # its last attempt ends it
    crashes = sum(attempt.status in ("crash", "oom") for attempt in progress.attempts)
    is_told = draw(st.booleans())
    failed: list[tuple[Standing, str]] = [("dead", ZERO_CONCURRENCY)]
    if progress.attempts:
        failed.append(("dead", RETRIES_EXHAUSTED))
    if crashes == 3:
        failed = [("dead", POISON)]
    ends: list[tuple[Standing, str]] = [*failed, ("expired", EVENT_AGE_EXCEEDED)]
    if is_told:
        ends = [("destination", condition) for _, condition in ends]
    elif draw(st.integers(0, 3)) == 0:
        ends = [("dropped", FUNCTION_DELETED)]
    if is_ok:
        ends = [("success", SUCCESS)]
    steps.append((*draw(st.sampled_from(ends)), progress))
    records = tuple(
        Record(
            function="f",
            request_id=f"id-{number}",
            standing=standing,
            progress=behind,
            condition=condition,
        )
        for standing, condition, behind in steps
    )
    return Life(records, is_told)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Life], list[int]]:
    """Lives, and how far each of them has come."""
    found = [draw(lives(number)) for number in range(draw(st.integers(0, 8)))]
    return found, [draw(st.integers(0, len(life.stages))) for life in found]


@given(histories())
def test_what_is_right_passes(history: tuple[list[Life], list[int]]) -> None:
    world = world_of(*history)
    seen = [record.request_id for record in (*world.ledger, *world.in_flight)]
    findings = checked(world, seen=seen)
    assert list(findings) == list(INVARIANTS)
    assert broken(findings) == set(), findings
    figures = findings["I6"].figures
    assert figures["executions"] - figures["events"] == figures["retries"] + findings_aborted(
        findings
    )


def findings_aborted(findings: dict[str, Finding]) -> int:
    return findings["I3"].figures["aborted"]


@given(histories(), st.data())
def test_a_platform_at_work_raises_no_false_alarm(
    history: tuple[list[Life], list[int]], data: st.DataObject
) -> None:
    """Between the counts before and after, each event is met wherever it happens to be."""
    found, before = history
    after = [
        data.draw(st.integers(stage, len(life.stages)))
        for life, stage in zip(found, before, strict=True)
    ]
    first, last = world_of(found, before), world_of(found, after)
    audit = Audit("f", first.counts, set())
    for record in first.ledger:
        audit.ended(record)
    tail = []
    for life, begin, end in zip(found, before, after, strict=True):
        if end and (begin == 0 or life.stages[begin - 1].standing not in STATES):
            met = life.at(data.draw(st.integers(max(begin, 1), end)))
            ended = life.at(end)
            assert met is not None
            if met.standing not in STATES:
                audit.in_flight(met)
            if ended is not None and ended.standing in STATES:
                tail.append(ended)
    for record in tail:
        audit.ended(record)
    audit.events_read()
    audit.metered(last.readings)
    findings = audit.findings(last.counts, {MONTH: (first.bill, last.bill)})
    assert [finding.problems for finding in findings if not finding.holds] == []


# -------------------------------------------------------------------------- breaks


def _record(
    number: int,
    standing: Standing,
    condition: str = "",
    attempts: Sequence[AttemptStatus] = (),
    aborted: int = 0,
) -> Record:
    made = tuple(
        Attempt(T0_MS + 10 * number + n, status, "", "$LATEST", 100 + n, 128)
        for n, status in enumerate(attempts)
    )
    progress = Progress(f"{T0_MS + number}-0", made, 0, aborted)
    return Record(
        function="f",
        request_id=f"id-{number}",
        standing=standing,
        progress=progress,
        condition=condition,
    )


def whole() -> World:
    """One of each, as it should be."""
    ends = [
        Life((_record(0, "success", SUCCESS, attempts=["ok"]),)),
        Life((_record(1, "success", SUCCESS, attempts=["error", "ok"], aborted=1),), True),
        Life((_record(2, "destination", RETRIES_EXHAUSTED, attempts=["timeout"]),), True),
        Life((_record(3, "dead", RETRIES_EXHAUSTED, attempts=["error", "error", "error"]),)),
        Life((_record(4, "dead", POISON, attempts=["crash", "oom", "crash"]),)),
        Life((_record(5, "expired", EVENT_AGE_EXCEEDED),)),
        Life((_record(6, "dropped", FUNCTION_DELETED),)),
        Life((_record(7, "dropped", FUNCTION_DELETED),)),
        Life((_record(8, WAITING),)),
        Life((_record(9, WAITING, attempts=["error"]),)),
        Life((_record(10, DELAYED, attempts=["error", "crash"]),)),
    ]
    return world_of(ends, [1] * len(ends))


def test_the_whole_world_is_right() -> None:
    assert broken(checked(whole(), seen=[f"id-{n}" for n in range(11)])) == set()


def lose_an_event(world: World) -> None:
    world.in_flight = [r for r in world.in_flight if r.request_id != "id-8"]


def lose_an_end(world: World) -> None:
    world.ledger = [r for r in world.ledger if r.request_id != "id-7"]


def accept_without_counting(world: World) -> None:
    world.totals["accepted"] -= 1


def forget_when_one_is_due(world: World) -> None:
    world.undue = 1


def end_one_twice(world: World) -> None:
    world.ledger[7] = world.ledger[6]


def run_one_that_has_ended(world: World) -> None:
    world.in_flight[0] = replace(world.ledger[7], standing=WAITING, condition="")


def end_for_no_reason(world: World) -> None:
    world.ledger[5] = replace(world.ledger[5], condition="Tired")


def succeed_by_failing(world: World) -> None:
    world.ledger[3] = replace(world.ledger[3], standing="success", condition=SUCCESS)
    world.totals["success"] += 1
    world.totals["dead"] -= 1


def quarantine_too_early(world: World) -> None:
    world.ledger[3] = replace(world.ledger[3], condition=POISON)


def leave_an_attempt_unbilled(world: World) -> None:
    world.totals["requests"] -= 1


def bill_an_aborted_one(world: World) -> None:
    world.totals["requests"] += 1


def bill_too_little(world: World) -> None:
    world.totals["mb_ms"] -= 1


def lose_a_reading(world: World) -> None:
    world.bill = usage_of(world.readings[1:])
    del world.readings[0]


def write_another_duration(world: World) -> None:
    world.readings[0] = replace(world.readings[0], billed_ms=99)
    world.bill = usage_of(world.readings)


def read_what_never_ran(world: World) -> None:
    world.readings.append(replace(world.readings[0], ended_ms=T0_MS + 999))
    world.bill = usage_of(world.readings)


def bill_a_month_twice(world: World) -> None:
    world.bill = world.bill + world.bill


def lose_what_is_to_be_told(world: World) -> None:
    world.outbox.clear()


def deliver_twice(world: World) -> None:
    world.totals["delivered"] += 1


def tell_nobody(world: World) -> None:
    world.totals["outbox"] -= 2
    world.totals["delivered"] -= 1
    world.outbox.clear()


def tell_of_a_stranger(world: World) -> None:
    world.outbox[0] = "1-1"


def run_once_more(world: World) -> None:
    _rerun(world, 3, "error")


def run_after_success(world: World) -> None:
    record = world.ledger[0]
    again = replace(record.progress.attempts[0], ended_ms=T0_MS + 7)
    _with(world, 0, record.progress.with_attempt(again))


def _rerun(world: World, place: int, status: AttemptStatus) -> None:
    progress = world.ledger[place].progress
    again = replace(progress.attempts[-1], ended_ms=T0_MS + 777, status=status)
    _with(world, place, progress.with_attempt(again))


def _with(world: World, place: int, progress: Progress) -> None:
    """Give an event another attempt, and bill it as it should be."""
    world.ledger[place] = replace(world.ledger[place], progress=progress)
    reading = reading_of(world.ledger[place], progress.attempts[-1])
    world.readings.append(reading)
    world.bill += Usage(1, reading.memory_mb * reading.billed_ms)
    world.totals["requests"] += 1
    world.totals["mb_ms"] += reading.memory_mb * reading.billed_ms


def count_no_abort(world: World) -> None:
    world.totals["aborted"] = 0


@pytest.mark.parametrize(
    ("break_", "invariants"),
    [
        (lose_an_event, {"I1"}),
        (lose_an_end, {"I1"}),
        (accept_without_counting, {"I1"}),
        (forget_when_one_is_due, {"I1"}),
        (end_one_twice, {"I2"}),
        (run_one_that_has_ended, {"I2"}),
        (end_for_no_reason, {"I2"}),
        (succeed_by_failing, {"I2"}),
        (quarantine_too_early, {"I2"}),
        (leave_an_attempt_unbilled, {"I3"}),
        (bill_an_aborted_one, {"I3"}),
        (bill_too_little, {"I4"}),
        (lose_a_reading, {"I4"}),
        (write_another_duration, {"I4"}),
        (read_what_never_ran, {"I4"}),
        (bill_a_month_twice, {"I4"}),
        (lose_what_is_to_be_told, {"I5"}),
        (deliver_twice, {"I5"}),
        (tell_nobody, {"I5"}),
        (tell_of_a_stranger, {"I5"}),
        (run_once_more, {"I6"}),
        (run_after_success, {"I6"}),
        (count_no_abort, {"I6"}),
    ],
)
def test_each_break_fails_its_invariant_alone(
    break_: Callable[[World], None], invariants: set[str]
) -> None:
    world = whole()
    break_(world)
    findings = checked(world)
    assert broken(findings) == invariants, findings
    for finding in findings.values():
        assert bool(finding.advice) == (not finding.holds)
        assert finding.words


def test_an_event_that_is_in_flight_twice_is_seen() -> None:
    world = whole()
    world.in_flight[0] = world.in_flight[1]
    assert broken(checked(world)) == {"I1"}


def test_what_a_client_saw_accepted_must_be_here() -> None:
    assert broken(checked(whole(), seen=["id-0", "id-8", "id-10"])) == set()
    findings = checked(whole(), seen=["id-0", "id-99"])
    assert broken(findings) == {"I7"}
    assert findings["I7"].figures == {"accepted": 2, "missing": 1, "untold": 0}
    assert "id-99" in findings["I7"].problems[0]


def test_what_was_forgotten_cannot_be_told_and_is_no_alarm() -> None:
    world = whole()
    gone = world.ledger.pop(1)
    attempts = gone.progress.attempts
    world.totals |= {
        "forgotten": 1,
        "forgotten_requests": len(attempts),
        "forgotten_mb_ms": sum(a.billed_ms * a.memory_mb for a in attempts),
        "forgotten_aborted": gone.progress.aborted,
    }
    findings = checked(world, seen=["id-0", gone.request_id])
    assert broken(findings) == set(), findings
    assert findings["I7"].figures == {"accepted": 2, "missing": 0, "untold": 1}
    world.totals["requests"] += 1
    assert broken(checked(world)) == {"I3"}  # what is forgotten was counted


def test_readings_that_were_trimmed_are_no_alarm() -> None:
    world = whole()
    del world.readings[0]
    assert broken(checked(world)) == {"I4"}
    assert broken(checked(world, readings_since_ms=T0_MS)) == set()
    assert broken(checked(world, readings_since_ms=T0_MS - 3_600_000)) == {"I4"}


@pytest.mark.parametrize(
    ("demands", "invariants"),
    [
        (Demands(is_quiesced=True), {"I1", "I5"}),
        (Demands(most_aborted=1), set()),
        (Demands(most_aborted=0), {"I6"}),
    ],
)
def test_more_may_be_asked_than_the_invariants(demands: Demands, invariants: set[str]) -> None:
    assert broken(checked(whole(), demands=demands)) == invariants


def test_of_several_passes_only_what_always_fails_has_failed() -> None:
    def found(break_: Callable[[World], None]) -> list[Finding]:
        world = whole()
        break_(world)
        return audited(world, set(), None)

    both = in_all([found(lose_an_event), found(leave_an_attempt_unbilled)])
    assert all(finding.holds for finding in both)
    again = in_all([found(lose_an_event), found(lose_an_event)])
    assert [finding.invariant for finding in again if not finding.holds] == ["I1"]


def test_functions_are_added_up() -> None:
    good, bad = audited(whole(), set(), None), audited(whole(), set(), None)
    bad[0] = replace(bad[0], problems=("f: lost",))
    added = report([good, bad], Demands())
    assert added[0].figures["accepted"] == 22
    assert added[0].problems == ("f: lost",)
    assert "22 accepted; 16 ended, 6 in flight" in added[0].words


@given(histories(), st.sampled_from(["accepted", "requests", "mb_ms", "aborted", "outbox"]))
def test_no_counter_can_be_off_by_one(history: tuple[list[Life], list[int]], counter: str) -> None:
    world = world_of(*history)
    assume(world.totals["accepted"])
    world.totals[counter] += 1
    owner = {"accepted": "I1", "requests": "I3", "mb_ms": "I4", "aborted": "I6", "outbox": "I5"}
    assert broken(checked(world)) == {owner[counter]}
