"""Bills: what each function used in a month, and the Readings it is the sum of."""

from __future__ import annotations

from typing import Any

import structlog
from redis.asyncio import Redis

from trivet.bus import keys
from trivet.bus.readings import unpack_readings
from trivet.core.billing import Usage, usage_of
from trivet.store.durable import durable_call

log = structlog.get_logger()

READ_ENTRIES = 1_000


class BillStore:
    """The bills of all functions, deleted ones included."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def month(self, month: str) -> dict[str, Usage]:
        """What each function used in `month` ("2026-11")."""
        usages = {}
        for function in await self._functions(month):
            with durable_call():
                bill: Any = await self._redis.hgetall(keys.month_bill(function, month))
            requests, mb_ms = int(bill.get(b"requests", 0)), int(bill.get(b"mb_ms", 0))
            if requests:
                usages[function] = Usage(requests, mb_ms)
        return usages

    async def recomputed(self, month: str) -> dict[str, Usage]:
        """The same, added up anew from the Readings that are kept."""
        usages = {}
        for function in await self._functions(month):
            total = Usage()
            start = "-"
            while True:
                with durable_call():
                    entries: Any = await self._redis.xrange(
                        keys.readings(function), start, "+", count=READ_ENTRIES
                    )
                for entry_id, fields in entries:
                    start = f"({entry_id.decode()}"
                    try:
                        read = unpack_readings(function, fields[b"r"])
                    except (KeyError, TypeError, ValueError) as error:
                        # No supervisor of ours wrote it, so it is in no bill either.
                        log.warning("reading.malformed", function=function, error=repr(error))
                        continue
                    total += usage_of(r for r in read if r.month == month)
                if len(entries) < READ_ENTRIES:
                    break
            if total.requests:
                usages[function] = total
        return usages

    async def _functions(self, month: str) -> list[str]:
        with durable_call():
            names: Any = await self._redis.smembers(keys.billed_functions(month))
        return sorted(name.decode() for name in names)
