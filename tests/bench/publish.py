"""Publish: asynchronous invocations that are on disk when they are answered, beside plain XADD.

The events are run while others are published, as they are in life; before the next turn the lane
is empty again.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from functools import partial

import anyio
from tests.bench.endpoints import EVENT
from tests.bench.figures import Figure, Measurement, Options, compared
from tests.bench.load import load
from tests.bench.platforms import Platform, await_that, trivet
from tests.bench.streams import add, flushing_server

from trivet import AsyncClient

CLIENTS = (1, 16, 64)
ENVIRONMENTS = 2
FUNCTION = "bench-hello"
IN_BATCHES = 4_000  # events given to publish_many at once
BATCH = 1_000  # what it sends as one request, of which a few are on their way at once
BATCHES_IN_FLIGHT = 4


def measured(options: Options) -> list[Figure]:
    with (
        trivet(max_environments=str(ENVIRONMENTS)) as platform,
        flushing_server() as path,
    ):
        platform.endpoint.deploy(FUNCTION)
        platform.endpoint.call(FUNCTION)
        _assert_accepted(platform)
        figures = []
        # What was published in half the time takes several times as long to run.
        seconds = max(1, options.seconds // 2)
        runs: dict[str, Callable[[], Measurement]]
        for clients in CLIENTS:
            runs = {
                "trivet": partial(_publish, platform, clients, seconds),
                "plain XADD": partial(add, path, EVENT, clients, seconds, 1),
            }
            case = f"{clients} clients"
            figures.append(compared("publish", case, runs, of="per_s", rounds=options.rounds))
        runs = {
            "trivet": partial(_publish_many, platform),
            "plain XADD": partial(add, path, EVENT, BATCHES_IN_FLIGHT, 1, BATCH),
        }
        case = "publish_many"
        figures.append(compared("publish", case, runs, of="per_s", rounds=options.rounds))
        return figures


def _assert_accepted(platform: Platform) -> None:
    request = platform.endpoint.invocation(FUNCTION, asynchronous=True)
    asked = urllib.request.Request(
        request.url, request.body.encode(), request.headers, method=request.method
    )
    with urllib.request.urlopen(asked, timeout=5) as answer:
        assert answer.status == 202, answer.status


def _publish(platform: Platform, clients: int, seconds: float) -> Measurement:
    request = platform.endpoint.invocation(FUNCTION, asynchronous=True)
    found = load(request, clients, seconds)
    _await_empty(platform)
    return found


def _publish_many(platform: Platform) -> Measurement:
    """And how many ran per second, from the first one published until none was left."""
    began = time.perf_counter()
    took_s = anyio.run(_timed_publish_many, platform)
    _await_empty(platform)
    return {
        "per_s": IN_BATCHES / took_s,
        "run_per_s": IN_BATCHES / (time.perf_counter() - began),
    }


async def _timed_publish_many(platform: Platform) -> float:
    there = platform.endpoint
    async with AsyncClient(
        there.url, access_key=there.access_key, secret=there.secret, region=there.region
    ) as client:
        began = time.perf_counter()
        ids = await client.publish_many((FUNCTION, EVENT.encode()) for _ in range(IN_BATCHES))
        took_s = time.perf_counter() - began
    assert all(ids)
    return took_s


def _await_empty(platform: Platform) -> None:
    def is_empty() -> bool:
        told = platform.metrics()
        published = told["trivet_published_total{lane=durable}"]
        return told["trivet_invocations_total{lane=durable}"] >= published

    await_that(is_empty, "all published events have run")
