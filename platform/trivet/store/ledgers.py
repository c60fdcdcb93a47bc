"""Ledgers: asynchronous events wherever they are kept, read in pages that hold nobody up."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgpack
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from trivet.bus import frames, keys
from trivet.core.destinations import Destination
from trivet.core.ledger import DELAYED, WAITING, Counts, Record, Standing
from trivet.core.retries import STATES
from trivet.store.durable import durable_call

# An entry may hold a megabyte, and a hundred thousand of them may hold a few hundred bytes each.
_PAGE_BYTES = 1_048_576
_FEWEST, _MOST = 4, 200
_DELAYED_AT_ONCE = 20

_ENDED = "ended"  # a source of events, beside WAITING and DELAYED
_MARKER = re.compile(r"delayed:\d{1,9}|(?:waiting|ended):\d{1,20}-\d{1,20}", re.ASCII)
_BEGIN = f"{DELAYED}:0"
_ENTRY_ID = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)

Fields = dict[bytes, bytes]
Page = list[Record | None]
"""None stands for an entry that nobody of ours wrote."""


@dataclass(frozen=True, slots=True)
class Told:
    """An entry of the outbox: what a destination is still to be told."""

    origin: str
    target: str  # ARN
    body: bytes  # JSON


@dataclass(slots=True)
class _Measure:
    """How many entries to ask for, by the size of those before."""

    count: int = 16

    def note(self, sizes: Iterable[int]) -> None:
        seen = list(sizes)
        if seen:
            mean = max(1, sum(seen) // len(seen))
            self.count = min(_MOST, 4 * self.count, max(_FEWEST, _PAGE_BYTES // mean))


class LedgerStore:
    """The asynchronous events of all functions, deleted ones included. All of it raises
    Unavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def functions(self) -> list[str]:
        """Those that ever had an asynchronous event."""
        with durable_call():
            names: Any = await self._redis.smembers(keys.LEDGERS)
        return sorted(name.decode() for name in names)

    async def counts(self, function: str) -> Counts:
        with durable_call():
            async with self._redis.pipeline(transaction=True) as together:
                together.hgetall(keys.totals(function))
                together.xlen(keys.durable_stream(function))
                together.hlen(keys.parked(function))
                together.zcard(keys.delayed(function))
                together.xlen(keys.ledger(function))
                together.xlen(keys.outbox(function))
                totals, on_stream, parked, delayed, kept, outbox = await together.execute()
        return Counts(
            totals={name.decode(): int(value) for name, value in totals.items()},
            on_stream=on_stream,
            parked=parked,
            delayed=delayed,
            kept=kept,
            outbox=outbox,
        )

    # ------------------------------------------------------------------ all of them, in pages

    async def ended(
        self, function: str, after: str = "", *, newest_first: bool = False
    ) -> AsyncIterator[Page]:
        """The ledger's entries beyond the one with the id `after`."""
        key = keys.ledger(function)
        async for entries in self._entries(key, after, newest_first=newest_first):
            yield [_ended(function, *entry) for entry in entries]

    async def on_stream(
        self, function: str, after: str = "", *, newest_first: bool = False
    ) -> AsyncIterator[Page]:
        """Events that wait to be run, or are being run."""
        key = keys.durable_stream(function)
        async for entries in self._entries(key, after, newest_first=newest_first):
            yield [_waiting(function, *entry) for entry in entries]

    async def parked(self, function: str) -> AsyncIterator[Page]:
        """Events that wait for their next attempt, in no order; some of them twice, perhaps."""
        cursor, measure = 0, _Measure()
        while True:
            with durable_call():
                answer: Any = await self._redis.hscan(
                    keys.parked(function), cursor, count=measure.count
                )
            cursor, found = answer
            measure.note(map(len, found.values()))
            yield [_parked(function, packed) for packed in found.values()]
            if not cursor:
                return

    async def outbox(self, function: str) -> AsyncIterator[list[Told]]:
        async for entries in self._entries(keys.outbox(function)):
            yield [
                Told(f.get(b"o", b"").decode(), f.get(b"t", b"").decode(), f.get(b"b", b""))
                for _, f in entries
            ]

    async def _entries(
        self, key: str, after: str = "", *, newest_first: bool = False
    ) -> AsyncIterator[list[tuple[str, Fields]]]:
        measure = _Measure()
        while True:
            with durable_call():
                entries: Any
                if newest_first:
                    most = f"({after}" if after else "+"
                    entries = await self._redis.xrevrange(key, most, "-", count=measure.count)
                else:
                    least = f"({after}" if after else "-"
                    entries = await self._redis.xrange(key, least, "+", count=measure.count)
            if not entries:
                return
            found = [(entry_id.decode(), fields) for entry_id, fields in entries]
            after = found[-1][0]
            measure.note(sum(map(len, fields.values())) for _, fields in found)
            yield found

    # ------------------------------------------------------------------ some of them

    async def newest(
        self, function: str, standings: Collection[Standing], most: int, marker: str = ""
    ) -> tuple[list[Record], str]:
        """A page of at most `most` events, and the marker of the next one or "".

        Events in flight come first, then those that ended, the last one first; within a page they
        are ordered by when they were accepted. Raises ValueError for a marker that is none.
        """
        if not _MARKER.fullmatch(marker or _BEGIN):
            raise ValueError(f"'{marker}' is not a marker")
        first, _, after = (marker or _BEGIN).partition(":")
        sources = (DELAYED, WAITING, _ENDED)
        found: list[Record] = []
        for source in sources[sources.index(first) :]:
            place = after if source == first else ""
            async for record, next_place in self._from(source, function, place, standings):
                if record is None or record.standing not in standings:
                    continue
                found.append(record)
                if len(found) == most:
                    return _by_acceptance(found), f"{source}:{next_place}"
        return _by_acceptance(found), ""

    def _from(
        self, source: str, function: str, place: str, standings: Collection[Standing]
    ) -> AsyncIterator[tuple[Record | None, str]]:
        """The events of one source, each with the place behind it."""
        if source == DELAYED and DELAYED in standings:
            return self._delayed(function, int(place or "0"))
        if source == WAITING and WAITING in standings:
            return self._placed(self.on_stream(function, place, newest_first=True))
        if source == _ENDED and not {*standings}.isdisjoint(STATES):
            return self._placed(self.ended(function, place, newest_first=True))
        return _nothing()

    async def _placed(self, pages: AsyncIterator[Page]) -> AsyncIterator[tuple[Record | None, str]]:
        async for page in pages:
            for record in page:
                yield record, record.entry_id if record else ""

    async def _delayed(self, function: str, place: int) -> AsyncIterator[tuple[Record | None, str]]:
        """Those due last first, from a place in that order."""
        while True:
            with durable_call():
                dues: Any = await self._redis.zrange(
                    keys.delayed(function),
                    place,
                    place + _DELAYED_AT_ONCE - 1,
                    desc=True,
                    withscores=True,
                )
                if not dues:
                    return
                packed: Any = await self._redis.hmget(
                    keys.parked(function), [origin for origin, _ in dues]
                )
            for (_, due_ms), each in zip(dues, packed, strict=True):
                place += 1
                yield (_parked(function, each, int(due_ms)) if each else None), str(place)

    async def find(self, request_id: str, functions: Sequence[str]) -> Record | None:
        """The event with this id, of the first of `functions` that has it."""
        for function in functions:
            # It may move meanwhile, but only towards the end of this list.
            for places in (self.on_stream, self.parked, self.on_stream, self._ended_last):
                async for page in places(function):
                    for record in page:
                        if record is not None and record.request_id == request_id:
                            return await self._with_due(record)
        return None

    def _ended_last(self, function: str) -> AsyncIterator[Page]:
        return self.ended(function, newest_first=True)

    async def _with_due(self, record: Record) -> Record:
        if record.standing != DELAYED:
            return record
        with durable_call():
            due_ms: Any = await self._redis.zscore(
                keys.delayed(record.function), record.progress.origin
            )
        return replace(record, due_ms=None if due_ms is None else int(due_ms))

    async def entry(self, function: str, entry_id: str) -> Record | None:
        """The entry of the ledger with this id. Raises ValueError for what is no id."""
        if not _ENTRY_ID.fullmatch(entry_id):
            raise ValueError(f"'{entry_id}' is not the id of an entry")
        with durable_call():
            found: Any = await self._redis.xrange(keys.ledger(function), entry_id, entry_id)
        return _ended(function, entry_id, found[0][1]) if found else None

    async def running(self, record: Record) -> str:
        """Who runs an event that is on its stream: "node:epoch", or "" if it waits."""
        key = keys.durable_stream(record.function)
        with durable_call():
            if not record.entry_id or not await self._redis.exists(key):
                return ""
            try:
                pending: Any = await self._redis.xpending_range(
                    key, keys.GROUP, record.entry_id, record.entry_id, 1
                )
            except ResponseError:  # nobody ever read it
                return ""
        return pending[0]["consumer"].decode() if pending else ""

    async def was_told(self, target: Destination, once: str) -> bool:
        """Whether a destination knows this idempotency key, as it does for a day."""
        of_kind = keys.bus_once if target.kind == "bus" else keys.accepted_once
        with durable_call():
            return bool(await self._redis.exists(of_kind(target.name, once)))


async def _nothing() -> AsyncIterator[tuple[Record | None, str]]:
    for _ in ():
        yield _


def _by_acceptance(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.progress.accepted_ms, reverse=True)


def _ended(function: str, entry_id: str, fields: Fields) -> Record | None:
    try:
        standing = fields[b"s"].decode()
        if standing not in STATES:
            return None
        return Record(
            function=function,
            request_id=fields[b"i"].decode(),
            standing=standing,
            progress=frames.unpack_progress(fields[b"p"]),
            condition=fields[b"c"].decode(),
            entry_id=entry_id,
            target=fields.get(b"t", b"").decode(),
            packed=fields.get(b"e", b""),
        )
    except (KeyError, ValueError, frames.MalformedEvent):
        return None


def _waiting(function: str, entry_id: str, fields: Fields) -> Record | None:
    flat = [part for pair in fields.items() for part in pair]
    try:
        delivery = frames.unpack_durable(function, entry_id.encode(), flat)
    except frames.MalformedEvent:
        return None
    if delivery.progress is None:
        return None
    return Record(
        function=function,
        request_id=delivery.request_id,
        standing=WAITING,
        progress=delivery.progress,
        entry_id=entry_id,
        packed=flat[1],
    )


def _parked(function: str, packed: bytes, due_ms: int | None = None) -> Record | None:
    try:
        event, behind = msgpack.unpackb(packed, raw=True)
        delivery = frames.unpack_event(function, b"", [b"e", event])
        progress = frames.unpack_progress(behind)
    except (ValueError, TypeError, frames.MalformedEvent):
        return None
    return Record(
        function=function,
        request_id=delivery.request_id,
        standing=DELAYED,
        progress=progress,
        due_ms=due_ms,
        packed=event,
    )
