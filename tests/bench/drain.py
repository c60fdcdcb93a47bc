"""Drain: how fast events run that were all published before, beside other queues.

All on one server, each in a database of its own, with the events published by its own client
before its worker begins; Trivet's supervisor is stopped in the meantime. Timed from the first to
the last: of the entries in Trivet's ledger, of the starts that the jobs of the others put on
record. Its limit is the same without a platform: nothing read ahead, one event at a time in each
worker, acknowledged after its job with the next read in one write. "ardiq, 1 at a time" is ArdiQ
set to promise as much; by itself it holds 32 jobs in each process and runs 16 at once, so that as
many are run again when it is killed.
"""

from __future__ import annotations

import operator
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from tests.bench.calls import Caller
from tests.bench.figures import Figure, Measurement, Options, compared
from tests.bench.platforms import Platform, await_that, trivet
from tests.bench.queues.peers import (
    ARDIQ,
    ARDIQ_ONE_AT_A_TIME,
    CELERY,
    LIMIT,
    QUEUES,
    TASKIQ,
    Peer,
    present,
)
from tests.bench.queues.processes import child_running, cpu_s
from tests.bench.queues.runs import ROOT, published, run
from tests.bench.queues.servers import ALWAYS, Server, server
from tests.bench.queues.trivet_queue import FUNCTION

from trivet.bus import keys

HOLD_S = 0.5
TEXT = """
import time


def handler(event, context):
    if "hold_s" in event:
        time.sleep(event["hold_s"])
"""


def measured(options: Options) -> list[Figure]:
    peers = present([LIMIT, ARDIQ, ARDIQ_ONE_AT_A_TIME, TASKIQ, CELERY], install=options.installs)
    with server(options.flushes) as there:
        return [_measured(options, there, peers, count) for count in options.counts]


def _measured(options: Options, there: Server, peers: list[Peer], count: int) -> Figure:
    case = f"{count} at work, appendfsync {options.flushes}"
    rates: dict[str, list[float]] = {}
    with platform_on(there, max_environments=str(count)) as platform:
        platform.endpoint.deploy(FUNCTION, text=TEXT)
        subjects: dict[str, Callable[[], Measurement]] = {
            "trivet": partial(_trivet, platform, there, count, options.events)
        }
        for database, peer in enumerate(peers, start=1):
            subjects[peer.name] = partial(_peer, peer, there, database, count, options.events)
        noted = {name: partial(_noted, rates, name, take) for name, take in subjects.items()}
        figure = compared("drain", case, noted, of="per_s", rounds=options.rounds)
    return with_spread(figure, rates)


@contextmanager
def platform_on(there: Server, **settings: str) -> Iterator[Platform]:
    """A platform whose durable lane is that server."""
    with there.client() as client:
        kept = client.config_get("appendfsync")
    is_strict = kept == {"appendfsync": ALWAYS}
    with trivet(
        durable_url=f"unix://{there.socket}",
        durability="strict" if is_strict else "relaxed",
        **settings,
    ) as platform:
        yield platform


def publish(platform: Platform, how: str, *numbers: int) -> int:
    """Through our own client, in a process of its own; how many were accepted."""
    env = {**platform.env, "BENCH_QUEUE": platform.endpoint.url, "PYTHONPATH": str(ROOT)}
    return published(sys.executable, f"{QUEUES}.trivet_queue", env, how, *numbers)


def with_spread(figure: Figure, rates: Mapping[str, list[float]]) -> Figure:
    medians = {
        name: {**values, "least_per_s": min(rates[name]), "most_per_s": max(rates[name])}
        for name, values in figure.medians.items()
    }
    return replace(figure, medians=medians)


def _noted(
    rates: dict[str, list[float]], name: str, take: Callable[[], Measurement]
) -> Measurement:
    found = take()
    rates.setdefault(name, []).append(round(found["per_s"], 2))
    return found


def _trivet(platform: Platform, there: Server, count: int, events: int) -> Measurement:
    _warm(platform, count)
    there.settle()
    supervisor = child_running("trivet.supervisor", platform.launcher)
    ledger = keys.ledger(FUNCTION)
    with there.client() as client:
        told = client.xrevrange(ledger, count=1)
        before = told[0][0].decode() if told else "0-0"
        accepted_before, _ = _counted(there)
        os.kill(supervisor, signal.SIGSTOP)
        try:
            publish(platform, "many", events)
            used = _Used(platform.launcher, there, events)
        finally:
            os.kill(supervisor, signal.SIGCONT)
        await_that(lambda: operator.eq(*_counted(there)), "all events have ended")
        spent = used.since()
        accepted, _ = _counted(there)
        assert accepted - accepted_before >= events
        first = client.xrange(ledger, min=f"({before}", count=1)[0][0]
        last = client.xrevrange(ledger, count=1)[0][0]
    took_s = (_ms(last) - _ms(first)) / 1000
    return {"per_s": (accepted - accepted_before - 1) / took_s, **spent}


def _counted(there: Server) -> tuple[int, int]:
    """How many events were ever accepted, and how many have ended well."""
    with there.client() as client:
        told = client.hmget(keys.totals(FUNCTION), ["accepted", "success"])
    assert isinstance(told, list)
    accepted, ended = (int(value or 0) for value in told)
    return accepted, ended


def _ms(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])


def _warm(platform: Platform, count: int) -> None:
    """Every environment that may be there is, when that many calls stay at the same time."""
    request = platform.endpoint.invocation(FUNCTION, event=f'{{"hold_s": {HOLD_S}}}')

    def call() -> None:
        with Caller(request) as caller:
            assert not caller.call(request).is_error

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _peer(peer: Peer, there: Server, database: int, count: int, events: int) -> Measurement:
    events //= peer.share
    with run(peer, there, database) as its:
        its.publish("many", events)
        with its.working(count) as pid:
            await_that(lambda: its.begun() > 0, f"{peer.name} has begun")
            used, begun = _Used(pid, there, events), its.begun()
            await_that(lambda: its.begun() >= events, f"{peer.name} has run all")
            spent = used.since()
        starts = sorted(started for _, started in its.starts())
    measured_share = events / max(1, events - begun)
    spent = {name: value * measured_share for name, value in spent.items()}
    return {"per_s": (len(starts) - 1) / (starts[-1] - starts[0]), **spent}


class _Used:
    """CPU from now on, as seconds per 1,000 events."""

    def __init__(self, pid: int, there: Server, events: int) -> None:
        self._pid = pid
        self._there = there
        self._events = events
        self._before = self._now()

    def _now(self) -> tuple[float, float]:
        return cpu_s(self._pid), self._there.cpu_s()

    def since(self) -> dict[str, float]:
        own, servers = (b - a for a, b in zip(self._before, self._now(), strict=True))
        per_1k = 1_000 / self._events
        return {"cpu_s_per_1k": own * per_1k, "server_cpu_s_per_1k": servers * per_1k}
