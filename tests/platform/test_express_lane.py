"""The express lane end to end, over a real server: a gateway's calls and a supervisor's intake."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from redis.asyncio import Redis

from trivet.bus import frames, keys
from trivet.bus.consume import Intake
from trivet.bus.publish import Calls
from trivet.bus.resp import Address
from trivet.core.invocations import Event, Reply
from trivet.errors import PlatformError, Throttled

pytestmark = pytest.mark.anyio


class Echo:
    """A taker that answers with what it was given, as long as it has room."""

    def __init__(self) -> None:
        self.capacity = 10
        self.held: list[frames.Delivery] = []
        self.changes: list[str] = []
        self.answer: Callable[[frames.Delivery, bytes], None] | None = None

    def room(self, function: str) -> int:
        return self.capacity - len(self.held)

    def take(self, deliveries: list[frames.Delivery]) -> None:
        for delivery in deliveries:
            if self.answer is None:
                self.held.append(delivery)
            else:
                reply = frames.pack_reply(delivery.call, delivery.payload, None, "$LATEST", b"")
                self.answer(delivery, reply)

    def is_idle(self, function: str) -> bool:
        return not self.held

    def changed(self, function: str) -> None:
        self.changes.append(function)


def event(function: str = "hello", payload: bytes = b"{}") -> Event:
    return Event(id=str(uuid.uuid4()), function=function, source="test", payload=payload)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


class Lane:
    """One gateway and any number of supervisors on one server."""

    def __init__(self, socket: str, tasks: anyio.abc.TaskGroup) -> None:
        self.address = Address(socket=socket)
        self.tasks = tasks

    async def calls(self, **options: int) -> Calls:
        settings = {"admission_wait_ms": 10_000, "max_concurrency": 100, **options}
        calls = Calls(uuid.uuid4().hex, self.address, **settings)
        self.tasks.start_soon(calls.run)
        await until(lambda: "connected" in repr(calls))
        return calls

    async def intake(self, taker: Echo, *, epoch: str = "1", answers: bool = True) -> Intake:
        intake = Intake(self.address, node="n", epoch=epoch, taker=taker)
        taker.answer = intake.answer if answers else None
        started = anyio.Event()
        self.tasks.start_soon(lambda: intake.run(started=started.set))
        with anyio.fail_after(10):
            await started.wait()
        return intake


@pytest.fixture
async def lane(durable: Redis, durable_socket: str) -> AsyncIterator[Lane]:
    async with anyio.create_task_group() as tasks:
        yield Lane(durable_socket, tasks)
        tasks.cancel_scope.cancel()


async def invoke(calls: Calls, sent: Event) -> Reply:
    return await calls.invoke(sent, version_key="v", invoked_arn="arn", limit_ms=5_000)


async def test_an_event_comes_back_as_a_reply_under_its_own_id(lane: Lane) -> None:
    calls = await lane.calls()
    await lane.intake(Echo())
    sent = event(payload=b'{"n": 1}')
    reply = await invoke(calls, sent)
    assert (reply.request_id, reply.payload) == (sent.id, b'{"n": 1}')


async def test_many_calls_at_once_get_each_its_own_answer(lane: Lane) -> None:
    calls = await lane.calls()
    await lane.intake(Echo())
    answers: dict[int, bytes] = {}

    async def call(n: int) -> None:
        answers[n] = (await invoke(calls, event(f"f{n % 7}", b"%d" % n))).payload

    async with anyio.create_task_group() as tasks:
        for n in range(100):
            tasks.start_soon(call, n)
    assert answers == {n: b"%d" % n for n in range(100)}


async def test_an_answered_event_leaves_nothing_but_the_group(lane: Lane, durable: Redis) -> None:
    calls = await lane.calls()
    intake = await lane.intake(Echo())
    await invoke(calls, event())
    intake.leave_idle()
    while await durable.exists(keys.rung_flag("hello"), keys.express_stream("hello")):
        await anyio.lowlevel.checkpoint()
    assert (await invoke(calls, event())).payload == b"{}"


async def test_a_reply_of_six_megabytes_arrives_whole(lane: Lane) -> None:
    calls = await lane.calls()
    await lane.intake(Echo())
    payload = b'"' + b"x" * 6_000_000 + b'"'
    assert (await invoke(calls, event(payload=payload))).payload == payload


async def test_a_call_that_nobody_takes_in_time_is_withdrawn_and_throttled(
    lane: Lane, durable: Redis
) -> None:
    calls = await lane.calls(admission_wait_ms=100)
    with pytest.raises(Throttled) as refused:
        await invoke(calls, event())
    assert refused.value.members["Reason"] == "ConcurrentInvocationLimitExceeded"
    assert await durable.xlen(keys.express_stream("hello")) == 0


async def test_a_call_that_was_taken_is_not_withdrawn(lane: Lane) -> None:
    calls = await lane.calls(admission_wait_ms=100)
    taker = Echo()
    intake = await lane.intake(taker, answers=False)
    replies: list[Reply] = []

    async def call() -> None:
        replies.append(await invoke(calls, event()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await until(lambda: bool(taker.held))
        with anyio.move_on_after(1):
            # Long past the admission wait: the withdrawal has been tried, and was too late.
            await until(lambda: bool(replies))
        assert not replies
        held = taker.held.pop()
        intake.answer(held, frames.pack_reply(held.call, b"1", None, "$LATEST", b""))
    assert replies[0].payload == b"1"


async def test_more_calls_than_the_account_may_have_are_throttled_at_once(lane: Lane) -> None:
    calls = await lane.calls(max_concurrency=1)
    taker = Echo()
    await lane.intake(taker, answers=False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(invoke, calls, event())
        await until(lambda: bool(taker.held))
        with pytest.raises(Throttled):
            await invoke(calls, event())
        tasks.cancel_scope.cancel()


async def test_no_more_is_read_than_there_is_room(lane: Lane) -> None:
    calls = await lane.calls()
    taker = Echo()
    taker.capacity = 3
    await lane.intake(taker, answers=False)
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(invoke, calls, event())
        await until(lambda: len(taker.held) == 3)
        tasks.cancel_scope.cancel()
    assert len(taker.held) == 3


async def test_a_dead_supervisor_s_calls_are_failed_and_its_functions_served_on(
    durable: Redis, durable_socket: str
) -> None:
    async with anyio.create_task_group() as gateway:
        lane = Lane(durable_socket, gateway)
        calls = await lane.calls()
        failures: list[PlatformError] = []
        taker = Echo()
        taker.capacity = 1

        async def call() -> None:
            try:
                await invoke(calls, event())
            except PlatformError as error:
                failures.append(error)

        async with anyio.create_task_group() as callers:
            async with anyio.create_task_group() as supervisor:
                await Lane(durable_socket, supervisor).intake(taker, epoch="1", answers=False)
                callers.start_soon(call)
                await until(lambda: bool(taker.held))
                callers.start_soon(call)  # this one waits unread, and is for the successor
                supervisor.cancel_scope.cancel()
            await lane.intake(Echo(), epoch="2")
        assert [str(error) for error in failures] == [
            "The supervisor that ran this invocation ended."
        ]
        assert await durable.smembers(keys.epochs("n")) == {b"2"}
        gateway.cancel_scope.cancel()


async def test_junk_in_the_stream_is_passed_over(lane: Lane, durable: Redis) -> None:
    calls = await lane.calls()
    stream = keys.express_stream("hello")
    for junk in (b"", b"junk", b"\x93\x01\x02\x03", b"\xdd\xff\xff\xff\xff", b"\xc1"):
        await durable.xadd(stream, {"e": junk})
    await lane.intake(Echo())
    assert (await invoke(calls, event())).payload == b"{}"
    while await durable.xlen(stream):
        await anyio.lowlevel.checkpoint()


async def test_a_changed_function_is_told_to_the_supervisors(lane: Lane) -> None:
    calls = await lane.calls()
    taker = Echo()
    await lane.intake(taker)
    await calls.tell_changed("hello")
    await until(lambda: taker.changes == ["hello"])


async def test_replies_to_a_gateway_that_is_gone_are_kept_nowhere(
    lane: Lane, durable: Redis
) -> None:
    intake = await lane.intake(Echo())
    packed = frames.pack_event(
        event(), call=1, reply_to="gone", version_key="v", invoked_arn="arn", expires_ms=2**40
    )
    await durable.xadd(keys.express_stream("hello"), {"e": packed})
    intake.rung("hello")
    while await durable.xlen(keys.express_stream("hello")):
        await anyio.lowlevel.checkpoint()
    assert not await durable.exists(keys.replies("gone"))
