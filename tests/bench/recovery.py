"""Recovery: how long callers wait for the next answer when a part is killed, and how often one is
refused a connection.

Each part is killed again and again while other callers keep a light load up. The wait runs from
the kill to the end of the first answered call that began after it. Of a zygote it is a cold start,
since warm environments do not miss it; of the servers it runs from the moment when the new one
answers PING.
"""

from __future__ import annotations

import http.client
import os
import select
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.bench.figures import Figure, Options
from tests.bench.platforms import Platform, await_that, trivet

# A part that was well for this long is started again at once, and has a standby again.
REST_S = 6.0
KILLS_OF_A_ROUND = 3
PATIENCE_S = 30.0
LOAD_CALLS_PER_S = 20

# What tells a part from the others on its command line.
PARTS = {
    "supervisor": "trivet.supervisor",
    "gateway": "trivet.gateway",
    "zygote": "--kind python",
    "express server": "express.sock",
    "durable server": "durable.sock",
}
SERVERS = {"express server": "express.sock", "durable server": "durable.sock"}


def measured(options: Options) -> list[Figure]:
    """One platform, and each part of it killed in turn."""
    kills = KILLS_OF_A_ROUND * options.rounds
    with trivet() as platform:
        names = [f"bench-recovery-{number}" for number in range(kills)]
        platform.endpoint.deploy(*names)
        callers = {
            "zygote": _ColdCaller(platform, names).call,
            "durable server": _asynchronous(platform),
        }
        found = []
        for part in PARTS:
            call = callers.get(part, lambda: _get(platform))
            found.append(_killed(platform, part, call, kills))
    return found


@dataclass
class _Load:
    """What the callers of the light load saw."""

    calls: int = 0
    failed: int = 0
    refused: int = 0


def _killed(platform: Platform, part: str, call: Callable[[], None], kills: int) -> Figure:
    waits_ms: list[float] = []
    with _light_load(platform) as seen:
        for number in range(kills):
            time.sleep(REST_S)
            pid = _pid(platform, part)
            began = _kill(pid)
            if part in SERVERS:
                began = _answers(platform, part)
            waits_ms.append((_answered(call, seen) - began) * 1000)
            print(f"  recovery, {part}: {number + 1}/{kills}", file=sys.stderr)
    ordered = sorted(waits_ms)
    medians = {
        "p50_ms": round(statistics.median(ordered), 1),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 1),
        "kills": kills,
        "refused": seen.refused,
        "failed": seen.failed,
        "of": seen.calls,
    }
    return Figure(bench="recovery", case=part, medians={"trivet": medians}, ratios=[])


def _kill(pid: int) -> float:
    """Kill it, and return when, once it has ended."""
    descriptor = os.pidfd_open(pid)
    try:
        killed_at = time.monotonic()
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select.select([descriptor], [], [], PATIENCE_S)
        return killed_at
    finally:
        os.close(descriptor)


def _answered(call: Callable[[], None], seen: _Load) -> float:
    """When the first call is answered."""
    ends = time.monotonic() + PATIENCE_S
    while True:
        try:
            call()
        except ConnectionRefusedError:
            seen.refused += 1
        except Exception:
            if time.monotonic() > ends:
                raise
        else:
            return time.monotonic()
        time.sleep(0.002)


def _answers(platform: Platform, part: str) -> float:
    """When the new server answers PING for the first time."""
    path = str(platform.data / "run" / SERVERS[part])
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(path)
            client.sendall(b"PING\r\n")
            if client.recv(16).startswith(b"+PONG"):
                return time.monotonic()
        time.sleep(0.002)
    raise TimeoutError(part)


# ------------------------------------------------------------------------------- calls


def _get(platform: Platform) -> None:
    """A call over a connection of its own."""
    where = urlsplit(platform.http_url)
    assert where.hostname
    connection = http.client.HTTPConnection(where.hostname, where.port or 80, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/welcome?name=Alice")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise ConnectionError(f"status {answer.status}")
    finally:
        connection.close()


class _ColdCaller:
    """Calls functions that were never called before."""

    def __init__(self, platform: Platform, names: list[str]) -> None:
        self._platform = platform
        self._client = platform.endpoint.client()
        self._names = list(names)

    def call(self) -> None:
        answer: dict[str, Any] = self._client.invoke(FunctionName=self._names.pop())
        answer["Payload"].read()


def _asynchronous(platform: Platform) -> Callable[[], None]:
    client = platform.endpoint.client()

    def call() -> None:
        client.invoke(FunctionName="welcome", InvocationType="Event", Payload=b"{}")

    return call


@contextmanager
def _light_load(platform: Platform) -> Iterator[_Load]:
    seen, stop = _Load(), threading.Event()

    def run() -> None:
        while not stop.wait(1 / LOAD_CALLS_PER_S):
            seen.calls += 1
            try:
                _get(platform)
            except ConnectionRefusedError:
                seen.refused += 1
            except (OSError, http.client.HTTPException):
                seen.failed += 1

    caller = threading.Thread(target=run)
    caller.start()
    try:
        yield seen
    finally:
        stop.set()
        caller.join()


# --------------------------------------------------------------------------- processes


def _pid(platform: Platform, part: str) -> int:
    """The process that plays the part, and no other that stands by."""
    found: list[int] = []

    def is_one() -> bool:
        found[:] = [pid for pid in _children(platform.launcher) if _plays(pid, PARTS[part])]
        if part == "zygote":  # one that stands by comes later in the kernel's list, which is by age
            del found[1:]
        return len(found) == 1

    await_that(is_one, f"there is one {part}")
    return found[0]


def _children(launcher: int) -> list[int]:
    listed = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in listed]


def _plays(pid: int, words: str) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        stands_by = Path(f"/proc/{pid}/comm").read_text().strip() == "standby"
    except OSError:
        return False
    return words in command and not stands_by
