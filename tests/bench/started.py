"""Started: from publishing an event to the start of its handler at a steady rate, beside others.

The time of publishing lies in the event, taken before the client does anything; the handler takes
its own and prints both, where others put them on record. Everything is on one server, to which
meanwhile another connection adds an entry each 10 ms: `xadd_p50_ms` is what that took, `of_xadd`
the ratio to it. What was published in the first second does not count.
"""

from __future__ import annotations

import re
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from tests.bench.drain import platform_on, publish
from tests.bench.figures import Figure, Measurement, Options, compared
from tests.bench.platforms import Platform, await_that
from tests.bench.queues.peers import ARDIQ, CELERY, LIMIT, TASKIQ, Peer, present
from tests.bench.queues.runs import run
from tests.bench.queues.servers import Server, server
from tests.bench.queues.trivet_queue import FUNCTION

from trivet.bus.resp import pack

WARM_UP_S = 1
EACH_S = 0.01
ENTRY = b"x" * 220
STREAM = b"bench-beside"
TEXT = """
import time


def handler(event, context):
    print("started", event["published"], time.time())
"""
_STARTED = re.compile(rb"started ([\d.]+) ([\d.]+)")


def measured(options: Options) -> list[Figure]:
    peers = present([LIMIT, ARDIQ, TASKIQ, CELERY], install=options.installs)
    seconds = options.seconds + WARM_UP_S
    case = f"{options.rate} events/s, appendfsync {options.flushes}"
    with server(options.flushes) as there, platform_on(there) as platform:
        platform.endpoint.deploy(FUNCTION, text=TEXT)
        subjects: dict[str, Callable[[], Measurement]] = {
            "trivet": partial(_trivet, platform, there, options.rate, seconds)
        }
        for database, peer in enumerate(peers, start=1):
            rate = min(options.rate, peer.most_per_s)
            name = peer.name if rate == options.rate else f"{peer.name} at {rate}/s"
            subjects[name] = partial(_peer, peer, there, database, rate, seconds)
        return [compared("started", case, subjects, of="p50_ms", rounds=options.rounds)]


def _trivet(platform: Platform, there: Server, rate: int, seconds: int) -> Measurement:
    before = len(_started(platform))
    publish(platform, "many", 1)
    await_that(lambda: len(_started(platform)) > before, "trivet has begun")
    there.settle()
    with _beside(there) as taken_ms:
        accepted = publish(platform, "steadily", rate, seconds)
    await_that(lambda: len(_started(platform)) > before + accepted, "trivet has run all")
    return _measurement(_started(platform)[before + 1 :], taken_ms)


def _started(platform: Platform) -> list[tuple[float, float]]:
    """What the handler printed, since the platform is there."""
    text = b"".join(file.read_bytes() for file in sorted((platform.data / "logs").rglob("*.jsonl")))
    return [(float(published), float(now)) for published, now in _STARTED.findall(text)]


def _peer(peer: Peer, there: Server, database: int, rate: int, seconds: int) -> Measurement:
    with run(peer, there, database) as its:
        its.publish("many", 1)
        with its.working(1):
            await_that(lambda: its.begun() > 0, f"{peer.name} has begun")
            with _beside(there) as taken_ms:
                accepted = its.publish("steadily", rate, seconds)
            await_that(lambda: its.begun() > accepted, f"{peer.name} has run all")
        return _measurement(its.starts()[1:], taken_ms)


@contextmanager
def _beside(there: Server) -> Iterator[list[float]]:
    """Fills the list with what plain XADDs took, while the block runs."""
    taken_ms: list[float] = []
    is_over = threading.Event()

    def add_again_and_again() -> None:
        command = pack((b"XADD", STREAM, b"MAXLEN", b"~", b"100", b"*", b"e", ENTRY))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(there.socket)
            due = time.perf_counter()
            while not is_over.is_set():
                began = time.perf_counter()
                client.sendall(command)
                answer = client.recv(1 << 16)
                taken_ms.append((time.perf_counter() - began) * 1000)
                assert answer[:1] == b"$", answer
                due = max(due + EACH_S, time.perf_counter())
                time.sleep(max(0.0, due - time.perf_counter()))

    thread = threading.Thread(target=add_again_and_again)
    thread.start()
    try:
        yield taken_ms
    finally:
        is_over.set()
        thread.join()


def _measurement(starts: list[tuple[float, float]], taken_ms: list[float]) -> Measurement:
    began = min(published for published, _ in starts)
    waited_ms = sorted(
        (started - published) * 1000
        for published, started in starts
        if published >= began + WARM_UP_S
    )
    p50_ms = waited_ms[len(waited_ms) // 2]
    xadd_p50_ms = statistics.median(taken_ms)
    return {
        "p50_ms": p50_ms,
        "p99_ms": waited_ms[len(waited_ms) * 99 // 100],
        "xadd_p50_ms": xadd_p50_ms,
        "of_xadd": p50_ms / xadd_p50_ms,
    }
