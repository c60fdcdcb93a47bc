"""Frost: environments that fell idle are frozen after a short grace, in the order they fell idle.

Back-to-back calls find them thawed and pay nothing but an entry in a dictionary. There is one
timer for all.
"""

from __future__ import annotations

import asyncio

from trivet.supervisor.environments import Environment

# Freezing takes a tenth of a millisecond or two, which events that are due must not wait for.
MOST_AT_ONCE = 8
PAUSE_S = 0.001


class Frost:
    """What is idle and not frozen yet."""

    def __init__(self, after_s: float) -> None:
        """`after_s`: the grace; 0: nothing is ever frozen."""
        self._after_s = after_s
        self._loop = asyncio.get_running_loop()
        self._due: dict[Environment, float] = {}  # loop time; the first is the next
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Frost {len(self._due)} to freeze>"

    def rested(self, environment: Environment) -> None:
        """It fell idle."""
        if self._after_s:
            due = self._due[environment] = self._loop.time() + self._after_s
            if self._timer is None:
                self._timer = self._loop.call_at(due, self._fire)

    def woken(self, environment: Environment) -> None:
        """It is idle no longer."""
        self._due.pop(environment, None)

    def _fire(self) -> None:
        now = self._loop.time()
        self._timer = None
        for _ in range(MOST_AT_ONCE):
            if not self._due:
                return
            environment, due = next(iter(self._due.items()))
            if due > now:
                self._timer = self._loop.call_at(due, self._fire)
                return
            del self._due[environment]
            environment.freeze()
        self._timer = self._loop.call_at(now + PAUSE_S, self._fire)
