"""Deadlines: every wait in the supervisor that must end by itself, on one timer.

A hot function sets and clears thousands a second, so clearing only marks; the heap forgets what
was cleared when its time comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush

Deadline = list[Callable[[], None] | None]  # one cell: emptied when cleared


class Deadlines:
    """Callbacks at instants of the loop's monotonic clock, early by at most a timer's tick."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[float, int, Deadline]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = float("inf")

    def after(self, seconds: float, expired: Callable[[], None]) -> Deadline:
        at = self._loop.time() + seconds
        deadline: Deadline = [expired]
        self._count += 1
        heappush(self._heap, (at, self._count, deadline))
        if at < self._fires_at:
            self._arm(at)
        return deadline

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires_at = at
        self._timer = self._loop.call_at(at, self._fire)

    def _fire(self) -> None:
        heap = self._heap
        now = self._loop.time()
        while heap and (heap[0][2][0] is None or heap[0][0] <= now):
            expired = heappop(heap)[2][0]
            if expired is not None:
                expired()
        self._fires_at = float("inf")
        self._timer = None
        if heap:
            self._arm(heap[0][0])


def clear(deadline: Deadline) -> None:
    deadline[0] = None
