"""Functions: the record of each on the durable server, in memory for whoever invokes it.

The gateway that holds this store is the only writer, so its memory is never behind. A write whose
fate is unknown (the server went away in the middle) is forgotten here and read again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgpack
from redis.asyncio import Redis

from trivet.bus import keys
from trivet.bus.scripts import script
from trivet.core.functions import (
    Function,
    FunctionVersion,
    function_from_record,
    function_to_record,
    version_from_record,
    version_to_record,
)
from trivet.errors import Conflict, FunctionNotFound, PreconditionFailed
from trivet.store.durable import durable_call

SUPERSEDED_LIFETIME_S = 3_600

STALE_REVISION = (
    "The Revision Id provided does not match the latest Revision Id. "
    "Call the GetFunction/GetAlias API to retrieve the latest Revision Id"
)


class FunctionStore:
    """All functions of the account."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._create = redis.register_script(script("create_record").source)
        self._replace = redis.register_script(script("replace_record").source)
        self._delete = redis.register_script(script("delete_record").source)
        self._known: dict[str, Function] = {}
        # A read that began before a write must not put back what the write replaced.
        self._writes = 0
        self._writing = anyio.Lock()

    def __repr__(self) -> str:
        return f"<FunctionStore {len(self._known)} in memory>"

    def cached(self, name: str) -> Function | None:
        """The function if it is in memory already; None says nothing."""
        return self._known.get(name)

    async def get(self, name: str) -> Function | None:
        known = self._known.get(name)
        if known is not None:
            return known
        writes = self._writes
        with durable_call():
            record: Any = await self._redis.get(keys.function_record(name))
            if record is None:
                return None
            # The index is written after the record. A crash in between is repaired here.
            await self._redis.zadd(keys.FUNCTIONS, {name: 0}, nx=True)
        function = _unpacked(record)
        if writes == self._writes:
            self._known[name] = function
        return function

    async def fetch(self, name: str) -> Function | None:
        """The function as the server has it now, for processes that do not write it."""
        with durable_call():
            record: Any = await self._redis.get(keys.function_record(name))
        return None if record is None else _unpacked(record)

    async def create(self, function: Function) -> None:
        """Keep a new function. Raises Conflict if the name is taken."""
        name, version = function.name, function.latest
        async with self._writes_to(name):
            created = await self._create(
                keys=[keys.function_record(name), keys.version_record(name, version.key)],
                args=[_packed(function), _packed_version(version), function.revision_id],
            )
            if created:
                await self._redis.zadd(keys.FUNCTIONS, {name: 0})
        if not created:
            raise Conflict(f"Function already exist: {name}")
        self._known[name] = function

    async def replace(self, function: Function, expected_revision: str) -> None:
        """Keep `function` in place of the one whose revision was `expected_revision`.

        Raises PreconditionFailed if somebody else replaced that before, and FunctionNotFound.
        """
        name, version = function.name, function.latest
        before = await self.get(name)
        superseded = version if before is None else before.latest
        async with self._writes_to(name):
            replaced = await self._replace(
                keys=[
                    keys.function_record(name),
                    keys.version_record(name, version.key),
                    keys.version_record(name, superseded.key),
                ],
                args=[
                    _packed(function),
                    _packed_version(version),
                    function.revision_id,
                    expected_revision,
                    SUPERSEDED_LIFETIME_S,
                ],
            )
        if replaced == 0:
            raise PreconditionFailed(STALE_REVISION)
        if replaced < 0:
            raise FunctionNotFound(f"Function not found: {name}")
        self._known[name] = function

    async def delete(self, name: str) -> None:
        """Delete the function. Raises FunctionNotFound if there is none."""
        function = await self.get(name)
        if function is None:
            raise FunctionNotFound(f"Function not found: {name}")
        async with self._writes_to(name):
            await self._delete(
                keys=[
                    keys.function_record(name),
                    keys.version_record(name, function.latest.key),
                    keys.function_urls(name),
                ],
                args=[SUPERSEDED_LIFETIME_S],
            )
            await self._redis.zrem(keys.FUNCTIONS, name)

    async def list(self, after: str | None, limit: int) -> list[Function]:
        """Up to `limit` functions in the order of their names, those after `after`.

        Fewer only at the end of the list.
        """
        found: list[Function] = []
        while len(found) < limit:
            names = await self._names(after, limit - len(found))
            if not names:
                break
            after = names[-1]
            for name in names:
                function = await self.get(name)
                if function is None:
                    await self._repair(name)
                else:
                    found.append(function)
        return found

    async def count(self) -> int:
        with durable_call():
            return int(await self._redis.zcard(keys.FUNCTIONS))

    async def version(self, name: str, key: str) -> FunctionVersion | None:
        """The version that `key` names, also for a while after it was superseded."""
        known = self._known.get(name)
        if known is not None and known.latest.key == key:
            return known.latest
        with durable_call():
            record = await self._redis.get(keys.version_record(name, key))
        return None if record is None else version_from_record(msgpack.unpackb(record))

    async def _names(self, after: str | None, count: int) -> tuple[str, ...]:
        start = "-" if after is None else f"({after}"
        with durable_call():
            names: Any = await self._redis.zrange(
                keys.FUNCTIONS, start, "+", bylex=True, offset=0, num=count
            )
        return tuple(name.decode() for name in names)

    async def _repair(self, name: str) -> None:
        """Take a name off the index whose function is gone: a crash came between the two."""
        async with self._writes_to(name):
            if not await self._redis.exists(keys.function_record(name)):
                await self._redis.zrem(keys.FUNCTIONS, name)

    @asynccontextmanager
    async def _writes_to(self, name: str) -> AsyncIterator[None]:
        """One write at a time. Before, during and after it, no read may keep what it saw."""
        with durable_call():
            async with self._writing:
                self._forget(name)
                try:
                    yield
                finally:
                    self._forget(name)

    def _forget(self, name: str) -> None:
        self._writes += 1
        self._known.pop(name, None)


def _packed(function: Function) -> bytes:
    return _bytes(function_to_record(function))


def _packed_version(version: FunctionVersion) -> bytes:
    return _bytes(version_to_record(version))


def _bytes(record: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(record)
    return packed


def _unpacked(record: bytes) -> Function:
    return function_from_record(msgpack.unpackb(record))
