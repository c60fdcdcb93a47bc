"""Burst: from no environment to many at once, beside a plain process that forks as many.

All calls are sent at the same moment, and each occupies its environment until the last one has
surely begun, so that none is used twice. first_ms, median_ms and last_ms: when the first, the
middle and the last handler began.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterable
from functools import partial
from urllib.parse import urlsplit

from tests.bench.endpoints import PYTHON
from tests.bench.figures import Figure, Measurement, Options, compared
from tests.bench.forks import Forks, forking
from tests.bench.load import Request
from tests.bench.platforms import Platform, await_that, trivet

KEEP_WARM_MS = 200
# How long a handler stays, for each environment that is to be there beside it.
STAY_MS_EACH = 40
FUNCTION = "bench-burst"
TEXT = """
import time


def handler(event, context):
    began = time.time()
    time.sleep(event["stay_ms"] / 1000)
    return {"began": began}
"""


def measured(options: Options) -> list[Figure]:
    count = options.environments
    event = json.dumps({"stay_ms": STAY_MS_EACH * count})
    with (
        trivet(
            max_environments=str(count), keep_warm_ms=str(KEEP_WARM_MS), admission_wait_ms="60000"
        ) as platform,
        forking(TEXT, json.dumps({"stay_ms": 0})) as forks,
    ):
        platform.endpoint.deploy(FUNCTION, text=TEXT)
        subjects = {
            "trivet": partial(_calls, platform, event, count),
            "plain fork": partial(_forks, forks, event, count),
        }
        case = f"0 to {count} {PYTHON}"
        return [compared("burst", case, subjects, of="last_ms", rounds=options.rounds)]


def _calls(platform: Platform, event: str, count: int) -> Measurement:
    await_that(lambda: _is_cold(platform.metrics()), "it is cold again")
    request = platform.endpoint.invocation(FUNCTION, event=event)
    began, answers = asyncio.run(_all_at_once(request, count))
    found = [json.loads(answer).get("began") for answer in answers]
    times = [at for at in found if at is not None]
    return {**_measurement(began, times), "errors": count - len(times)}


def _is_cold(told: dict[str, float]) -> bool:
    stock = ("cell", "spare")
    waiting = sum(told.get(f"trivet_environments{{state={name}}}", 0.0) for name in stock)
    return told["trivet_environments"] == waiting


async def _all_at_once(request: Request, count: int) -> tuple[float, list[bytes]]:
    place = urlsplit(request.url)
    lines = [f"{request.method} {place.path} HTTP/1.1", f"Host: {place.netloc}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    lines += [f"Content-Length: {len(request.body)}", "Connection: close"]
    message = "\r\n".join([*lines, "", request.body]).encode()
    opened = [await asyncio.open_connection(place.hostname, place.port) for _ in range(count)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        _, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return body

    began = time.time()
    for _, writer in opened:
        writer.write(message)
    return began, await asyncio.gather(*(answer(*pair) for pair in opened))


def _forks(forks: Forks, event: str, count: int) -> Measurement:
    began = time.time()
    answers = forks.fork(event, count)
    return {**_measurement(began, (json.loads(each)["began"] for each in answers)), "errors": 0}


def _measurement(began: float, times: Iterable[float]) -> dict[str, float]:
    after_ms = sorted((at - began) * 1000 for at in times)
    return {
        "first_ms": after_ms[0],
        "median_ms": statistics.median(after_ms),
        "last_ms": after_ms[-1],
    }
