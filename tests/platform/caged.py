"""Caged: real processes in cgroups, and what can be seen of them from outside."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from trivet.launcher import hierarchies
from trivet.launcher.hierarchies import Survey

# Generous: it decides when a test has failed, not how fast anything is.
DEADLINE_S = 30.0

JOIN = """
import os, sys, time
for folder in sys.argv[1:]:
    with open(folder + "/cgroup.procs", "w") as file:
        file.write("0")
os.write(1, b"joined\\n")
"""
SPIN = "while True: pass"
WAIT = "sys.stdin.read()\n"
FORK = """
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
# Never the same processes for long, and never many.
FLEE = """
for _ in range(16):
    if not os.fork():
        break
else:
    os._exit(0)
while True:
    if os.fork():
        os._exit(0)
"""


class Caged:
    """A Python that joins the cgroups `folders`, and then runs `code`."""

    def __init__(self, folders: Iterable[str], code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", JOIN + code, *dict.fromkeys(folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.line() == "joined"

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], DEADLINE_S)[0], "it says nothing"
        return self.process.stdout.readline().decode().strip()

    def ends_within(self, seconds: float) -> bool:
        pidfd = os.pidfd_open(self.pid)
        try:
            return bool(select.select([pidfd], [], [], seconds)[0])
        finally:
            os.close(pidfd)

    def status(self) -> int:
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)  # once its cgroup is thawed
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def cpu_s(pid: int) -> float:
    """The CPU time that a process has used, by the clock that the kernel keeps for it."""
    return time.clock_gettime((~pid << 3) | 2)


def burn(seconds: float) -> None:
    """Use so much CPU: meanwhile others had their chance to run."""
    until_s = time.process_time() + seconds
    while time.process_time() < until_s:
        pass


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def survey_v1() -> Survey:
    """The hierarchies of this machine; the test is skipped where v1 has no memory controller."""
    found = hierarchies.survey()
    if os.geteuid() != 0 or found.version != 1:
        pytest.skip("needs root and cgroup v1 hierarchies")
    return found


def survey_v2() -> Survey:
    """The v2 hierarchy of this machine, whether it has controllers or not."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found = hierarchies.found_in(
        "\n".join(line for line in mounts if " - cgroup2 " in line),
        Path("/proc/self/cgroup").read_text(),
    )
    if os.geteuid() != 0 or found.reason:
        pytest.skip("needs root and a cgroup2 mount")
    return found
