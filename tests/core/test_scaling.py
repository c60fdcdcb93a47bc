import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.core.scaling import MOST_READ_AHEAD, Demand, room, starts, strict_room

counts = st.integers(0, 200)
durations = st.none() | st.floats(0.01, 1_000_000)
demands = st.builds(
    Demand,
    waiting=counts,
    idle=counts,
    busy=counts,
    starting=counts,
    run_ms=durations,
    cold_start_ms=durations,
)


def demand(
    waiting: int = 0,
    idle: int = 0,
    busy: int = 0,
    starting: int = 0,
    run_ms: float | None = None,
    cold_start_ms: float | None = None,
) -> Demand:
    return Demand(
        waiting=waiting,
        idle=idle,
        busy=busy,
        starting=starting,
        run_ms=run_ms,
        cold_start_ms=cold_start_ms,
    )


def test_the_first_event_starts_the_first_environment() -> None:
    assert starts(demand(waiting=1), free_slots=8) == 1


def test_an_idle_environment_is_used_before_another_is_started() -> None:
    assert starts(demand(waiting=1, idle=1), free_slots=8) == 0


def test_an_environment_that_is_starting_counts() -> None:
    assert starts(demand(waiting=3, starting=3), free_slots=8) == 0


def test_a_slow_function_gets_an_environment_for_each_event() -> None:
    slow = demand(waiting=5, busy=3, run_ms=10_000, cold_start_ms=20)
    assert starts(slow, free_slots=8) == 4


def test_a_fast_function_waits_for_a_busy_one_rather_than_start_another() -> None:
    fast = demand(waiting=20, busy=2, run_ms=0.5, cold_start_ms=20)
    assert starts(fast, free_slots=8) == 0


def test_nothing_is_read_ahead_of_a_slow_function() -> None:
    assert room(demand(busy=2, run_ms=500), free_slots=0) == 0


def test_a_few_events_are_read_ahead_of_a_short_one() -> None:
    assert 0 < room(demand(busy=2, run_ms=1), free_slots=0) <= MOST_READ_AHEAD


@given(demands, counts)
def test_never_more_starts_than_slots_or_events(demand: Demand, free_slots: int) -> None:
    assert 0 <= starts(demand, free_slots=free_slots) <= min(free_slots, demand.waiting)


@given(demands, counts)
def test_room_is_bounded_by_what_can_run_and_the_read_ahead(
    demand: Demand, free_slots: int
) -> None:
    most = demand.idle + demand.starting + free_slots + MOST_READ_AHEAD
    assert 0 <= room(demand, free_slots=free_slots) <= most


@pytest.mark.parametrize(
    ("demand", "backlog", "room"),
    [
        (Demand(waiting=0, idle=1, busy=0, starting=0, run_ms=1, cold_start_ms=20), 0, 1),
        (Demand(waiting=0, idle=0, busy=1, starting=0, run_ms=1, cold_start_ms=20), 0, 0),
        (Demand(waiting=1, idle=0, busy=1, starting=1, run_ms=1, cold_start_ms=20), 0, 0),
        # Behind a function that runs for long another environment pays for a single event.
        (Demand(waiting=0, idle=0, busy=1, starting=0, run_ms=900, cold_start_ms=20), 0, 1),
        # And behind a short one for a long backlog.
        (Demand(waiting=0, idle=0, busy=1, starting=0, run_ms=1, cold_start_ms=20), 24, 4),
    ],
)
def test_nothing_is_taken_that_no_environment_is_worth(
    demand: Demand, backlog: int, room: int
) -> None:
    assert strict_room(demand, free_slots=8, backlog=backlog) == room
