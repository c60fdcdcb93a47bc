"""The supervisor's decisions, with a zygote and environments that the test plays over the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis
from tests.platform.supervised import RUNTIME, Make, Supervised, settle, supervising, until

from trivet.supervisor import fleet as fleets
from trivet.supervisor.deadlines import Deadlines, clear
from trivet_worker import wire

pytestmark = [
    pytest.mark.anyio,
    # Zygotes and environments that a test plays are left half-way on purpose: the ends that they
    # held go with them, and are collected below, in the test that made them.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
async def make(tmp_path: Path, durable: Redis) -> AsyncIterator[Make]:
    async with supervising(tmp_path, durable) as make:
        yield make


async def test_an_event_is_answered(make: Make) -> None:
    host = make()
    version = await host.deploy()
    zygote = host.attach()
    await settle()
    inside = await host.warm(version, zygote)
    (request_id,) = host.deliver(version)
    assert await inside.answer(b"2") == request_id
    await until(lambda: host.answers.get(request_id) == b"2")


async def answered(host: Supervised, request_id: str) -> None:
    await until(lambda: request_id in host.answers)


# ---------------------------------------------------------------------- zygotes


async def test_a_start_that_waited_for_its_zygote_goes_when_the_zygote_comes(make: Make) -> None:
    host = make()
    version = await host.deploy()
    first = host.attach()
    await settle()
    first.die()
    await until(lambda: "down" in repr(host.pool.zygotes[RUNTIME]))
    (request_id,) = host.deliver(version)
    await until(lambda: "1 starting" in repr(host.pool))
    second = host.attach()
    inside = await second.spawned()
    await inside.begin()
    assert await inside.answer() == request_id


async def test_an_event_before_the_first_zygote_starts_with_what_that_zygote_can(
    make: Make,
) -> None:
    host = make()
    version = await host.deploy()
    (request_id,) = host.deliver(version)
    await settle()
    zygote = host.attach(is_ready=False)
    await settle()
    zygote.ready(wire.ISOLATION_UID | wire.ISOLATION_MOUNT)
    inside = await zygote.spawned()
    assert inside.uid, "an environment without a uid of its own"
    order = await inside.begin()
    assert order["task_root"] == "/var/task"
    assert await inside.answer() == request_id


async def test_a_new_zygote_before_the_end_of_the_old_one_is_seen_takes_its_environments(
    make: Make,
) -> None:
    host = make()
    version = await host.deploy()
    first = host.attach()
    await settle()
    inside = await host.warm(version, first)
    first.commands.close()
    second = host.attach()  # both are readable in one turn of the loop, the new one first
    second.ready()
    await settle()
    second.hear_all()
    assert second.adopted == [inside.number]
    inside.vanish()
    await until(lambda: not host.dispatcher._fleets[version.function, version.key].idle)


async def test_a_start_that_a_new_zygote_overtook_is_repeated(make: Make) -> None:
    host = make()
    version = await host.deploy()
    first = host.attach()
    await settle()
    (request_id,) = host.deliver(version)
    lost = await first.spawned()
    first.die()
    second = host.attach()
    assert lost.life < 0
    inside = await second.spawned()
    await inside.begin()
    assert await inside.answer() == request_id


async def test_a_start_that_was_refused_is_not_blamed_on_the_function(make: Make) -> None:
    host = make()
    version = await host.deploy()
    zygote = host.attach()
    await settle()
    (request_id,) = host.deliver(version)
    refused = await zygote.spawned()
    refused.vanish()  # its end of the channel closes with it, which is seen first
    await settle()
    zygote.tell(wire.REFUSED, refused.number, 12)
    inside = await zygote.spawned()
    assert request_id not in host.answers
    await inside.begin()
    assert await inside.answer() == request_id


async def test_a_zygote_that_dies_with_many_starts_fails_no_caller(make: Make) -> None:
    host = make()
    version = await host.deploy()
    first = host.attach()
    await settle()
    request_ids = host.deliver(version, 5)
    for _ in request_ids:
        await first.spawned()
    first.die()
    await until(lambda: "down" in repr(host.pool.zygotes[RUNTIME]))
    await settle()
    assert not host.answers


# ---------------------------------------------------------------------- environments that misbehave


async def test_an_idle_environment_that_closed_its_channel_gets_no_event(make: Make) -> None:
    host = make()
    version = await host.deploy()
    zygote = host.attach()
    await settle()
    inside = await host.warm(version, zygote)
    inside.close_channel()
    await settle()
    (request_id,) = host.deliver(version)
    other = await zygote.spawned()
    await other.begin()
    assert await other.answer() == request_id


async def test_an_idle_environment_that_wrote_junk_gets_no_event(make: Make) -> None:
    host = make()
    version = await host.deploy()
    zygote = host.attach()
    await settle()
    inside = await host.warm(version, zygote)
    inside.send(wire.RESULT, 99, b"late")
    await settle()
    (request_id,) = host.deliver(version)
    other = await zygote.spawned()
    await other.begin()
    assert await other.answer() == request_id


async def test_an_initialisation_that_writes_junk_is_an_answer_and_not_a_loop(make: Make) -> None:
    host = make()
    version = await host.deploy()
    zygote = host.attach()
    await settle()
    (request_id,) = host.deliver(version)
    inside = await zygote.spawned()
    inside.start()
    await inside.frame()
    inside.send(77, 0)
    await until(lambda: request_id in host.answers)
    assert b"Runtime.ExitError" in host.answers[request_id]


async def test_an_answer_written_before_the_end_counts(make: Make) -> None:
    host = make()
    version = await host.deploy()
    zygote = host.attach()
    await settle()
    inside = await host.warm(version, zygote)
    (request_id,) = host.deliver(version)
    attempt, _ = await inside.event()
    # One turn of the loop sees both, the end first.
    zygote.tell(wire.EXITED, inside.number, 0)
    inside.send(wire.RESULT, attempt, b'"done"')
    await until(lambda: request_id in host.answers)
    assert host.answers[request_id] == b'"done"'


# ---------------------------------------------------------------------- versions


async def test_a_version_that_comes_back_is_kept_warm(make: Make) -> None:
    host = make()
    zygote = host.attach()
    await settle()
    first = await host.deploy(memory_mb=128)
    busy = await host.warm(first, zygote)
    (held,) = host.deliver(first)  # keeps the first version's fleet from being forgotten
    second = await host.deploy(memory_mb=256)
    await host.warm(second, zygote)
    fleet = host.dispatcher._fleets["hello", first.key]
    await until(lambda: fleet.is_superseded)
    assert await host.deploy(memory_mb=128) == first
    host.dispatcher.changed("hello")
    await until(lambda: not fleet.is_superseded)
    await busy.answer()
    await until(lambda: held in host.answers)
    (request_id,) = host.deliver(first)
    assert await busy.answer() == request_id, "the environment was thrown away"


async def test_a_late_event_of_the_old_version_does_not_cool_the_new_one(make: Make) -> None:
    host = make()
    zygote = host.attach()
    await settle()
    old = await host.deploy(memory_mb=128)
    new = await host.deploy(memory_mb=256)
    warm = await host.warm(new, zygote)
    (late,) = host.deliver(old)
    other = await zygote.spawned()
    await other.begin()
    assert await other.answer() == late
    (request_id,) = host.deliver(new)
    assert await warm.answer() == request_id


async def test_an_event_that_comes_with_the_word_of_a_change_runs_the_new_version(
    make: Make,
) -> None:
    host = make()
    zygote = host.attach()
    await settle()
    old = await host.deploy(memory_mb=128)
    await host.warm(old, zygote)
    new = await host.deploy(memory_mb=256)
    host.dispatcher.changed("hello")
    (request_id,) = host.deliver(old, version_key="")  # those of the durable lane name none
    inside = await zygote.spawned()
    await inside.begin()
    assert await inside.answer() == request_id
    await until(lambda: request_id in host.answers)
    assert host.dispatcher._fleets["hello", new.key].idle


async def test_what_is_loaded_counts_as_taken(make: Make) -> None:
    host = make(max_environments=4)
    zygote = host.attach()
    await settle()
    old = await host.deploy(memory_mb=128)
    await host.warm(old, zygote)
    new = await host.deploy(memory_mb=256)
    host.deliver(new, 4)
    assert host.dispatcher.room("hello") == 0


# ---------------------------------------------------------------------- time


async def test_a_slow_initialisation_is_repeated_for_each_that_waits(make: Make) -> None:
    host = make(init_limit_ms=100)
    version = await host.deploy(timeout_ms=60_000)
    zygote = host.attach()
    await settle()
    request_ids = host.deliver(version, 2)
    slow = [await zygote.spawned(), await zygote.spawned()]
    for inside in slow:
        inside.start()
    repeated = [await zygote.spawned(), await zygote.spawned()]
    for inside in repeated:
        await inside.begin()
    answered = {await inside.answer() for inside in repeated}
    assert answered == set(request_ids)


async def test_one_slow_initialisation_does_not_shorten_all_later_ones(make: Make) -> None:
    host = make(init_limit_ms=300)
    version = await host.deploy(timeout_ms=100)
    zygote = host.attach()
    await settle()
    (request_id,) = host.deliver(version)
    (await zygote.spawned()).start()
    repeated = await zygote.spawned()
    await repeated.begin()
    await repeated.answer()
    await until(lambda: request_id in host.answers)
    repeated.exit()
    await settle()
    (later,) = host.deliver(version)
    inside = await zygote.spawned()
    inside.start()
    await anyio.sleep(0.2)  # longer than the function's timeout, shorter than the init limit
    assert later not in host.answers
    await inside.frame()
    inside.send(wire.INITIALISED, 0)
    assert await inside.answer() == later


async def test_an_event_behind_one_that_outlasts_all_before_gets_another_environment(
    make: Make,
) -> None:
    host = make()
    version = await host.deploy(timeout_ms=60_000)
    zygote = host.attach()
    await settle()
    inside = await host.warm(version, zygote)
    for _ in range(20):
        (request_id,) = host.deliver(version)
        await inside.answer()
        await answered(host, request_id)
    host.deliver(version)  # this one runs on and on
    await inside.event()
    (behind,) = host.deliver(version)
    with anyio.move_on_after(2):
        await host.dispatcher.sweep(lambda: None)
    other = await zygote.spawned()
    await other.begin()
    assert await other.answer() == behind


async def test_a_deadline_that_fails_does_not_stop_the_others() -> None:
    deadlines = Deadlines()
    fired = []

    def fail() -> None:
        raise RuntimeError("a bug of ours")

    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    deadlines.after(0.001, fail)
    await until(lambda: errors)
    deadlines.after(0.001, lambda: fired.append(1))
    await until(lambda: fired)


async def test_deadlines_that_were_cleared_are_forgotten_long_before_their_time() -> None:
    deadlines = Deadlines()
    for _ in range(20_000):
        clear(deadlines.after(900, lambda: None))
    assert len(deadlines._heap) < 10_000


async def test_an_idle_environment_is_retired_before_its_credentials_expire(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make()
    version = await host.deploy()
    zygote = host.attach()
    await settle()
    await host.warm(version, zygote)
    fleet = host.dispatcher._fleets[version.function, version.key]
    assert fleet.retire(idle_before=0) == 0
    monkeypatch.setattr(fleets, "OLDEST_S", 0)
    assert fleet.retire(idle_before=0) == 1


# ---------------------------------------------------------------------- sharing the host


async def test_a_function_with_work_waiting_for_ever_leaves_room_for_another(make: Make) -> None:
    host = make(max_environments=1)
    zygote = host.attach()
    await settle()
    greedy, modest = await host.deploy("greedy"), await host.deploy("modest")
    inside = await host.warm(greedy, zygote)
    host.deliver(greedy, 3)
    (request_id,) = host.deliver(modest)

    async def keep_busy() -> None:
        with suppress(OSError, EOFError):
            while True:
                await inside.answer()
                host.deliver(greedy)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(host.dispatcher.sweep, lambda: None)
        tasks.start_soon(keep_busy)
        other = await zygote.spawned()
        await other.begin()
        assert await other.answer() == request_id
        tasks.cancel_scope.cancel()


async def test_a_start_that_was_given_up_leaves_every_count_as_it_was(make: Make) -> None:
    host = make(init_limit_ms=50)
    version = await host.deploy(timeout_ms=50)
    zygote = host.attach()
    await settle()
    request_ids = host.deliver(version, 2)
    for _ in range(8):
        with anyio.move_on_after(0.2):
            (await zygote.spawned()).start()
    await until(lambda: len(host.answers) == len(request_ids))
    for inside in zygote.insides:
        inside.exit(-9)
    await settle()
    assert (host.pool.starting, len(host.pool._living), len(host.pool._bodies)) == (0, 0, 0)


async def test_after_a_version_that_cannot_be_read_the_function_is_read_on(make: Make) -> None:
    host = make()
    version = await host.deploy()
    host.attach()
    (request_id,) = host.deliver(version, version_key="gone")
    await until(lambda: request_id in host.answers)
    assert host.reads == ["hello"]


async def test_draining_ends_with_a_version_that_cannot_be_read(make: Make) -> None:
    host = make()
    version = await host.deploy()
    host.attach()
    host.deliver(version, version_key="gone")
    with anyio.fail_after(3):
        await host.dispatcher.finished()
