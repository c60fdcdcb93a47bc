import pytest

from trivet.core.lifecycle import MOVES, IllegalMove, Signal, State, moved


def test_an_environment_lives_from_starting_over_idle_and_busy_to_dead() -> None:
    state = State.STARTING
    for signal in (
        Signal.STARTED,
        Signal.INITIALISED,
        Signal.INVOKED,
        Signal.ANSWERED,
        Signal.KILLED,
        Signal.EXITED,
    ):
        state = moved(state, signal)
    assert state is State.DEAD


def test_only_an_idle_environment_freezes_and_an_event_or_its_end_thaws_it() -> None:
    freezing = [state for state in State if Signal.FROZEN in MOVES.get(state, {})]
    assert freezing == [State.IDLE]
    assert moved(State.FROZEN, Signal.INVOKED) is State.BUSY
    assert moved(State.FROZEN, Signal.KILLED) is State.DYING
    with pytest.raises(IllegalMove, match="answered in state frozen"):
        moved(State.FROZEN, Signal.ANSWERED)


def test_every_state_but_dead_can_end_by_itself() -> None:
    for state in State:
        if state is not State.DEAD:
            assert MOVES[state][Signal.EXITED] is State.DEAD


def test_a_killed_environment_is_never_used_again() -> None:
    for signal in (Signal.INVOKED, Signal.ANSWERED, Signal.INITIALISED, Signal.KILLED):
        with pytest.raises(IllegalMove, match=f"{signal.value} in state dying"):
            moved(State.DYING, signal)


def test_an_illegal_move_names_signal_and_state() -> None:
    with pytest.raises(IllegalMove, match="invoked in state busy"):
        moved(State.BUSY, Signal.INVOKED)
