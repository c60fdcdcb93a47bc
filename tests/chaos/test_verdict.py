"""The verdict fails when a promise is broken: each is broken once, by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tests.chaos import verdict
from tests.chaos.accepted import Accepted
from tests.chaos.accounts import Accounts
from tests.chaos.load import Answered
from tests.chaos.schedule import Fault
from tests.chaos.storm import Strike
from tests.chaos.verdict import Verdict

SLOTS = [f"2026-11-23T22:00:0{second}Z" for second in range(5)]
KILL = Strike(Fault("kill", "supervisor"), at=100.0, until=100.0)


def kept() -> Accounts:
    return Accounts(
        ends=Counter({1: 1, 2: 1, 3: 1}),
        states=Counter(success=3),
        executions=Counter({1: 1, 2: 2, 3: 1}),
        attempts=3,
        aborted=1,
        ids={"a", "b", "c"},
        logged=Counter({1: 1, 2: 2, 3: 1}),
    )


def events(accounts: Accounts) -> list[str]:
    found = Verdict()
    accepted = [Accepted("a", 1, "work", "ok"), Accepted("b", 2, "work", "ok")]
    verdict.on_events(found, accepted, {3}, accounts)
    return found.broken


def test_whoever_keeps_everything_is_not_blamed() -> None:
    assert events(kept()) == []


def lost(accounts: Accounts) -> None:
    del accounts.ends[2]


def lost_by_id(accounts: Accounts) -> None:
    accounts.ids.remove("b")


def ended_twice(accounts: Accounts) -> None:
    accounts.ends[1] += 1


def unasked(accounts: Accounts) -> None:
    accounts.ends[4] += 1


def ran_unknown(accounts: Accounts) -> None:
    accounts.logged[1] += 1


@pytest.mark.parametrize(
    ("breaks", "named"),
    [
        (lost, "lost"),
        (lost_by_id, "lost"),
        (ended_twice, "ended twice"),
        (unasked, "unasked"),
        (ran_unknown, "executions"),
    ],
)
def test_an_event_that_is_lost_or_doubled_is_seen(
    breaks: Callable[[Accounts], None], named: str
) -> None:
    accounts = kept()
    breaks(accounts)
    assert [words.partition(":")[0] for words in events(accounts)] == [named]


@pytest.mark.parametrize(
    ("slots", "count"),
    [(SLOTS, 0), ([*SLOTS, SLOTS[2]], 1), ([*SLOTS[:2], *SLOTS[3:]], 1)],
    ids=["each once", "one twice", "one missed"],
)
def test_a_slot_that_is_missed_or_fires_twice_is_seen(slots: list[str], count: int) -> None:
    found = Verdict()
    verdict.on_slots(found, Counter(slots))
    assert len(found.broken) == count


@pytest.mark.parametrize(
    ("files", "count"), [({"x": 1, "y": 1}, 0), ({"x": 1}, 1), ({"x": 1, "y": 2}, 1)]
)
def test_a_file_that_is_missed_or_seen_twice_is_seen(files: dict[str, int], count: int) -> None:
    found = Verdict()
    verdict.on_files(found, ["x", "y"], Counter(files))
    assert len(found.broken) == count


@pytest.mark.parametrize(("at", "is_excused"), [(99.995, True), (100.05, True), (95.0, False)])
def test_only_a_kill_excuses_what_is_not_billed(at: float, is_excused: bool) -> None:
    found = Verdict()
    verdict.on_express_bill(found, [Answered("a", at), Answered("b", 50.0)], {"b"}, [KILL])
    assert (found.broken == []) == is_excused


CALLS: dict[str, Any] = {
    "wrong": [],
    "crashed": 1,
    "killed_environments": 1,
    "refusals": Counter(),
    "slowest_s": 1.0,
}


@pytest.mark.parametrize(
    ("change", "count"), [({}, 0), ({"wrong": ["5: 36"]}, 1), ({"crashed": 2}, 1)]
)
def test_a_wrong_answer_is_seen(change: dict[str, Any], count: int) -> None:
    found = Verdict()
    verdict.on_calls(found, [], **{**CALLS, **change})
    assert len(found.broken) == count


def test_more_duplicates_than_strikes_and_parts_that_die_by_themselves_are_seen() -> None:
    found = Verdict()
    verdict.on_duplicates(found, 3, 3)
    said = "! supervisor ended (signal 9), started again at once\n"
    verdict.on_deaths(found, said, ())
    assert found.broken == []
    verdict.on_duplicates(found, 4, 3)
    verdict.on_deaths(found, f"{said}! gateway ended (status 1), started again at once\n", ())
    assert len(found.broken) == 2


def test_recoveries_are_judged_where_there_is_a_goal() -> None:
    found = Verdict()
    verdict.on_recovery(found, {"kill a": [0.1] * 99 + [3.0], "kill b": [9.0]}, {"kill a": 3.5})
    assert found.broken == []
    verdict.on_recovery(found, {"kill a": [0.1, 3.0]}, {"kill a": 2.0})
    assert len(found.broken) == 1
