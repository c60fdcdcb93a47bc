"""Damaged durable data: a torn end is dropped, damage in the middle is refused, in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.conftest import Running

pytestmark = pytest.mark.slow


def log_of_commands(running: Running) -> Path:
    (found,) = (running.data / "durable" / "appendonlydir").glob("*.incr.aof")
    return found


@pytest.fixture
def resting(start_platform: Callable[..., Running]) -> Running:
    """One that has kept something, and has ended."""
    running = start_platform()
    running.down()
    return running


def test_a_torn_end_costs_what_nobody_was_promised(resting: Running) -> None:
    """A crash in the middle of a write: its caller had no answer yet."""
    file = log_of_commands(resting)
    file.write_bytes(file.read_bytes() + b"*3\r\n$4\r\nSADD\r\n$8\r\ntriv")
    resting.up()
    names = [f["FunctionName"] for f in resting.client("lambda").list_functions()["Functions"]]
    assert names == ["welcome"]


def test_damage_in_the_middle_is_refused_and_nothing_is_changed(resting: Running) -> None:
    file = log_of_commands(resting)
    whole = file.read_bytes()
    damaged = bytearray(whole)
    start = whole.index(b"\r\n*", len(whole) // 3)  # between two commands
    damaged[start : start + 10] = b"x" * 10
    file.write_bytes(damaged)
    refused = resting.trivet("up", "--detach", check=False)
    assert refused.returncode == 78
    assert "check-aof" in refused.stderr
    assert file.read_bytes() == damaged
    file.write_bytes(whole)
    resting.up()
