"""Scaling: how many environments to start for a function version, and how much work to take.

Pure: looks at numbers, returns numbers. The pool carries them out.
"""

from __future__ import annotations

from typing import NamedTuple

# Before anything is known of a version: a start is assumed to be dear, a run cheap enough that a
# handful of waiting events does not start a handful of environments.
UNKNOWN_COLD_START_MS = 100.0
# Reading ahead hides the trip to Redis behind a busy environment. Behind a slow function it would
# hold events that another machine could run now, so only short ones qualify.
SHORT_RUN_MS = 25.0
READ_AHEAD_PER_ENVIRONMENT = 4
MOST_READ_AHEAD = 16


class Demand(NamedTuple):
    """What one function version wants, and what it has. Made twice for each event."""

    waiting: int  # events here that no environment has
    idle: int
    busy: int
    starting: int
    run_ms: float | None  # measured; None: never ran here
    cold_start_ms: float | None  # measured; None: never started here


def starts(demand: Demand, *, free_slots: int) -> int:
    """How many environments to start now.

    With none alive, one for each waiting event is as good as any guess until the first answers.
    Otherwise another pays when the queue would take longer than a cold start.
    """
    if free_slots <= 0:
        return 0
    waiting = demand.waiting - demand.idle - demand.starting
    if waiting <= 0:
        return 0
    if demand.run_ms is None or demand.busy == 0:
        return min(waiting, free_slots)
    cold_start_ms = demand.cold_start_ms or UNKNOWN_COLD_START_MS
    drained_during_a_start = demand.busy * cold_start_ms / max(demand.run_ms, 0.01)
    missing = waiting - drained_during_a_start
    return 0 if missing <= 0 else min(max(1, int(missing)), free_slots)


def room(demand: Demand, *, free_slots: int) -> int:
    """How many more events to take from the stream: what can run now, and a little ahead."""
    can_run = demand.idle + demand.starting + free_slots
    ahead = 0
    if demand.busy and demand.run_ms is not None and demand.run_ms <= SHORT_RUN_MS:
        ahead = min(READ_AHEAD_PER_ENVIRONMENT * demand.busy, MOST_READ_AHEAD)
    return max(0, can_run + ahead - demand.waiting)


def strict_room(demand: Demand, *, free_slots: int, backlog: int) -> int:
    """How many more events to take where nothing may be read ahead: one for each environment that
    is idle or starting, and one for each that is worth starting for what waits on the stream.

    `backlog`: how many events that was when somebody looked last.
    """
    worth = starts(demand._replace(waiting=max(1, backlog)), free_slots=free_slots)
    return max(0, demand.idle + demand.starting + worth - demand.waiting)
