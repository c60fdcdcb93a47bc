"""Timetable: every schedule, when its next slot is, and the slots it fires.

A slot fires once, whatever happens: its event carries a key, and the last slot is remembered. Slots
that nobody was there for are caught up if they are not too old. A clock that jumps ahead, or a
machine that slept, is given one slot instead of all those it passed over; a clock that is set back
meets keys that were used.
"""

from __future__ import annotations

import logging
import time
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Protocol

import anyio

from trivet import (
    Expression,
    Host,
    Schedule,
    Throttled,
    TriggerSet,
    TrivetError,
    Unavailable,
    due_slots,
    next_slot,
    parse_schedule,
)
from trivet_adapters.cron.events import scheduled_event, slot_key

log = logging.getLogger(__name__)

CATCH_UP = timedelta(minutes=5)  # a missed slot older than this is skipped
LOOK_AGAIN_S = 5.0  # how soon a clock that was set is noticed
TRY_AGAIN = timedelta(seconds=1)  # after a slot that could not be published
JUMP_S = 5.0  # the two clocks never part by this much without a jump

_LAST = b"last"


class Clock(Protocol):
    """The two clocks of a machine: one is set, the other only runs."""

    def now(self) -> datetime: ...

    def monotonic_s(self) -> float: ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        # It stands still while the machine sleeps, so that waking is a jump too.
        return time.monotonic()


@dataclass(slots=True, eq=False)
class _Entry:
    schedule: Schedule
    expression: Expression
    zone: tzinfo
    start: datetime
    last: datetime  # no slot up to here will fire any more
    next: datetime | None  # when to look at it again


async def run(host: Host) -> None:
    """Fire the slots of all schedules, for as long as the process lives."""
    timetable = Timetable(host, SystemClock())
    changed = anyio.Event()

    async def follow() -> None:
        nonlocal changed
        seen: TriggerSet | None = None
        while True:
            found = await host.triggers.other_than(seen)
            if await timetable.hold(found.schedules):
                seen = found
                changed.set()
            else:
                await anyio.sleep(TRY_AGAIN.total_seconds())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        while True:
            wait_s = await timetable.turn()
            with anyio.move_on_after(wait_s):
                await changed.wait()
            changed = anyio.Event()


class Timetable:
    """The schedules that are there, and how far each of them got."""

    def __init__(self, host: Host, clock: Clock) -> None:
        self._host = host
        self._clock = clock
        self._entries: dict[str, _Entry] = {}  # by the schedule's id
        self._looked = (clock.now(), clock.monotonic_s())

    def __repr__(self) -> str:
        return f"<Timetable of {len(self._entries)} schedules>"

    async def hold(self, schedules: tuple[Schedule, ...]) -> bool:
        """Let these be the schedules. False: what is remembered of them cannot be read now."""
        entries = {}
        try:
            for schedule in schedules:
                known = self._entries.get(schedule.id)
                entries[schedule.id] = known or await self._entry(schedule)
        except Unavailable as error:
            log.warning("schedules: %s", error.message)
            return False
        self._entries = entries
        return True

    async def turn(self) -> float:
        """Fire what is due; the seconds until the next look."""
        now, jump_s = self._look()
        if jump_s < -JUMP_S:
            self._set_back(now)
        due = [e for e in self._entries.values() if e.next is not None and e.next <= now]
        async with anyio.create_task_group() as tasks:
            for entry in due:
                tasks.start_soon(self._fire, entry, now, jump_s > JUMP_S)
        soonest = min((e.next for e in self._entries.values() if e.next), default=None)
        if soonest is None:
            return LOOK_AGAIN_S
        wait_s = (soonest - self._clock.now()).total_seconds()
        return min(max(wait_s, 0.0), LOOK_AGAIN_S)

    def _look(self) -> tuple[datetime, float]:
        """The time, and by how much it was set since the last look."""
        now, monotonic_s = self._clock.now(), self._clock.monotonic_s()
        before, monotonic_before_s = self._looked
        self._looked = (now, monotonic_s)
        return now, (now - before).total_seconds() - (monotonic_s - monotonic_before_s)

    def _set_back(self, now: datetime) -> None:
        """Slots come again that fired already: their keys were used, so none fires twice."""
        for entry in self._entries.values():
            entry.last = min(entry.last, now)
            entry.next = self._next(entry)

    async def _entry(self, schedule: Schedule) -> _Entry:
        start = datetime.fromtimestamp(schedule.created_ms // 1000, UTC)
        remembered = (await self._host.memory.recall(schedule)).get(_LAST)
        last = datetime.fromisoformat(remembered.decode()) if remembered else start
        entry = _Entry(
            schedule=schedule,
            expression=parse_schedule(schedule.expression),
            zone=UTC if schedule.timezone == "UTC" else zoneinfo.ZoneInfo(schedule.timezone),
            start=start,
            last=min(last, self._clock.now()),
            next=None,
        )
        entry.next = self._next(entry)
        return entry

    def _next(self, entry: _Entry) -> datetime | None:
        return next_slot(entry.expression, entry.last, entry.zone, start=entry.start)

    async def _fire(self, entry: _Entry, now: datetime, after_jump: bool) -> None:
        name = entry.schedule.name
        due = due_slots(
            entry.expression,
            last=entry.last,
            now=now,
            window=CATCH_UP,
            zone=entry.zone,
            start=entry.start,
        )
        slots = due.slots[-1:] if after_jump else due.slots
        if due.is_late or len(slots) < len(due.slots):
            since = entry.last.isoformat(timespec="seconds")
            log.warning("schedule %s: slots since %s are skipped, they are too old", name, since)
        for slot in slots:
            if not await self._publish(entry.schedule, slot):
                entry.next = now + TRY_AGAIN
                return
            entry.last = slot
        entry.last = now
        entry.next = self._next(entry)
        try:
            await self._host.memory.remember(
                entry.schedule, {_LAST: entry.last.isoformat().encode()}
            )
        except Unavailable as error:
            # Should this process end now, the keys of the slots keep them from firing again.
            log.warning("schedule %s: %s", name, error.message)

    async def _publish(self, schedule: Schedule, slot: datetime) -> bool:
        """False: it may be tried again."""
        event = scheduled_event(schedule, slot, self._host)
        try:
            await self._host.publisher.publish(event, once=slot_key(schedule, slot))
        except (Throttled, Unavailable) as error:
            log.warning("schedule %s: %s", schedule.name, error.message)
            return False
        except TrivetError as error:
            log.warning("schedule %s does not fire at %s: %s", schedule.name, slot, error.message)
        return True
