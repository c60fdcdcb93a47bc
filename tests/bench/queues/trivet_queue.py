"""Trivet's own client, as a queue to publish to."""

from __future__ import annotations

import os
import time

from trivet import AsyncClient
from trivet.errors import Unavailable

FUNCTION = "bench-noop"

_client: list[AsyncClient] = []


async def ready() -> None:
    there = AsyncClient(
        os.environ["BENCH_QUEUE"],
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret=os.environ["AWS_SECRET_ACCESS_KEY"],
        region=os.environ["AWS_DEFAULT_REGION"],
    )
    _client.append(await there.__aenter__())


async def publish() -> None:
    await _client[0].publish(FUNCTION, {"published": time.time()})


async def publish_many(count: int) -> None:
    while count > 0:
        events = ((FUNCTION, {"published": time.time()}) for _ in range(count))
        try:
            await _client[0].publish_many(events)
        except Unavailable as refusal:
            # The disk stood still for seconds, as it does where others use it too.
            ids = refusal.members["ids"]
            assert isinstance(ids, list)
            count -= len(ids)
        else:
            return
