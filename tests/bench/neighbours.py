"""Neighbours: a function's p99 at a steady modest rate, beside an environment that misbehaves.

Calls go out by the clock, and each is timed from when it was due: a late answer makes the ones
behind it late as well. What the neighbours do is bounded, so that a platform without walls
suffers, but the machine does not: 300 MB, 200 processes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from tests.bench.calls import Caller
from tests.bench.figures import Figure, Measurement, Options, compared
from tests.bench.platforms import Platform, trivet

CALLS_PER_S = 100
# A run has to see enough calls for a percentile.
LONGER = 3
VICTIM = "bench-hello"

# Each lasts about a second and is called again as soon as it has ended, however it did.
HARMS = {
    "out of memory": """
def handler(event, context):
    held = []
    for _ in range(30):
        held.append(b"x" * 10_000_000)
    return len(held)
""",
    "fork bomb": """
import os, time


def handler(event, context):
    began = time.monotonic()
    started = 0
    while time.monotonic() - began < 1:
        reader, writer = os.pipe()
        children = []
        try:
            for _ in range(200):
                child = os.fork()
                if child == 0:
                    os.close(writer)
                    os.read(reader, 1)
                    os._exit(0)
                children.append(child)
        except OSError:
            pass
        os.close(writer)
        os.close(reader)
        for child in children:
            os.waitpid(child, 0)
        started += len(children)
    return started
""",
    "CPU burn": """
import os, time


def handler(event, context):
    child = os.fork()
    began = time.monotonic()
    while time.monotonic() - began < 1:
        pass
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
""",
    "stdout flood": """
import os, time


def handler(event, context):
    line = b"x" * 100 + b"\\n"
    began = time.monotonic()
    while time.monotonic() - began < 1:
        os.write(1, line * 500)
""",
    "/tmp fill": """
import os


def handler(event, context):
    block = b"x" * 1_000_000
    try:
        with open("/tmp/fill", "wb") as file:
            for _ in range(300):
                file.write(block)
    finally:
        os.unlink("/tmp/fill")
""",
}


def measured(options: Options) -> list[Figure]:
    seconds = options.seconds * LONGER
    figures = []
    for harm, text in HARMS.items():
        # A platform for each: what one neighbour left behind does not harm the next one's victim.
        with trivet() as platform:
            platform.endpoint.deploy(VICTIM)
            platform.endpoint.deploy("bench-neighbour", text=text)
            _calls(platform, 1)
            subjects: dict[str, Callable[[], Measurement]] = {
                f"beside {harm}": partial(_calls_beside, platform, seconds),
                "alone": partial(_calls, platform, seconds),
            }
            case = harm
            figures.append(
                compared("neighbours", case, subjects, of="p99_ms", rounds=options.rounds)
            )
    return figures


def _calls_beside(platform: Platform, seconds: float) -> Measurement:
    with _misbehaving(platform):
        return _calls(platform, seconds)


@contextmanager
def _misbehaving(platform: Platform) -> Iterator[None]:
    """The neighbour is there, and at it, from the first moment to the last."""
    is_over = threading.Event()
    request = platform.endpoint.invocation("bench-neighbour")

    def call_again_and_again() -> None:
        with Caller(request) as caller:
            while not is_over.is_set():
                caller.call(request)

    thread = threading.Thread(target=call_again_and_again)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _calls(platform: Platform, seconds: float) -> Measurement:
    request = platform.endpoint.invocation(VICTIM)
    taken_ms = []
    errors = 0
    with Caller(request) as caller:
        began = time.perf_counter()
        for number in range(int(seconds * CALLS_PER_S)):
            due = began + number / CALLS_PER_S
            if (early := due - time.perf_counter()) > 0:
                time.sleep(early)
            answer = caller.call(request)
            taken_ms.append((answer.ended - due) * 1000)
            errors += answer.is_error or b"Alice" not in answer.payload
    taken_ms.sort()
    return {
        "p50_ms": taken_ms[len(taken_ms) // 2],
        "p99_ms": taken_ms[len(taken_ms) * 99 // 100],
        "errors": errors,
    }
