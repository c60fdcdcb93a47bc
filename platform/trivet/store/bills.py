"""Bills: what each function used in a month, and the Readings it is the sum of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio.lowlevel
import structlog
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from trivet.bus import keys
from trivet.bus.readings import unpack_readings
from trivet.core.billing import Reading, Usage, usage_of
from trivet.store.durable import durable_call

log = structlog.get_logger()

READ_ENTRIES = 250
_MOST_ON_A_PAGE = 500  # Readings, of which an entry may hold several


class BillStore:
    """The bills of all functions, deleted ones included."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def month(self, month: str) -> dict[str, Usage]:
        """What each function used in `month` ("2026-11")."""
        usages = {}
        for function in await self._functions(month):
            used = await self.used(function, month)
            if used.requests:
                usages[function] = used
        return usages

    async def used(self, function: str, month: str) -> Usage:
        with durable_call():
            bill: Any = await self._redis.hgetall(keys.month_bill(function, month))
        return Usage(int(bill.get(b"requests", 0)), int(bill.get(b"mb_ms", 0)))

    async def recomputed(self, month: str) -> dict[str, Usage]:
        """The same, added up anew from the Readings that are kept."""
        usages = {}
        for function in await self._functions(month):
            total = Usage()
            async for page in self.readings(function):
                total += usage_of(r for r in page if r.month == month)
            if total.requests:
                usages[function] = total
        return usages

    async def readings(self, function: str) -> AsyncIterator[list[Reading]]:
        """The Readings of `function` that are kept, in pages, the oldest first."""
        key, start = keys.readings(function), "-"
        while True:
            with durable_call():
                entries: Any = await self._redis.xrange(key, start, "+", count=READ_ENTRIES)
            page: list[Reading] = []
            for entry_id, fields in entries:
                start = f"({entry_id.decode()}"
                try:
                    page += unpack_readings(function, fields[b"r"])
                except (KeyError, TypeError, ValueError) as error:
                    # No supervisor of ours wrote it, so it is in no bill either.
                    log.warning("reading.malformed", function=function, error=repr(error))
                if len(page) >= _MOST_ON_A_PAGE:
                    yield page
                    page = []
                    await anyio.lowlevel.checkpoint()  # others are served in between
            yield page
            if len(entries) < READ_ENTRIES:
                return

    async def kept_since(self, function: str) -> int | None:
        """When the oldest Reading that is kept was written, in ms since the Unix epoch; None if
        none was ever forgotten."""
        with durable_call():
            try:
                stream: Any = await self._redis.xinfo_stream(keys.readings(function))
            except ResponseError:  # there is none
                return None
        oldest = stream["first-entry"]
        if oldest is None or stream["entries-added"] == stream["length"]:
            return None
        return int(oldest[0].partition(b"-")[0])

    async def _functions(self, month: str) -> list[str]:
        with durable_call():
            names: Any = await self._redis.smembers(keys.billed_functions(month))
        return sorted(name.decode() for name in names)
