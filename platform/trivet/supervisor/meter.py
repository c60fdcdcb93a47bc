"""Meter: Readings of the express lane, committed in batches.

The caller has its answer before the Reading is on disk: after a kill at most one window of
answered calls is unbilled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from trivet.core.billing import Reading

WINDOW_S = 0.01


class Meter:
    """Collects Readings, and hands each function's on once a window."""

    def __init__(self, commit: Callable[[Sequence[Reading]], None]) -> None:
        self._commit = commit
        self._loop = asyncio.get_running_loop()
        self._readings: dict[tuple[str, str], list[Reading]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Meter {sum(map(len, self._readings.values()))} uncommitted>"

    def add(self, reading: Reading) -> None:
        # By month too: a batch is added to one bill.
        self._readings.setdefault((reading.function, reading.month), []).append(reading)
        if self._timer is None:
            self._timer = self._loop.call_later(WINDOW_S, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        readings, self._readings = self._readings, {}
        for batch in readings.values():
            self._commit(batch)
