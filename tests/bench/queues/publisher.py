"""Publisher: publishes through a queue's own client, in a process of its own.

    python -m tests.bench.queues.publisher MODULE many COUNT
    python -m tests.bench.queues.publisher MODULE steadily RATE SECONDS

Steadily means by the clock: whoever waits for an answer holds nobody up. Prints how many were
accepted: where others use the disk too, it may stand still for so long that a client gives up.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import time
from typing import Any

BATCH = 1_000


async def many(queue: Any, count: int) -> int:
    for published in range(0, count, BATCH):
        await queue.publish_many(min(BATCH, count - published))
    return count


async def steadily(queue: Any, rate: int, seconds: int) -> int:
    began = time.perf_counter()
    tasks = []
    for number in range(rate * seconds):
        early = began + number / rate - time.perf_counter()
        if early > 0:
            await asyncio.sleep(early)
        tasks.append(asyncio.ensure_future(queue.publish()))
    found = await asyncio.gather(*tasks, return_exceptions=True)
    return sum(each is None for each in found)


async def main(module: str, how: str, *numbers: str) -> None:
    queue = importlib.import_module(module)
    await queue.ready()
    if how == "many":
        accepted = await many(queue, int(numbers[0]))
    else:
        accepted = await steadily(queue, int(numbers[0]), int(numbers[1]))
    print(accepted, flush=True)
    # A client may have threads that nobody ends.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
