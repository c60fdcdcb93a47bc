"""Books: all that a server keeps of a function's asynchronous events, and what must always hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgpack

from trivet.bus import frames, keys
from trivet.bus.readings import unpack_readings
from trivet.core.retries import STATES, Progress


@dataclass(frozen=True, slots=True)
class Ended:
    """An entry of the ledger."""

    request_id: str
    state: str
    progress: Progress
    condition: str


@dataclass(frozen=True, slots=True)
class Books:
    """Of one function."""

    name: str
    totals: Counter[str]
    ledger: list[Ended]
    on_stream: dict[str, Progress]  # by entry id
    pending: dict[str, str]  # entry id to the consumer that has it
    parked: dict[str, Progress]  # by origin
    delayed: dict[str, float]  # origin to when it is due
    outbox: int
    billed: Counter[str]  # the bill, over all months
    readings: Counter[str]  # how many, by request id

    @property
    def progresses(self) -> list[Progress]:
        """Of every event."""
        ended = [entry.progress for entry in self.ledger]
        return [*ended, *self.on_stream.values(), *self.parked.values()]

    def errors(self) -> Iterator[str]:
        """What does not hold at this moment, in words; it must at every moment."""
        name, totals = self.name, self.totals
        ended, flying = sum(totals[s] for s in STATES), len(self.on_stream) + len(self.parked)
        if totals["accepted"] != ended + flying:
            yield f"I1 {name}: {totals['accepted']} accepted, {ended} ended, {flying} in flight"
        if self.parked.keys() != self.delayed.keys():
            yield f"I1 {name}: parked {[*self.parked]}, delayed {[*self.delayed]}"
        if lost := self.pending.keys() - self.on_stream.keys():
            yield f"I1 {name}: {lost} pending and gone"
        origins = Counter(progress.origin for progress in self.progresses)
        if twice := [origin for origin, count in origins.items() if count > 1]:
            yield f"I2 {name}: more than once there: {twice}"
        if Counter(entry.state for entry in self.ledger) != Counter({s: totals[s] for s in STATES}):
            yield f"I2 {name}: the ledger and its totals differ"
        attempts = sum(len(progress.attempts) for progress in self.progresses)
        counts = (attempts, totals["requests"], self.billed["requests"], self.readings.total())
        if len({*counts}) > 1:
            yield f"I3 {name}: (attempts, totals, bill, readings) are {counts}"
        mb_ms = sum(a.billed_ms * a.memory_mb for p in self.progresses for a in p.attempts)
        if not mb_ms == totals["mb_ms"] == self.billed["mb_ms"]:
            yield f"I4 {name}: {mb_ms} used, {totals['mb_ms']}, {self.billed['mb_ms']} billed"
        if totals["outbox"] != self.outbox + totals["delivered"] + totals["undelivered"]:
            yield f"I5 {name}: outbox {self.outbox}, {dict(totals)}"
        aborted = sum(progress.aborted for progress in self.progresses)
        if aborted != totals["aborted"]:
            yield f"I6 {name}: {aborted} aborted, {totals['aborted']} in its totals"


def read_books(redis: Any, function: str) -> Books:
    totals = redis.hgetall(keys.totals(function))
    billed: Counter[str] = Counter()
    for key in redis.scan_iter(match=keys.month_bill(function, "*"), count=1000):
        billed.update({name.decode(): int(n) for name, n in redis.hgetall(key).items()})
    stream = keys.durable_stream(function)
    groups = redis.xinfo_groups(stream) if redis.exists(stream) else []
    found = redis.xpending_range(stream, keys.GROUP, "-", "+", 1000) if groups else []
    return Books(
        name=function,
        totals=Counter({name.decode(): int(count) for name, count in totals.items()}),
        ledger=[_ended(fields) for _, fields in redis.xrange(keys.ledger(function))],
        on_stream={i.decode(): _progress(i.decode(), fields) for i, fields in redis.xrange(stream)},
        pending={each["message_id"].decode(): each["consumer"].decode() for each in found},
        parked={
            origin.decode(): frames.unpack_progress(msgpack.unpackb(packed, raw=True)[1])
            for origin, packed in redis.hgetall(keys.parked(function)).items()
        },
        delayed={
            origin.decode(): due
            for origin, due in redis.zrange(keys.delayed(function), 0, -1, withscores=True)
        },
        outbox=redis.xlen(keys.outbox(function)),
        billed=billed,
        readings=Counter(
            reading.request_id
            for _, fields in redis.xrange(keys.readings(function))
            for reading in unpack_readings(function, fields[b"r"])
        ),
    )


def _progress(entry_id: str, fields: dict[bytes, bytes]) -> Progress:
    packed = fields.get(b"p")
    return Progress(entry_id) if packed is None else frames.unpack_progress(packed)


def _ended(fields: dict[bytes, bytes]) -> Ended:
    request_id, state, condition = (fields[name].decode() for name in (b"i", b"s", b"c"))
    return Ended(request_id, state, frames.unpack_progress(fields[b"p"]), condition)
