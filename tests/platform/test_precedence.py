"""Precedence: where the platform's own processes stand, and that nothing of it stays behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.platform import caged
from tests.platform.launched import has_ended

from trivet.launcher import cgroups
from trivet.launcher.cgroups import Cgroups
from trivet.launcher.hierarchies import CONTROLLERS
from trivet.launcher.identities import identities
from trivet.launcher.precedence import clear, precedence
from trivet.settings import Settings

# What takes precedence is a process of its own: pytest stays where it is.
FIRST = """
import json, subprocess, sys
from trivet.launcher.cgroups import Cgroups
from trivet.launcher.precedence import precedence

with precedence(Cgroups(**json.loads(sys.argv[1]))):
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # until we end
    print(child.pid, flush=True)
    sys.stdin.read()
    child.stdin.close()
    if sys.argv[2] == "patiently":
        child.wait()
print("over", flush=True)
"""


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Cgroups]:
    settings = Settings(data=str(tmp_path))
    made = cgroups.prepare(settings, identities(settings), caged.survey_v1())
    assert made, made.reason
    yield made
    assert made.remove()


def started(made: Cgroups, how: str = "patiently") -> subprocess.Popen[str]:
    given = json.dumps({"version": made.version, "paths": dict(made.paths)})
    return subprocess.Popen(
        [sys.executable, "-c", FIRST, given, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def cpu_cgroup(pid: int) -> str:
    return next(
        row.split(":", 2)[2]
        for row in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        if "cpu" in row.split(":")[1].split(",")
    )


@pytest.mark.parametrize("how", ["patiently", "hastily"])
def test_the_platform_stands_beside_the_functions_with_ten_times_their_shares(
    made: Cgroups, how: str
) -> None:
    base = Path(made.paths["cpu"])
    own = base.with_name(f"{base.name}-platform")
    before = cpu_cgroup(os.getpid())
    process = started(made, how)
    try:
        child = int(line(process))
        for pid in (process.pid, child):
            assert cpu_cgroup(pid).endswith(f"/{own.name}")
        functions, platform = (int((each / "cpu.shares").read_text()) for each in (base, own))
        assert platform == 10 * functions
        said, _ = process.communicate(timeout=caged.DEADLINE_S)
        assert said == "over\n"
    finally:
        process.kill()
        process.wait()
    assert not own.exists()
    assert cpu_cgroup(os.getpid()) == before


def test_what_a_killed_predecessor_left_is_used_again(made: Cgroups) -> None:
    base = Path(made.paths["cpu"])
    own = base.with_name(f"{base.name}-platform")
    first = started(made)
    line(first)
    first.kill()
    first.communicate()
    assert own.exists()
    second = started(made)
    try:
        assert cpu_cgroup(int(line(second))).endswith(f"/{own.name}")
        second.communicate(timeout=caged.DEADLINE_S)
    finally:
        second.kill()
        second.wait()
    assert not own.exists()


def test_what_a_killed_predecessor_left_can_be_cleared_away(made: Cgroups) -> None:
    base = Path(made.paths["cpu"])
    own = base.with_name(f"{base.name}-platform")
    process = started(made)
    child = int(line(process))
    process.kill()
    process.communicate()
    assert has_ended(child)
    clear(made)
    assert not own.exists()


def test_without_bases_nothing_happens() -> None:
    before = Path("/proc/self/cgroup").read_text()
    with precedence(Cgroups(reason="none")):
        assert Path("/proc/self/cgroup").read_text() == before


def test_what_cannot_be_had_is_done_without(tmp_path: Path) -> None:
    before = Path("/proc/self/cgroup").read_text()
    with precedence(Cgroups(1, dict.fromkeys(CONTROLLERS, str(tmp_path / "gone" / "base")))):
        assert Path("/proc/self/cgroup").read_text() == before


def test_v2_our_own_child_gets_the_weight_and_nobody_else_s(tmp_path: Path) -> None:
    """In a folder that looks like a cgroup2 mount: none here has the controller."""
    own = tmp_path / "platform"
    own.mkdir()
    made = Cgroups(2, dict.fromkeys(CONTROLLERS, str(tmp_path / "base")))
    for pid, weight in ((os.getpid() + 1, "100"), (os.getpid(), "1000")):
        (own / "cgroup.procs").write_text(f"{pid}\n")
        (own / "cpu.weight").write_text("100")
        with precedence(made):
            assert (own / "cpu.weight").read_text() == weight
