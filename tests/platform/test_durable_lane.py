"""The durable lane end to end, over a real server: publishers and a supervisor's intake."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from redis.asyncio import Redis

from trivet.bus import enqueue, frames, keys
from trivet.bus.dequeue import DurableIntake
from trivet.bus.enqueue import DurablePublisher
from trivet.bus.resp import Address
from trivet.core.arns import Place
from trivet.core.billing import Reading
from trivet.core.invocations import Event
from trivet.core.retries import Again, Attempt, Over, Verdict
from trivet.errors import FunctionNotFound, RequestTooLarge, Throttled, Unavailable
from trivet.store.bills import BillStore

pytestmark = pytest.mark.anyio

SUCCEEDED = Over("success", "Success")


class Holder:
    """Takes events, as many as it has room for, and holds them."""

    def __init__(self, room: int = 100) -> None:
        self.capacity = room
        self.held: list[frames.Delivery] = []

    def durable_room(self, function: str, backlog: int) -> int:
        return self.capacity - len(self.held)

    def take(self, deliveries: list[frames.Delivery]) -> None:
        self.held.extend(deliveries)

    def is_idle(self, function: str) -> bool:
        return not self.held


def event(function: str = "hello", payload: bytes = b"{}") -> Event:
    return Event(id=str(uuid.uuid4()), function=function, source="test", payload=payload)


def reading(delivery: frames.Delivery) -> Reading:
    return Reading(
        request_id=delivery.request_id,
        function=delivery.function,
        version="$LATEST",
        ended_ms=int(time.time() * 1000),
        memory_mb=128,
        billed_ms=10,
        init_ms=None,
        start="warm",
        status="",
    )


def ended(intake: DurableIntake, delivery: frames.Delivery, verdict: Verdict = SUCCEEDED) -> None:
    """An attempt at the event has ended."""
    read = reading(delivery)
    attempt = Attempt(read.ended_ms, "ok", "", "$LATEST", read.billed_ms, read.memory_mb)
    assert delivery.progress is not None
    intake.commit(delivery, delivery.progress.with_attempt(attempt), verdict, (read,))


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


class Lane:
    def __init__(self, socket: str, tasks: anyio.abc.TaskGroup) -> None:
        self.address = Address(socket=socket)
        self.tasks = tasks

    async def publisher(self, **options: Any) -> DurablePublisher:
        async def exists(name: str) -> bool:
            return name != "nowhere"

        publisher = DurablePublisher(self.address, self.address, exists=exists, **options)
        self.tasks.start_soon(publisher.run)
        await until(lambda: "connected" in repr(publisher))
        return publisher

    async def intake(self, taker: Holder, epoch: str = "1", **options: Any) -> DurableIntake:
        async def set_flag(function: str, is_rung: bool) -> None:
            async with Redis(unix_socket_path=self.address.socket) as redis:
                flag = keys.durable_rung_flag(function)
                await (redis.set(flag, "1") if is_rung else redis.delete(flag))

        intake = DurableIntake(
            self.address,
            node="n",
            epoch=epoch,
            place=Place("us-east-1", "123456789012"),
            taker=taker,
            set_flag=set_flag,
            **options,
        )
        self.tasks.start_soon(intake.run)
        await until(lambda: "away" not in repr(intake))
        return intake


@pytest.fixture
async def lane(durable: Redis, durable_socket: str) -> AsyncIterator[Lane]:
    async with anyio.create_task_group() as tasks:
        yield Lane(durable_socket, tasks)
        tasks.cancel_scope.cancel()


async def test_an_event_stays_on_its_stream_until_it_is_committed(
    lane: Lane, durable: Redis
) -> None:
    publisher, taker = await lane.publisher(), Holder()
    intake = await lane.intake(taker)
    assert await publisher.publish(event())
    intake.rung("hello")
    await until(lambda: bool(taker.held))
    assert await durable.xlen(keys.durable_stream("hello")) == 1
    ended(intake, taker.held[0])
    await intake.committed()
    assert await durable.xlen(keys.durable_stream("hello")) == 0
    month = reading(taker.held[0]).month
    bills = BillStore(durable)
    assert (await bills.month(month))["hello"].requests == 1
    assert await bills.month(month) == await bills.recomputed(month)


async def test_a_commit_that_is_sent_twice_is_metered_once(lane: Lane, durable: Redis) -> None:
    publisher, taker = await lane.publisher(), Holder()
    intake = await lane.intake(taker)
    await publisher.publish(event())
    intake.rung("hello")
    await until(lambda: bool(taker.held))
    delivery = taker.held[0]
    for _ in range(3):
        ended(intake, delivery)
    await intake.committed()
    assert (await BillStore(durable).month(reading(delivery).month))["hello"].requests == 1


async def test_marks_of_metered_batches_do_not_pile_up(lane: Lane, durable: Redis) -> None:
    publisher, taker = await lane.publisher(), Holder()
    intake = await lane.intake(taker)
    await publisher.publish(event())
    intake.rung("hello")
    await until(lambda: bool(taker.held))
    for _ in range(20):
        intake.meter([reading(taker.held[0])])
        await intake.committed()
    assert len(await durable.keys(keys.commit_mark("hello", "*"))) == 1
    month = reading(taker.held[0]).month
    assert (await BillStore(durable).month(month))["hello"].requests == 20


async def test_an_idempotency_key_is_accepted_once(lane: Lane, durable: Redis) -> None:
    publisher = await lane.publisher()
    assert await publisher.publish(event(), once="slot-1")
    assert not await publisher.publish(event(), once="slot-1")
    assert await publisher.publish(event(), once="slot-2")
    assert await durable.xlen(keys.durable_stream("hello")) == 2


async def test_a_full_lane_is_an_error_and_loses_nothing(lane: Lane, durable: Redis) -> None:
    publisher = await lane.publisher(most_waiting=2)
    await publisher.publish(event())
    await publisher.publish(event())
    with pytest.raises(Throttled):
        await publisher.publish(event())
    assert await durable.xlen(keys.durable_stream("hello")) == 2


async def test_who_publishes_does_not_wait_for_ever(
    lane: Lane, durable: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enqueue, "ACCEPT_WITHIN_S", 0.05)
    publisher = await lane.publisher()
    await durable.client_pause(60_000, all=False)
    try:
        with pytest.raises(Unavailable, match="may have been accepted"):
            await publisher.publish(event())
    finally:
        await durable.client_unpause()
    assert "0 in flight" in repr(publisher)
    while not await durable.xlen(keys.durable_stream("hello")):
        await anyio.lowlevel.checkpoint()
    assert await publisher.publish(event())  # what came late harms nobody


async def test_what_cannot_be_run_is_not_accepted(lane: Lane, durable: Redis) -> None:
    publisher = await lane.publisher()
    with pytest.raises(FunctionNotFound):
        await publisher.publish(event("nowhere"))
    with pytest.raises(RequestTooLarge):
        await publisher.publish(event(payload=b"x" * 1_048_577))
    assert not await durable.exists(keys.durable_stream("hello"))


async def test_nothing_is_read_ahead(lane: Lane, durable: Redis) -> None:
    publisher, taker = await lane.publisher(), Holder(room=2)
    intake = await lane.intake(taker)
    for _ in range(5):
        await publisher.publish(event())
    intake.rung("hello")
    await until(lambda: len(taker.held) == 2)
    pending = await durable.xpending(keys.durable_stream("hello"), keys.GROUP)
    assert pending["pending"] == 2


async def test_a_successor_takes_over_what_a_dead_epoch_was_running(
    durable: Redis, durable_socket: str
) -> None:
    async with anyio.create_task_group() as outside:
        lane = Lane(durable_socket, outside)
        publisher, dying, taker = await lane.publisher(), Holder(room=3), Holder()
        for _ in range(5):
            await publisher.publish(event())
        async with anyio.create_task_group() as supervisor:
            intake = await Lane(durable_socket, supervisor).intake(dying, epoch="1")
            intake.rung("hello")
            await until(lambda: len(dying.held) == 3)
            supervisor.cancel_scope.cancel()
        # Nobody rings: it finds what was taken by the epoch, and what was not by its sweep.
        await lane.intake(taker, epoch="2")
        await until(lambda: len(taker.held) == 5)
        ids = {delivery.request_id for delivery in taker.held}
        assert ids > {delivery.request_id for delivery in dying.held}
        assert len(ids) == 5
        assert await durable.smembers(keys.durable_epochs("n")) == {b"2"}
        outside.cancel_scope.cancel()


def served(intake: DurableIntake) -> list[str]:
    return intake._streams.served() if intake._streams is not None else []


async def test_the_sweep_ends_no_read(
    lane: Lane, durable: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its flag would say that somebody was told, and every event would wait for a sweep."""
    monkeypatch.setattr("trivet.bus.dequeue.SWEEP_S", 0.001)
    publisher, taker = await lane.publisher(), Holder()
    intake = await lane.intake(taker)
    await publisher.publish(event())
    await until(lambda: bool(taker.held))
    ended(intake, taker.held.pop())
    await intake.committed()
    looks = (await durable.info("commandstats"))["cmdstat_evalsha"]["calls"]
    with anyio.fail_after(10):
        while (await durable.info("commandstats"))["cmdstat_evalsha"]["calls"] < looks + 3:
            await anyio.lowlevel.checkpoint()
    assert served(intake) == ["hello"]
    assert await durable.exists(keys.durable_stream("hello"))


async def test_what_a_dead_epoch_served_is_served_again(
    durable: Redis, durable_socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with nothing to do: the flag that it left keeps publishers from ringing."""
    monkeypatch.setattr("trivet.bus.dequeue.SWEEP_S", 3600)
    async with anyio.create_task_group() as outside:
        lane = Lane(durable_socket, outside)
        publisher, taker = await lane.publisher(), Holder()
        async with anyio.create_task_group() as supervisor:
            intake = await Lane(durable_socket, supervisor).intake(Holder(), epoch="1")
            intake.rung("hello")
            await until(lambda: served(intake) == ["hello"])
            supervisor.cancel_scope.cancel()
        successor = await lane.intake(taker, epoch="2")
        await until(lambda: served(successor) == ["hello"])
        await publisher.publish(event())
        await until(lambda: bool(taker.held))
        outside.cancel_scope.cancel()


async def test_junk_is_set_aside_and_the_consumer_lives(lane: Lane, durable: Redis) -> None:
    publisher, taker = await lane.publisher(), Holder()
    stream = keys.durable_stream("hello")
    for junk in (b"", b"junk", b"\x93\x01\x02\x03", b"\xc1"):
        await durable.xadd(stream, {"e": junk})
    await publisher.publish(event())
    intake = await lane.intake(taker)
    intake.rung("hello")
    await until(lambda: bool(taker.held))
    await intake.committed()
    assert await durable.xlen(keys.quarantine("hello")) == 4
    assert await durable.xlen(stream) == 1
    assert intake.malformed == 4


async def test_commits_of_a_moment_without_a_server_are_sent_later(
    lane: Lane, durable: Redis
) -> None:
    publisher, taker = await lane.publisher(), Holder()
    intake = await lane.intake(taker)
    await publisher.publish(event())
    intake.rung("hello")
    await until(lambda: bool(taker.held))
    assert intake._out is not None
    number = await intake._out.call("CLIENT", "ID")
    await durable.client_kill_filter(_id=number)
    await until(lambda: intake._out is None)
    ended(intake, taker.held[0])
    with anyio.fail_after(10):
        await intake.committed()
    assert await durable.xlen(keys.durable_stream("hello")) == 0


async def totals(durable: Redis, function: str = "hello") -> dict[str, int]:
    found: Any = await durable.hgetall(keys.totals(function))
    return {name.decode(): int(count) for name, count in found.items()}


async def test_an_event_that_has_ended_is_in_the_ledger_once(lane: Lane, durable: Redis) -> None:
    publisher, taker = await lane.publisher(), Holder()
    intake = await lane.intake(taker)
    sent = event(payload=b'{"n":1}')
    await publisher.publish(sent)
    intake.rung("hello")
    await until(lambda: bool(taker.held))
    for _ in range(2):
        ended(intake, taker.held[0])
    await intake.committed()
    entries: Any = await durable.xrange(keys.ledger("hello"))
    ((_, fields),) = entries
    assert (fields[b"s"], fields[b"i"]) == (b"success", sent.id.encode())
    assert len(frames.unpack_progress(fields[b"p"]).attempts) == 1
    assert frames.unpack_event("hello", b"", [b"e", fields[b"e"]]).payload == b'{"n":1}'
    counted = await totals(durable)
    assert (counted["accepted"], counted["success"], counted["requests"]) == (1, 1, 1)


async def test_an_event_waits_for_its_next_attempt_under_its_id(lane: Lane, durable: Redis) -> None:
    publisher, taker = await lane.publisher(), Holder()
    intake = await lane.intake(taker)
    sent = event()
    await publisher.publish(sent)
    intake.rung("hello")
    await until(lambda: bool(taker.held))
    first = taker.held.pop()
    ended(intake, first, Again(int(time.time() * 1000) + 50))
    await until(lambda: bool(taker.held))
    second = taker.held[0]
    assert second.request_id == sent.id
    assert second.entry_id != first.entry_id
    assert first.progress is not None
    assert second.progress is not None
    assert second.progress.origin == first.progress.origin == first.entry_id.decode()
    assert len(second.progress.attempts) == 1
    assert not await durable.exists(keys.parked("hello"), keys.delayed("hello"))


async def test_what_waits_is_found_without_its_hint(
    lane: Lane, durable: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that died between parking an event and saying when it is due."""
    async with anyio.create_task_group() as tasks:
        publisher, taker = await lane.publisher(), Holder()
        dying = await Lane(lane.address.socket, tasks).intake(taker, epoch="1")
        await publisher.publish(event())
        dying.rung("hello")
        await until(lambda: bool(taker.held))
        ended(dying, taker.held.pop(), Again(int(time.time() * 1000) + 200))
        await dying.committed()
        tasks.cancel_scope.cancel()
    for shard in range(keys.DUE_SHARDS):
        await durable.delete(keys.due(shard))
    await lane.intake(taker, epoch="2")
    await until(lambda: bool(taker.held))


async def test_a_commit_for_what_another_took_over_changes_nothing(
    lane: Lane, durable: Redis
) -> None:
    publisher, slow, taker = await lane.publisher(), Holder(), Holder()
    paused = await lane.intake(slow, epoch="1")
    await publisher.publish(event())
    paused.rung("hello")
    await until(lambda: bool(slow.held))
    await lane.intake(taker, epoch="2")  # it holds the other for dead
    await until(lambda: bool(taker.held))
    ended(paused, slow.held[0])
    await paused.committed()
    assert paused.fenced == 1
    assert "success" not in await totals(durable)
    assert not await durable.exists(keys.readings("hello"))
    assert taker.held[0].progress is not None
    assert taker.held[0].progress.aborted == 1


async def test_a_full_server_takes_no_event_and_lets_every_one_end(
    lane: Lane, durable: Redis
) -> None:
    publisher, taker = await lane.publisher(), Holder()
    intake = await lane.intake(taker)
    await publisher.publish(event())
    intake.rung("hello")
    await until(lambda: bool(taker.held))
    await durable.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable):
            await publisher.publish(event())
        ended(intake, taker.held[0])
        await intake.committed()
        assert (await totals(durable))["success"] == 1
    finally:
        await durable.config_set("maxmemory", 0)


async def test_the_ledger_forgets_the_oldest_beyond_its_bytes(lane: Lane, durable: Redis) -> None:
    publisher, taker = await lane.publisher(), Holder(room=1)
    intake = await lane.intake(taker, ledger_bytes=4_000)
    for _ in range(30):
        await publisher.publish(event(payload=b'"' + b"x" * 300 + b'"'))
    intake.rung("hello")
    for _ in range(30):
        await until(lambda: bool(taker.held))
        ended(intake, taker.held.pop())
        intake.read("hello")
    await intake.committed()
    counted = await totals(durable)
    kept = await durable.xlen(keys.ledger("hello"))
    assert counted["success"] == 30 == counted["forgotten"] + kept
    assert 2_000 < counted["ledger_bytes"] <= 4_000
