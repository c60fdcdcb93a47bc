"""Meter: Readings of the express lane, committed in batches.

The caller has its answer before the Reading is on disk: after a kill at most one window of
answered calls is unbilled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from trivet.core.billing import Reading

WINDOW_S = 0.01
# While the durable server commits nothing, Readings wait here, in fewer and larger batches; beyond
# so many no call is taken on, since it could not be metered.
AGAIN_S = 0.25
MOST_WAITING = 100_000


class Meter:
    """Collects Readings, and hands each function's on once a window."""

    def __init__(
        self,
        commit: Callable[[Sequence[Reading]], None],
        is_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """`is_ready`: whether what is committed now goes to disk soon."""
        self._commit = commit
        self._is_ready = is_ready
        self._waiting = 0
        self._loop = asyncio.get_running_loop()
        self._readings: dict[tuple[str, str], list[Reading]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Meter {self._waiting} uncommitted>"

    @property
    def is_full(self) -> bool:
        return self._waiting >= MOST_WAITING

    def add(self, reading: Reading) -> None:
        # By month too: a batch is added to one bill.
        self._readings.setdefault((reading.function, reading.month), []).append(reading)
        self._waiting += 1
        if self._timer is None:
            self._timer = self._loop.call_later(WINDOW_S, self._window_ended)

    def _window_ended(self) -> None:
        if self._is_ready():
            self.flush()
        else:
            self._timer = self._loop.call_later(AGAIN_S, self._window_ended)

    def flush(self) -> None:
        """Commit all that waits, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        readings, self._readings = self._readings, {}
        self._waiting = 0
        for batch in readings.values():
            self._commit(batch)
