"""Readings of the express lane: a batch a window, and fewer while nothing can be committed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import anyio
import pytest

from trivet.core.billing import Reading
from trivet.supervisor import meter
from trivet.supervisor.meter import Meter

pytestmark = pytest.mark.anyio


def reading(function: str = "hello") -> Reading:
    return Reading(
        request_id="1",
        function=function,
        version="$LATEST",
        ended_ms=1_790_000_000_000,
        memory_mb=128,
        billed_ms=1,
        init_ms=None,
        start="warm",
        status="",
    )


async def test_a_window_of_a_function_is_one_batch() -> None:
    batches: list[Sequence[Reading]] = []
    both = asyncio.Event()

    def commit(batch: Sequence[Reading]) -> None:
        batches.append(batch)
        if len(batches) == 2:
            both.set()

    counted = Meter(commit, lambda: True)
    for _ in range(5):
        counted.add(reading())
        counted.add(reading("other"))
    with anyio.fail_after(5):
        await both.wait()
    assert sorted(len(batch) for batch in batches) == [5, 5]


async def test_while_nothing_can_be_committed_readings_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meter, "AGAIN_S", 0.001)
    monkeypatch.setattr(meter, "MOST_WAITING", 4)
    asked = 0
    committed = asyncio.Event()

    def is_ready() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    counted = Meter(lambda batch: committed.set(), is_ready)
    for _ in range(3):
        counted.add(reading())
    assert not counted.is_full
    counted.add(reading())
    assert counted.is_full
    with anyio.fail_after(5):
        await committed.wait()
    assert asked == 4
    assert not counted.is_full
