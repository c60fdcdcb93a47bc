"""Accounts: what the platform kept and logged, counted without any of its own judges."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from tests.chaos.functions import DROP, ECHO, TICK, TOLD, WORK

from trivet.bus import frames, keys
from trivet.bus.readings import unpack_readings

_PAGE = 1_000


@dataclass
class Accounts:
    """By the number that an event carries in its payload, unless said otherwise."""

    ends: Counter[int] = field(default_factory=Counter)  # how often each has ended
    states: Counter[str] = field(default_factory=Counter)
    executions: Counter[int] = field(default_factory=Counter)  # attempts and aborted deliveries
    attempts: int = 0
    aborted: int = 0
    ids: set[str] = field(default_factory=set)  # request ids of all that ended
    slots: Counter[str] = field(default_factory=Counter)  # of the schedule, by their time
    files: Counter[str] = field(default_factory=Counter)  # by their name
    metered: set[str] = field(default_factory=set)  # request ids of synchronous calls
    logged: Counter[int] = field(default_factory=Counter)  # lines that say that it ran

    def __repr__(self) -> str:
        return f"<Accounts of {self.ends.total()} events>"


async def in_flight(durable: Redis) -> int:
    """Events that have not ended, and what destinations are still to be told."""
    count = 0
    for name in await _names(durable):
        pipe = durable.pipeline(transaction=False)
        pipe.xlen(keys.durable_stream(name))
        pipe.hlen(keys.parked(name))
        pipe.xlen(keys.outbox(name))
        count += sum(await pipe.execute())
    return count


async def counted(durable: Redis, logs: Path) -> Accounts:
    """Everything that is kept, once nothing is in flight any more."""
    found = Accounts()
    for name in await _names(durable):
        async for fields in _entries(durable, keys.ledger(name)):
            _count(found, name, fields)
    async for fields in _entries(durable, keys.readings(ECHO)):
        found.metered.update(r.request_id for r in unpack_readings(ECHO, fields[b"r"]))
    for name in (WORK, TOLD):
        _read_logs(found, logs / name)
    return found


async def _names(durable: Redis) -> list[str]:
    names: Any = await durable.smembers(keys.LEDGERS)
    return sorted(name.decode() for name in names)


async def _entries(durable: Redis, key: str) -> Any:
    start = "-"
    while True:
        page: Any = await durable.xrange(key, start, "+", count=_PAGE)
        for entry_id, fields in page:
            start = f"({entry_id.decode()}"
            yield fields
        if len(page) < _PAGE:
            return


def _count(found: Accounts, function: str, fields: dict[bytes, bytes]) -> None:
    progress = frames.unpack_progress(fields[b"p"])
    delivery = frames.unpack_event(function, b"", [b"e", fields[b"e"]])
    event = json.loads(delivery.payload)
    found.states[fields[b"s"].decode()] += 1
    found.attempts += len(progress.attempts)
    found.aborted += progress.aborted
    found.ids.add(fields[b"i"].decode())
    if function == TICK:
        found.slots[event["time"]] += 1
    elif function == DROP:
        found.files[event["Records"][0]["s3"]["object"]["key"]] += 1
    elif "n" in event:
        found.ends[event["n"]] += 1
        found.executions[event["n"]] += len(progress.attempts) + progress.aborted


def _read_logs(found: Accounts, folder: Path) -> None:
    for path in folder.iterdir() if folder.exists() else ():
        for line in path.read_text(errors="replace").splitlines():
            try:
                _, _, _, _, text = json.loads(line)
            except ValueError:
                continue  # torn by a kill
            word, _, number = str(text).strip().partition(" ")
            if word == "ran" and number.lstrip("-").isdigit():
                found.logged[int(number)] += 1
