"""Memory: what an idle warm environment occupies, beside its interpreter started plainly.

PSS counts a page that several processes share in equal parts, so the sum over all is what the
machine has given away. pss_mb is the median environment's; added_mb is what the whole platform
grew by, divided by the environments.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.bench.cold import plain_node
from tests.bench.endpoints import NODE, PYTHON
from tests.bench.figures import Figure, Measurement, Options, compared
from tests.bench.platforms import Platform, trivet

# They say that they are ready, and wait until their input ends.
PLAIN = {
    PYTHON: ("python -c", [sys.executable, "-c", "import json; print(1, flush=True); input()"]),
    NODE: ("node -e", [plain_node(), "-e", "process.stdin.resume(); console.log(1)"]),
}


def measured(options: Options) -> list[Figure]:
    count = options.environments
    figures = []
    # Room for both runtimes, and nothing gives way while they are counted.
    with trivet(max_environments=str(2 * count), keep_warm_ms="3600000") as platform:
        for runtime, (name, command) in PLAIN.items():
            subjects = {
                "trivet": partial(_environments, platform, runtime, count),
                name: partial(_plain, command, count),
            }
            case = f"{count} idle {runtime}"
            figures.append(compared("memory", case, subjects, of="pss_mb", rounds=1))
    return figures


def _environments(platform: Platform, runtime: str, count: int) -> Measurement:
    """A function for each environment: one that is warm already is not used for another one."""
    names = [f"{runtime.replace('.', '-')}-{number}" for number in range(count)]
    platform.endpoint.deploy(*names, runtime=runtime)
    before = _descendants(platform.launcher)
    before_kb = sum(map(_pss_kb, before))
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(platform.endpoint.call, names))
    after = _descendants(platform.launcher)
    started = after - before
    assert len(started) >= count - 1, f"{len(started)} environments"  # one was booted before
    added_kb = sum(map(_pss_kb, after)) - before_kb
    return {"pss_mb": _median_pss_mb(started), "added_mb": added_kb / 1024 / count}


def _plain(command: list[str], count: int) -> Measurement:
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            for _ in range(count)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline()
        found = {"pss_mb": _median_pss_mb(process.pid for process in processes)}
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
