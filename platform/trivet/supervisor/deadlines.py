"""Deadlines: every wait in the supervisor that must end by itself, on one timer.

A hot function sets and clears thousands a second, so clearing only marks; the heap forgets what
was cleared when its time comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush

CROWDED = 1_024

Deadline = list[Callable[[], None] | None]  # one cell: emptied when cleared


class Deadlines:
    """Callbacks at instants of the loop's monotonic clock, early by at most a timer's tick."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[float, int, Deadline]] = []
        self._count = 0
        self._crowded = CROWDED
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = float("inf")

    def after(self, seconds: float, expired: Callable[[], None]) -> Deadline:
        at = self._loop.time() + seconds
        deadline: Deadline = [expired]
        self._count += 1
        if len(self._heap) >= self._crowded:
            self._forget_cleared()
        heappush(self._heap, (at, self._count, deadline))
        if at < self._fires_at:
            self._arm(at)
        return deadline

    def _forget_cleared(self) -> None:
        """A long timeout that was cleared would stay for all its time: a busy function has many."""
        self._heap = [entry for entry in self._heap if entry[2][0] is not None]
        heapify(self._heap)
        self._crowded = max(CROWDED, 2 * len(self._heap))

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires_at = at
        self._timer = self._loop.call_at(at, self._fire)

    def _fire(self) -> None:
        now = self._loop.time()
        while self._heap and (self._heap[0][2][0] is None or self._heap[0][0] <= now):
            expired = heappop(self._heap)[2][0]
            if expired is not None:
                try:
                    expired()
                except Exception as error:
                    # A bug of ours in one: the others, timeouts of functions among them, go on.
                    context = {"message": "a deadline failed", "exception": error}
                    self._loop.call_exception_handler(context)
        self._fires_at = float("inf")
        self._timer = None
        if self._heap:
            self._arm(self._heap[0][0])


def clear(deadline: Deadline) -> None:
    deadline[0] = None
