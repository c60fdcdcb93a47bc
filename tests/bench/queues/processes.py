"""Processes: what a tree of them has used, and one of them by what it runs."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU of a process and everything below it that lives or was waited for."""
    by_parent: dict[int, list[int]] = defaultdict(list)
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            by_parent[int(fields[1])].append(int(entry.name))
            ticks[int(entry.name)] = sum(map(int, fields[11:15]))
    total, waiting = 0, [pid]
    while waiting:
        process = waiting.pop()
        total += ticks.get(process, 0)
        waiting += by_parent[process]
    return total / _TICKS_PER_S


def child_running(module: str, parent: int) -> int:
    """The child of `parent` that has `module` as a word of its command line."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if module.encode() in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
            return int(child)
    raise LookupError(module)
