"""Lifecycle: every legal move of an execution environment, written once.

Each state holds memory, so each has an owner and a deadline: STARTING and INITIALISING end at
the init limit, IDLE and FROZEN when it was idle too long, BUSY at the function's timeout, DYING
when the kernel reports the exit.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum


class State(Enum):
    STARTING = "starting"  # asked of a zygote, not there yet
    INITIALISING = "initialising"  # the handler's module is being imported
    IDLE = "idle"
    FROZEN = "frozen"  # idle for a while: none of its threads gets the processor
    BUSY = "busy"
    DYING = "dying"  # killed, its exit not reported yet
    DEAD = "dead"


class Signal(Enum):
    STARTED = "started"
    INITIALISED = "initialised"
    INVOKED = "invoked"
    ANSWERED = "answered"
    FROZEN = "frozen"
    KILLED = "killed"
    EXITED = "exited"


MOVES: Mapping[State, Mapping[Signal, State]] = {
    State.STARTING: {
        Signal.STARTED: State.INITIALISING,
        Signal.KILLED: State.DYING,
        Signal.EXITED: State.DEAD,
    },
    State.INITIALISING: {
        Signal.INITIALISED: State.IDLE,
        Signal.KILLED: State.DYING,
        Signal.EXITED: State.DEAD,
    },
    State.IDLE: {
        Signal.INVOKED: State.BUSY,
        Signal.FROZEN: State.FROZEN,
        Signal.KILLED: State.DYING,
        Signal.EXITED: State.DEAD,
    },
    State.FROZEN: {
        Signal.INVOKED: State.BUSY,
        Signal.KILLED: State.DYING,
        Signal.EXITED: State.DEAD,
    },
    State.BUSY: {
        Signal.ANSWERED: State.IDLE,
        Signal.KILLED: State.DYING,
        Signal.EXITED: State.DEAD,
    },
    State.DYING: {Signal.EXITED: State.DEAD},
    State.DEAD: {},
}


class IllegalMove(Exception):
    """A bug of ours: a signal came that its state does not know."""


def moved(state: State, signal: Signal) -> State:
    """The state after `signal`. Raises IllegalMove."""
    try:
        return MOVES[state][signal]
    except KeyError:
        raise IllegalMove(f"{signal.value} in state {state.value}") from None
