"""Idle environments freeze after a grace, and thaw for an event or for their end."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from tests.platform.supervised import Make, settle, supervising, until

from trivet.core.lifecycle import State
from trivet_worker import wire

pytestmark = [
    pytest.mark.anyio,
    # Zygotes and environments that a test plays are left half-way on purpose.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
async def make(tmp_path: Path, durable: Redis) -> AsyncIterator[Make]:
    async with supervising(tmp_path, durable) as make:
        yield make


async def test_an_idle_environment_is_stopped_and_goes_on_for_an_event(make: Make) -> None:
    host = make(freeze_after_ms=20)
    version = await host.deploy()
    zygote = host.attach()
    await settle()
    inside = await host.warm(version, zygote)
    await until(lambda: host.pool.census().get("frozen"))
    zygote.hear_all()
    assert zygote.signals == [(inside.number, signal.SIGSTOP)]
    (request_id,) = host.deliver(version)
    zygote.hear_all()
    assert zygote.signals[1:] == [(inside.number, signal.SIGCONT)]
    assert await inside.answer() == request_id


async def test_nothing_freezes_between_back_to_back_calls(make: Make) -> None:
    host = make(freeze_after_ms=400)
    version = await host.deploy()
    zygote = host.attach()
    await settle()
    inside = await host.warm(version, zygote)
    until_s = time.monotonic() + 1.0
    while time.monotonic() < until_s:
        (request_id,) = host.deliver(version)
        await inside.answer()
        await until(lambda: request_id in host.answers)  # noqa: B023  # awaited in this turn
    zygote.hear_all()
    assert not zygote.signals


async def test_the_one_that_is_used_is_not_the_one_that_freezes(make: Make) -> None:
    host = make(freeze_after_ms=200)
    version = await host.deploy()
    zygote = host.attach()
    await settle()
    request_ids = host.deliver(version, 2)
    both = [await zygote.spawned(), await zygote.spawned()]
    for inside in both:
        await inside.begin()
    for inside in both:
        await inside.answer()
    await until(lambda: len(host.answers) == len(request_ids))
    (request_id,) = host.deliver(version)
    older, newer = both  # whatever fell idle last is used first
    assert (await newer.event())[1] == request_id
    await until(lambda: host.pool.census().get("frozen") == 1)
    zygote.hear_all()
    assert zygote.signals == [(older.number, signal.SIGSTOP)]
    newer.send(wire.RESULT, 2, b"{}")
    await until(lambda: host.pool.census().get("frozen") == 2)


async def test_a_frozen_environment_can_be_retired(make: Make) -> None:
    host = make(freeze_after_ms=10)
    version = await host.deploy()
    zygote = host.attach()
    await settle()
    inside = await host.warm(version, zygote)
    fleet = host.dispatcher._fleets[version.function, version.key]
    (environment,) = fleet.idle
    await until(lambda: environment.state is State.FROZEN)
    assert fleet.retire(idle_before=float("inf")) == 1
    zygote.hear_all()
    assert zygote.kills == [inside.number]
    inside.exit(-9)
    await until(lambda: not host.pool._bodies)
    assert environment.state is State.DEAD


async def test_with_a_grace_of_0_nothing_freezes(make: Make) -> None:
    host = make(freeze_after_ms=0)
    version = await host.deploy()
    zygote = host.attach()
    await settle()
    await host.warm(version, zygote)
    assert host.pool._frost._timer is None
