"""taskiq over a Redis stream, with a job that does nothing; `taskiq worker MODULE:broker`.

Imported by name: it is not among the project's own packages.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from typing import Any

from tests.bench.queues.probe import started


async def job(published: float) -> None:
    started(published)


# "0": what was published before the first worker came counts too.
broker: Any = importlib.import_module("taskiq_redis").RedisStreamBroker(
    os.environ["BENCH_QUEUE"], consumer_id="0", max_connection_pool_size=100
)
noop: Any = broker.task(task_name="noop")(job)


async def ready() -> None:
    await broker.startup()


async def publish() -> None:
    await noop.kiq(time.time())


async def publish_many(count: int) -> None:
    await asyncio.gather(*(publish() for _ in range(count)))
