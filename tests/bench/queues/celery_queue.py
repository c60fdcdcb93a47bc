"""Celery with a job that does nothing; `celery -A MODULE worker`.

Imported by name: it is not among the project's own packages.
"""

from __future__ import annotations

import importlib
import os
import time
from typing import Any

from tests.bench.queues.probe import started


def job(published: float) -> None:
    started(published)


app: Any = importlib.import_module("celery").Celery("bench", broker=os.environ["BENCH_QUEUE"])
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,  # at least once, like the others: by default it acknowledges first
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
noop: Any = app.task(name="noop")(job)


async def ready() -> None:
    pass


async def publish() -> None:
    noop.delay(time.time())


async def publish_many(count: int) -> None:
    for _ in range(count):
        await publish()
