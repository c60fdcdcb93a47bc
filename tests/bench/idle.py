"""Idle: what a warm environment that waits occupies, beside its interpreter started plainly.

PSS counts a page that several processes share in equal parts, so the sum over all is what the
machine has given away. pss_mb is the median environment's; added_mb is what the whole platform
grew by, divided by the environments. started_ms is what a start took, one after another.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.bench.calls import Caller
from tests.bench.cold import plain_node
from tests.bench.endpoints import NODE, PYTHON
from tests.bench.figures import Figure, Measurement, Options, compared
from tests.bench.platforms import Platform, trivet

# Several hundred interpreters would only wait for each other.
PLAIN_AT_MOST = 50

# They say that they are ready, and wait until their input ends.
PLAIN = {
    PYTHON: ("python -c", [sys.executable, "-c", "import json; print(1, flush=True); input()"]),
    NODE: ("node -e", [plain_node(), "-e", "process.stdin.resume(); console.log(1)"]),
}


# A Node process is several times as large; its cost each is known after fewer.
FEWER_OF_NODE = 10


def measured(options: Options) -> list[Figure]:
    counts = {PYTHON: options.environments, NODE: max(5, options.environments // FEWER_OF_NODE)}
    figures = []
    # Nothing gives way while they are counted, and what waits for a start is not counted with them.
    with trivet(
        max_environments=str(sum(counts.values())), keep_warm_ms="3600000", spares="0"
    ) as platform:
        for runtime, (name, command) in PLAIN.items():
            count = counts[runtime]
            subjects = {
                "trivet": partial(_environments, platform, runtime, count),
                name: partial(_plain, command, min(count, PLAIN_AT_MOST)),
            }
            case = f"{count} {runtime}"
            figures.append(compared("idle", case, subjects, of="pss_mb", rounds=1))
    return figures


def _environments(platform: Platform, runtime: str, count: int) -> Measurement:
    """A function for each environment: one that is warm already is not used for another one."""
    names = [f"{runtime.replace('.', '-')}-{number}" for number in range(count)]
    platform.endpoint.deploy(*names, runtime=runtime)
    before = _descendants(platform.launcher)
    before_kb = sum(map(_pss_kb, before))
    took_ms = []
    with Caller(platform.endpoint.invocation(names[0])) as caller:
        for name in names:
            request = platform.endpoint.invocation(name)
            began = time.perf_counter()
            answer = caller.call(request)
            took_ms.append((answer.ended - began) * 1000)
            assert not answer.is_error, answer.payload
    after = _descendants(platform.launcher)
    started = after - before
    assert len(started) >= count - 1, f"{len(started)} environments"  # one was booted before
    added_kb = sum(map(_pss_kb, after)) - before_kb
    return {
        "pss_mb": _median_pss_mb(started),
        "added_mb": added_kb / 1024 / count,
        "started_ms": statistics.median(took_ms),
    }


def _plain(command: list[str], count: int) -> Measurement:
    with ExitStack() as stack:
        processes = []
        took_ms = []
        for _ in range(count):
            began = time.perf_counter()
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            processes.append(stack.enter_context(process))
            assert process.stdout is not None
            assert process.stdout.readline()
            took_ms.append((time.perf_counter() - began) * 1000)
        found = {
            "pss_mb": _median_pss_mb(process.pid for process in processes),
            "started_ms": statistics.median(took_ms),
        }
        for process in processes:
            process.kill()
        return found


def _median_pss_mb(pids: Iterable[int]) -> float:
    return statistics.median(map(_pss_kb, pids)) / 1024


def _pss_kb(pid: int) -> int:
    """0 for one that has just ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _descendants(pid: int) -> set[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children[int(fields[1])].append(int(entry.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = children[waiting.pop()]
        found.update(below)
        waiting += below
    return found
