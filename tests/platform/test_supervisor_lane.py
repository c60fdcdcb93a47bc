"""The express lane where it goes wrong: connections lost one by one, streams left too early."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from functools import partial

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from redis.asyncio import Redis
from tests.platform.test_express_lane import Echo, Lane, event, invoke, until

from trivet.bus import frames, keys, publish
from trivet.bus.consume import Intake
from trivet.bus.resp import pack
from trivet.bus.streams import MOST_STREAMS
from trivet.errors import PlatformError, Unavailable

pytestmark = pytest.mark.anyio


@pytest.fixture
async def lane(durable: Redis, durable_socket: str) -> AsyncIterator[Lane]:
    async with anyio.create_task_group() as tasks:
        yield Lane(durable_socket, tasks)
        tasks.cancel_scope.cancel()


def served(intake: Intake) -> list[str]:
    return intake._streams.served() if intake._streams is not None else []


def is_serving(intake: Intake) -> bool:
    return bool(served(intake))


def is_reading(intake: Intake) -> bool:
    return " 0 reading" not in repr(intake)


class Idle(Echo):
    """Everything is answered at once, so every function may be left at any time."""

    def is_idle(self, function: str) -> bool:
        return True


async def test_an_event_between_two_looks_does_not_keep_a_stream_for_ever(lane: Lane) -> None:
    calls = await lane.calls()
    intake = await lane.intake(Idle())
    await invoke(calls, event())
    await until(lambda: is_reading(intake))
    assert intake._out is not None
    packed = frames.pack_event(
        event(), call=1, reply_to="gone", version_key="v", invoked_arn="arn", expires_ms=2**40
    )
    # The server sees the event first: then the read that is to be unblocked has ended already.
    command = pack(("XADD", keys.express_stream("hello"), "*", "e", packed))
    intake._out.send(command, lambda reply: None)
    intake.leave_idle()
    await until(lambda: is_reading(intake))
    with anyio.fail_after(3):
        while served(intake):
            intake.leave_idle()
            await anyio.sleep(0.01)


async def test_no_event_is_lost_to_a_stream_that_is_being_left(lane: Lane, durable: Redis) -> None:
    """Rung while the script that leaves is under way: the read must wait for its verdict."""
    calls = await lane.calls()
    taker = Idle()
    intake = await lane.intake(taker)
    lost = 0
    for n in range(100):
        function = f"f{n}"
        await invoke(calls, event(function))
        await until(lambda: is_reading(intake))
        intake.leave_idle()
        # The word to end the read is on its way: a ring meets each moment of the leaving.
        for _ in range(n % 10):
            await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(0.5) as scope:
            await invoke(calls, event(function))
        lost += scope.cancelled_caught
    assert lost == 0


async def test_a_read_that_begins_in_the_moment_of_stopping_does_not_hold_it_up(
    lane: Lane,
) -> None:
    for n in range(20):
        calls = await lane.calls()
        taker = Echo()
        taker.capacity = 0
        intake = await lane.intake(taker, epoch=f"e{n}")
        await anyio.sleep(0.01)
        intake.rung("hello")
        await until(partial(is_serving, intake))
        taker.capacity = 1
        intake.read("hello")  # not at the server yet
        with anyio.fail_after(3):
            await intake.drain()
    assert calls


async def test_a_supervisor_that_loses_only_its_way_out_answers_again(
    lane: Lane, durable: Redis
) -> None:
    calls = await lane.calls()
    intake = await lane.intake(Echo())
    await invoke(calls, event())
    assert intake._out is not None
    number = await intake._out.call("CLIENT", "ID")
    await durable.client_kill_filter(_id=number)
    with anyio.fail_after(3):
        while True:
            with anyio.move_on_after(0.3) as scope:
                try:
                    await invoke(calls, event())
                except PlatformError:
                    continue  # this one went with the connection, and its caller is told so
            if not scope.cancelled_caught:
                break


async def test_a_gateway_that_loses_only_its_way_out_publishes_again(
    lane: Lane, durable: Redis
) -> None:
    calls = await lane.calls()
    await lane.intake(Echo())
    await invoke(calls, event())
    assert calls._out is not None
    number = await calls._out.call("CLIENT", "ID")
    await durable.client_kill_filter(_id=number)
    with anyio.fail_after(3):
        while True:
            try:
                await invoke(calls, event())
                break
            except Unavailable:
                await anyio.sleep(0.02)


async def test_answers_of_a_moment_without_a_server_are_sent_later(
    lane: Lane, durable: Redis
) -> None:
    calls = await lane.calls()
    taker = Echo()
    intake = await lane.intake(taker, answers=False)
    replies: list[bytes] = []

    async def call() -> None:
        replies.append((await invoke(calls, event())).payload)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await until(lambda: bool(taker.held))
        held = taker.held.pop()
        assert intake._out is not None
        number = await intake._out.call("CLIENT", "ID")
        await durable.client_kill_filter(_id=number)
        with anyio.fail_after(3):
            while intake._out is not None:
                await anyio.lowlevel.checkpoint()
        intake.answer(held, frames.pack_reply(held.call, b"1", None, "$LATEST", b""))
        with anyio.fail_after(3):
            while await durable.xlen(keys.express_stream("hello")):
                await anyio.lowlevel.checkpoint()
    assert replies == [b"1"]


async def test_replies_arrive_after_the_gateway_slept_longer_than_its_stream_lives(
    lane: Lane, durable: Redis
) -> None:
    calls = await lane.calls()
    await lane.intake(Echo())
    await invoke(calls, event())
    await durable.delete(keys.replies(calls._gateway))  # as when it expires
    with anyio.fail_after(4):
        while True:
            with anyio.move_on_after(0.5) as scope:
                await invoke(calls, event())
            if not scope.cancelled_caught:
                break


async def test_what_a_caller_gave_up_is_taken_back(lane: Lane, durable: Redis) -> None:
    calls = await lane.calls()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(invoke, calls, event())
        while not await durable.xlen(keys.express_stream("hello")):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    with anyio.fail_after(3):
        while await durable.xlen(keys.express_stream("hello")):
            await anyio.lowlevel.checkpoint()


async def test_calls_that_are_over_are_forgotten_behind_one_that_waits(lane: Lane) -> None:
    calls = await lane.calls()
    taker = Echo()
    intake = await lane.intake(taker, answers=False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(invoke, calls, event())
        await until(lambda: bool(taker.held))
        taker.answer = intake.answer
        for _ in range(20):
            await invoke(calls, event())
        await anyio.sleep(2 * publish.SWEEP_S)
        assert len(calls._admitting) <= 1
        tasks.cancel_scope.cancel()


async def test_a_key_of_another_kind_does_not_end_the_supervisor(
    durable: Redis, lane: Lane
) -> None:
    calls = await lane.calls()
    intake = await lane.intake(Echo())
    await durable.set(keys.express_stream("broken"), "junk")
    intake.rung("broken")
    await anyio.sleep(0.1)
    assert (await invoke(calls, event())).payload == b"{}"


async def test_junk_on_the_bell_is_passed_over(durable: Redis, lane: Lane) -> None:
    calls = await lane.calls()
    await lane.intake(Echo())
    await durable.xadd(keys.BELL, {keys.RING: b"\xff\xfe"})
    assert (await invoke(calls, event())).payload == b"{}"


async def test_a_successor_of_many_functions_opens_a_bounded_number_of_streams(
    durable: Redis, lane: Lane
) -> None:
    names = [f"f{n}" for n in range(4 * MOST_STREAMS)]
    await durable.sadd(keys.epochs("n"), "0")
    await durable.sadd(keys.epoch_functions("n", "0"), *names)
    intake = await lane.intake(Idle())
    most = 0
    with anyio.move_on_after(1):
        while True:
            await anyio.lowlevel.checkpoint()
            most = max(most, len(served(intake)))
    assert 0 < most <= MOST_STREAMS + 8


async def test_the_function_read_longest_ago_is_left_first(lane: Lane) -> None:
    calls = await lane.calls()
    intake = await lane.intake(Idle())
    await invoke(calls, event("hot"))
    for n in range(MOST_STREAMS - 1):
        await invoke(calls, event(f"f{n}"))
    await invoke(calls, event("hot"))
    await invoke(calls, event("one more"))
    await until(lambda: "f0" not in served(intake) or "hot" not in served(intake))
    assert "hot" in served(intake)


async def test_a_supervisor_that_drains_and_is_killed_leaves_its_calls_to_its_successor(
    durable: Redis, durable_socket: str
) -> None:
    async with anyio.create_task_group() as gateway:
        lane = Lane(durable_socket, gateway)
        calls = await lane.calls()
        taker = Echo()
        failed = anyio.Event()

        async def call() -> None:
            with pytest.raises(PlatformError):
                await invoke(calls, event())
            failed.set()

        async with anyio.create_task_group() as supervisor:
            dying: Intake = await Lane(durable_socket, supervisor).intake(taker, answers=False)
            gateway.start_soon(call)
            await until(lambda: bool(taker.held))
            await dying.drain()
            supervisor.cancel_scope.cancel()
        await lane.intake(Echo(), epoch=uuid.uuid4().hex)
        with anyio.move_on_after(3):
            await failed.wait()
        assert failed.is_set()
        gateway.cancel_scope.cancel()
