"""ArdiQ with a job that does nothing; `ardiq run MODULE:app` works on it.

Imported by name: it is not among the project's own packages.
"""

from __future__ import annotations

import importlib
import os
import time
from typing import Any

from tests.bench.queues.probe import started


async def job(published: float) -> None:
    started(published)


# By default a worker holds 32 jobs and runs 16 at once.
_held = {"concurrency": 1, "prefetch": 1} if os.environ.get("BENCH_ONE_AT_A_TIME") else {}
app: Any = importlib.import_module("ardiq").Ardiq(os.environ["BENCH_QUEUE"], **_held)
noop: Any = app.task(name="noop")(job)


async def ready() -> None:
    pass


async def publish() -> None:
    await noop.enqueue(time.time())


async def publish_many(count: int) -> None:
    await app.enqueue_many([noop.prepare(time.time()) for _ in range(count)])
