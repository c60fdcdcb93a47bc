"""A host for adapters: what they publish and remember is in lists and dictionaries."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from trivet import Event, Trigger, TriggerSet, TrivetError


class Changing:
    """Something that a test waits for to change."""

    def __init__(self) -> None:
        self._changed = anyio.Event()

    def changed(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def wait(self) -> None:
        await self._changed.wait()

    async def until(self, holds: Callable[[], object]) -> None:
        with anyio.fail_after(30):
            while not holds():
                await self._changed.wait()


@dataclass
class Published:
    """A durable lane: an event with a key that came before is dropped."""

    events: list[Event] = field(default_factory=list)
    keys: set[tuple[str, str]] = field(default_factory=set)
    dropped: int = 0
    raises: TrivetError | None = None
    asked: Changing = field(default_factory=Changing)

    async def publish(self, event: Event, *, once: str = "") -> bool:
        await anyio.lowlevel.checkpoint()
        self.asked.changed()
        if self.raises is not None:
            raise self.raises
        if once and (event.function, once) in self.keys:
            self.dropped += 1
            return False
        self.keys.add((event.function, once))
        self.events.append(event)
        return True

    @property
    def payloads(self) -> list[Any]:
        return [json.loads(event.payload) for event in self.events]

    async def until(self, count: int) -> None:
        """Wait until so many events came."""
        await self.asked.until(lambda: len(self.events) >= count)


@dataclass
class Remembered:
    """A memory that outlives the adapter."""

    values: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    written: Changing = field(default_factory=Changing)
    raises: TrivetError | None = None

    async def recall(self, trigger: Trigger) -> dict[bytes, bytes]:
        await anyio.lowlevel.checkpoint()
        if self.raises is not None:
            raise self.raises
        return dict(self.values.get(trigger.id, {}))

    async def remember(self, trigger: Trigger, values: Mapping[bytes, bytes | None]) -> None:
        await anyio.lowlevel.checkpoint()
        if self.raises is not None:
            raise self.raises
        memory = self.values.setdefault(trigger.id, {})
        for name, value in values.items():
            if value is None:
                memory.pop(name, None)
            else:
                memory[name] = value
        self.written.changed()


class Given:
    """Triggers that a test changes."""

    def __init__(self) -> None:
        self._current = TriggerSet()
        self._written = Changing()

    def set(self, triggers: TriggerSet) -> None:
        self._current = triggers
        self._written.changed()

    async def other_than(self, seen: TriggerSet | None) -> TriggerSet:
        while self._current == seen:
            await self._written.wait()
        return self._current


@dataclass
class Hosted:
    """Implements `trivet.Host`."""

    region: str = "us-east-1"
    account: str = "123456789012"
    publisher: Published = field(default_factory=Published)
    triggers: Given = field(default_factory=Given)
    memory: Remembered = field(default_factory=Remembered)
