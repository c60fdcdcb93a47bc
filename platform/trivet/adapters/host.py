"""Host: what this process gives its adapters, behind `trivet.ports.Host`."""

from __future__ import annotations

from dataclasses import dataclass

import anyio
import structlog

from trivet.core.arns import Place
from trivet.core.triggers import TriggerSet
from trivet.errors import Unavailable
from trivet.ports import Memory, Publisher, Triggers
from trivet.store.triggers import TriggerStore

log = structlog.get_logger()

LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterHost:
    """Implements `trivet.ports.Host`."""

    place: Place
    publisher: Publisher
    triggers: Triggers
    memory: Memory

    @property
    def region(self) -> str:
        return self.place.region

    @property
    def account(self) -> str:
        return self.place.account


class FollowedTriggers:
    """Implements `trivet.ports.Triggers`: one small look a second at whether anything changed."""

    def __init__(self, store: TriggerStore) -> None:
        self._store = store
        self._current: TriggerSet | None = None
        self._changed = anyio.Event()

    async def other_than(self, seen: TriggerSet | None) -> TriggerSet:
        while self._current is None or self._current == seen:
            await self._changed.wait()
        return self._current

    async def run(self) -> None:
        """Follow the triggers, for as long as the process lives."""
        version: int | None = None
        while True:
            try:
                # The version first: what changes behind it is seen at the next look.
                newest = await self._store.version()
                if newest != version:
                    self._show(await self._store.all())
                    version = newest
            except Unavailable as error:
                log.warning("triggers.unavailable", error=error.message)
            await anyio.sleep(LOOK_AGAIN_S)

    def _show(self, triggers: TriggerSet) -> None:
        self._current = triggers
        self._changed.set()
        self._changed = anyio.Event()
