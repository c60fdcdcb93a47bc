"""Spares: made after an answer, taken by a start, and the first to give way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from tests.platform.supervised import Inside, Make, PlayedZygote, settle, supervising, until

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


async def spare_of(zygote: PlayedZygote) -> Inside:
    """The spare that is asked for next; it runs."""
    spare = await zygote.spawned()
    spare.start()
    await settle()
    return spare


async def test_a_start_takes_the_spare_and_another_is_made(make: Make) -> None:
    host = make(spares=1)
    version = await host.deploy()
    zygote = host.attach()
    await settle()
    warm = await host.warm(version, zygote)
    spare = await spare_of(zygote)
    assert spare.given & wire.WITH_CODE
    assert host.pool.census() == {"idle": 1, "cell": 0, "spare": 1}
    warm.exit()
    await until(lambda: not host.pool.census().get("idle"))
    (request_id,) = host.deliver(version)
    kind, _, _ = await spare.frame()
    assert kind == wire.INIT
    assert host.pool.census()["spare"] == 0
    spare.send(wire.INITIALISED, 0)
    assert await spare.answer() == request_id
    await spare_of(zygote)
    assert host.pool.census()["spare"] == 1


async def test_a_spare_gives_way_to_a_start_of_another_function(make: Make) -> None:
    host = make(spares=1, max_environments=2)
    one, other = await host.deploy("one"), await host.deploy("other")
    zygote = host.attach()
    await settle()
    await host.warm(one, zygote)
    spare = await spare_of(zygote)
    (request_id,) = host.deliver(other)
    inside = await zygote.spawned()
    await inside.begin()
    assert await inside.answer() == request_id
    zygote.hear_all()
    assert zygote.kills == [spare.number]
    spare.exit(-9)
    await until(lambda: len(host.pool._bodies) == 2)
    assert host.pool.census() == {"idle": 2, "cell": 0, "spare": 0}


async def test_no_spare_takes_the_last_slot_but_one_that_is_free(make: Make) -> None:
    host = make(spares=1, max_environments=1)
    version = await host.deploy()
    zygote = host.attach()
    await settle()
    inside = await host.warm(version, zygote)
    for _ in range(3):
        (request_id,) = host.deliver(version)
        await inside.answer()
        await until(lambda: request_id in host.answers)  # noqa: B023  # awaited in this turn
    await until(lambda: host.pool._spares._timer is None)
    zygote.hear_all()
    assert zygote.insides == [inside]


async def test_a_spare_ends_with_the_last_of_its_version(make: Make) -> None:
    host = make(spares=1)
    first = await host.deploy(memory_mb=128)
    zygote = host.attach()
    await settle()
    warm = await host.warm(first, zygote)
    spare = await spare_of(zygote)
    await host.deploy(memory_mb=256)
    host.dispatcher.changed("hello")
    await until(lambda: not host.pool.census()["spare"])
    zygote.hear_all()
    assert sorted(zygote.kills) == [warm.number, spare.number]


async def test_a_spare_that_ended_is_not_taken_and_not_made_again_at_once(make: Make) -> None:
    host = make(spares=1)
    version = await host.deploy()
    zygote = host.attach()
    await settle()
    warm = await host.warm(version, zygote)
    spare = await spare_of(zygote)
    spare.exit(1)
    await until(lambda: not host.pool.census()["spare"])
    warm.exit()
    await until(lambda: not host.pool.census().get("idle"))
    (request_id,) = host.deliver(version)
    inside = await zygote.spawned()
    await inside.begin()
    assert await inside.answer() == request_id
    await until(lambda: request_id in host.answers)
    assert not host.pool._spares._wanted


async def test_a_spare_of_a_zygote_that_dies_first_is_forgotten(make: Make) -> None:
    host = make(spares=1)
    version = await host.deploy()
    first = host.attach()
    await settle()
    await host.warm(version, first)
    await first.spawned()  # asked for, and not there yet
    first.die()
    await until(lambda: not host.pool.census()["spare"])
    assert len(host.pool._bodies) == 1
