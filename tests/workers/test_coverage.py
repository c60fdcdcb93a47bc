"""Every statement and branch of the jailer is reached by a test."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.workers import coverage
from tests.workers.coverage import ALWAYS, NEVER, NOT_ONCE

ROOT = Path(__file__).resolve().parents[2]
_CGROUPS = [
    Path(f"/sys/fs/cgroup/{name}/cgroup.procs")
    for name in ("cpuset", "freezer", "memory", "pids", "unified")
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    os.geteuid() != 0 or not all(each.exists() for each in _CGROUPS),
    reason="needs root and cgroups of both versions",
)
def test_nothing_of_the_jailer_is_left_out() -> None:
    command = [sys.executable, "-m", "tests.workers.coverage"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout[-5_000:]


_SOURCE = """\
def f(x):
    'Text.'
    if x:
        x = 1
    for each in x:
        print(
            each,
        )
    while True:
        if x and (
            x
        ):
            return
"""


def _arcs(*ways: str) -> set[tuple[int, int]]:
    """From lines in the order in which they ran."""
    lines = [[int(line) for line in way.split()] for way in ways]
    return {arc for way in lines for arc in itertools.pairwise(way)}


@pytest.mark.parametrize(
    ("arcs", "expected"),
    [
        (_arcs(), {(line, NEVER) for line in (1, 3, 4, 5, 6, 9, 10, 13)}),
        (
            _arcs("0 1 0", "0 3 5 6 7 5 9 10 11 9"),
            {(3, NOT_ONCE), (4, NEVER), (10, NOT_ONCE), (13, NEVER)},
        ),
        (
            _arcs("0 1 0", "0 3 4 5 6 7", "0 9 10 11 13 0"),
            {(3, ALWAYS), (5, ALWAYS), (10, ALWAYS)},
        ),
        (_arcs("0 1 0", "0 3 4 5 6 7 5 9 10 13 0", "0 3 5", "10 9"), set()),
    ],
)
def test_gaps_are_found(arcs: set[tuple[int, int]], expected: set[tuple[int, str]]) -> None:
    found = {(line, gap.kind) for line, gap in coverage.gaps("module", _SOURCE, arcs)}
    assert found == expected
