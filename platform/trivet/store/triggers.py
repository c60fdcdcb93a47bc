"""Triggers: schedules and watched folders, and what their adapters remember of each.

The gateway is the only writer of triggers; their adapters look whether anything changed, and write
their memories. A memory belongs to one trigger and goes with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import anyio
import msgpack
from redis.asyncio import Redis

from trivet.bus import keys
from trivet.bus.scripts import script
from trivet.core.triggers import (
    FileTrigger,
    Schedule,
    Trigger,
    TriggerSet,
    trigger_from_record,
    trigger_to_record,
)
from trivet.store.durable import durable_call

# The field of a memory that says whose it is. Nothing that is remembered has an empty name.
_OWNER = b""

# Of a memory, written in one step: the server does nothing else meanwhile.
_AT_ONCE = 500


class TriggerStore:
    """All triggers of the account but the routes."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._remember = redis.register_script(script("remember").source)
        self._writing = anyio.Lock()

    async def get(self, name: str) -> Trigger | None:
        with durable_call():
            record: Any = await self._redis.hget(keys.TRIGGERS, name)
        return None if record is None else _unpacked(record)

    async def all(self) -> TriggerSet:
        with durable_call():
            records: Any = await self._redis.hvals(keys.TRIGGERS)
        triggers = sorted(map(_unpacked, records), key=lambda trigger: trigger.name)
        return TriggerSet(
            schedules=tuple(t for t in triggers if isinstance(t, Schedule)),
            files=tuple(t for t in triggers if isinstance(t, FileTrigger)),
        )

    async def version(self) -> int:
        """A number that is another one after every change."""
        with durable_call():
            version: Any = await self._redis.get(keys.TRIGGERS_VERSION)
        return int(version or 0)

    async def put(self, trigger: Trigger) -> None:
        """Keep a trigger, in place of the one that had its name."""
        with durable_call():
            async with self._writing:
                memory = keys.trigger_memory(trigger.name)
                # The memory first: a trigger without one would remember nothing.
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.delete(memory)
                    pipe.hset(memory, mapping={_OWNER: trigger.id})
                    await pipe.execute()
                packed: Any = msgpack.packb(trigger_to_record(trigger))
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.hset(keys.TRIGGERS, trigger.name, packed)
                    pipe.incr(keys.TRIGGERS_VERSION)
                    await pipe.execute()

    async def delete(self, name: str) -> bool:
        """Delete a trigger and its memory. False if there was none."""
        with durable_call():
            async with self._writing:
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.hdel(keys.TRIGGERS, name)
                    pipe.incr(keys.TRIGGERS_VERSION)
                    deleted, _ = await pipe.execute()
                await self._redis.delete(keys.trigger_memory(name))
                return bool(deleted)

    async def recall(self, trigger: Trigger) -> dict[bytes, bytes]:
        """What is remembered of a trigger; nothing if it went."""
        with durable_call():
            memory: Any = await self._redis.hgetall(keys.trigger_memory(trigger.name))
        owner = memory.pop(_OWNER, b"")
        return memory if owner == trigger.id.encode() else {}

    async def remember(self, trigger: Trigger, values: Mapping[bytes, bytes | None]) -> None:
        """Keep these values, and forget those that are None; on disk when it returns.

        Nothing is kept of a trigger that went.
        """
        kept = [(name, value) for name, value in values.items() if value is not None]
        forgotten = [name for name, value in values.items() if value is None]
        for begin in range(0, max(len(kept), len(forgotten)), _AT_ONCE):
            pairs = kept[begin : begin + _AT_ONCE]
            names = forgotten[begin : begin + _AT_ONCE]
            with durable_call():
                await self._remember(
                    keys=[keys.trigger_memory(trigger.name)],
                    args=[trigger.id, len(pairs), *itertools.chain(*pairs), *names],
                )


def _unpacked(record: bytes) -> Trigger:
    return trigger_from_record(msgpack.unpackb(record))
