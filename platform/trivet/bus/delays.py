"""Delays: events that wait for their next attempt, and the timers that put them back.

An event waits in its function's own sorted set. Which functions have one due, and when, is hinted
in a few shared sets, one timer each; what a lost hint would delay, the sweep of the backlog finds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import anyio.abc
import hiredis
import structlog

from trivet.bus import keys
from trivet.bus.resp import Connection
from trivet.bus.scripts import script

log = structlog.get_logger()

WAKE = script("wake")

MOST_AT_ONCE = 100  # events of one function, and functions of one shard, in one go


class Delays:
    """The timers of one connection to the durable server, which must know `WAKE`."""

    def __init__(
        self, out: Connection, woken: Callable[[str], None], tasks: anyio.abc.TaskGroup
    ) -> None:
        """`woken(function)` hears of events that are back on their stream."""
        self._out = out
        self._woken = woken
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._dues: dict[int, float] = {}  # of each timer, in ms since the Unix epoch

    def __repr__(self) -> str:
        return f"<Delays {len(self._timers)} timers>"

    def parked(self, function: str, due_ms: float) -> None:
        """An event of `function` was parked until then."""
        shard = keys.due_shard(function)
        command = ("ZADD", keys.due(shard), "LT", str(int(due_ms)), function)
        self._tasks.start_soon(self._quietly, *command)
        self._set_timer(shard, due_ms)

    async def look(self) -> None:
        """Set the timers by the hints that are there: others may have left some."""
        for shard in range(keys.DUE_SHARDS):
            found = await self._out.call("ZRANGE", keys.due(shard), 0, 0, "WITHSCORES")
            if found:
                self._set_timer(shard, float(found[1]))

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _set_timer(self, shard: int, due_ms: float) -> None:
        timer = self._timers.get(shard)
        if timer is not None:
            if self._dues[shard] <= due_ms:
                return
            timer.cancel()
        self._dues[shard] = due_ms
        wait_s = max(0.0, due_ms / 1000 - time.time())
        self._timers[shard] = self._loop.call_later(wait_s, self._fired, shard)

    def _fired(self, shard: int) -> None:
        del self._timers[shard]
        self._tasks.start_soon(self._wake_shard, shard)

    async def _wake_shard(self, shard: int) -> None:
        key = keys.due(shard)
        try:
            now = str(int(time.time() * 1000))
            limit = ("LIMIT", 0, MOST_AT_ONCE)
            functions = await self._out.call("ZRANGE", key, "-inf", now, "BYSCORE", *limit)
            for name in functions:
                await self._wake(shard, name.decode())
            found = await self._out.call("ZRANGE", key, 0, 0, "WITHSCORES")
        except (OSError, hiredis.HiredisError) as error:
            log.warning("delays.interrupted", error=str(error))  # the next connection looks anew
            return
        if found:
            self._set_timer(shard, float(found[1]))

    async def _wake(self, shard: int, function: str) -> None:
        while True:
            names = (keys.delayed(function), keys.parked(function), keys.durable_stream(function))
            now = str(int(time.time() * 1000))
            count, due = await self._out.call("EVALSHA", WAKE.sha, 3, *names, now, MOST_AT_ONCE)
            if count:
                self._woken(function)
            if count < MOST_AT_ONCE:
                break
        if due:
            await self._out.call("ZADD", keys.due(shard), str(int(float(due))), function)
        else:
            # One parked just now may lose its hint here; the sweep of the backlog finds it.
            await self._out.call("ZREM", keys.due(shard), function)

    async def _quietly(self, *command: str) -> Any:
        try:
            return await self._out.call(*command)
        except (OSError, hiredis.HiredisError) as error:
            log.warning("delays.interrupted", error=str(error))
