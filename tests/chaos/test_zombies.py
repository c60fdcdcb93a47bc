"""What a process leaves at the server when it ends without a word: reads that are still blocked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from redis.asyncio import Redis
from tests.chaos.servers import Server, running

from trivet.bus import frames, keys
from trivet.bus.dequeue import DurableIntake
from trivet.bus.resp import Address, connect, pack
from trivet.core.arns import Place
from trivet.core.invocations import Event
from trivet.core.retries import Over

pytestmark = pytest.mark.anyio

READ = "xreadgroup"  # the command that a client is blocked in, as the server lists it


class Holder:
    """Takes events, and holds them."""

    def __init__(self, room: int) -> None:
        self.capacity = room
        self.held: list[frames.Delivery] = []

    def durable_room(self, function: str, backlog: int) -> int:
        return self.capacity

    def take(self, deliveries: list[frames.Delivery]) -> None:
        self.held.extend(deliveries)

    def is_idle(self, function: str) -> bool:
        return not self.held


async def no_flag(function: str, is_rung: bool) -> None:
    """Nobody rings here."""


def intake_of(server: Server, node: str, epoch: str, taker: Holder) -> DurableIntake:
    return DurableIntake(
        Address(socket=server.socket),
        node=node,
        epoch=epoch,
        place=Place("us-east-1", "123456789012"),
        taker=taker,
        set_flag=no_flag,
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
async def redis(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Redis]:
    monkeypatch.setattr("trivet.bus.dequeue.SWEEP_S", 0.02)
    async with Redis(unix_socket_path=server.socket) as redis:
        await redis.flushall()
        yield redis


async def until_taken(taker: Holder) -> None:
    with anyio.fail_after(10):
        while not taker.held:
            await anyio.lowlevel.checkpoint()


def packed(request_id: str) -> bytes:
    event = Event(id=request_id, function="f", source="test", payload=b"{}")
    return frames.pack_event(
        event, call=0, reply_to="", version_key="", invoked_arn="", expires_ms=0
    )


async def publish(redis: Redis, request_id: str = "r1") -> None:
    await redis.sadd(keys.LEDGERS, "f")
    await redis.sadd(keys.BACKLOG, "f")
    await redis.xadd(keys.durable_stream("f"), {"e": packed(request_id)})


@asynccontextmanager
async def blocked(server: Server, redis: Redis, consumer: str) -> AsyncIterator[None]:
    """A read that waits at the server, as a supervisor's does."""
    connection = await connect(Address(socket=server.socket))
    stream = keys.durable_stream("f")
    read = ("XREADGROUP", "GROUP", keys.GROUP, consumer, "BLOCK", 0, "STREAMS", stream, ">")
    connection.send(pack(read), lambda reply: None)
    with anyio.fail_after(10):
        while (await redis.info("clients"))["blocked_clients"] == 0:
            await anyio.lowlevel.checkpoint()
    try:
        yield
    finally:
        connection.close()
        await connection.lost


async def test_what_a_dead_epoch_is_given_after_its_succession_is_found(
    server: Server, redis: Redis
) -> None:
    """Its machine went without a word, so that the server still serves its reads."""
    await redis.xgroup_create(keys.durable_stream("f"), keys.GROUP, "0", mkstream=True)
    await redis.sadd(keys.durable_epochs("n"), "1")
    await redis.sadd(keys.durable_epoch_functions("n", "1"), "f")
    taker = Holder(room=0)
    async with blocked(server, redis, "n:1"), anyio.create_task_group() as tasks:
        tasks.start_soon(intake_of(server, "n", "2", taker).run)
        with anyio.fail_after(10):
            while await redis.smembers(keys.durable_epochs("n")) != {b"2"}:
                await anyio.lowlevel.checkpoint()
        await publish(redis)
        await until_taken(taker)
        tasks.cancel_scope.cancel()
    assert taker.held[0].progress is not None
    assert taker.held[0].progress.aborted == 1


async def test_what_no_set_names_any_more_is_found_by_the_next_epoch(
    server: Server, redis: Redis
) -> None:
    """A process died after it had taken the name from a set, and before it could put it back."""
    await publish(redis)
    await redis.delete(keys.BACKLOG)
    await redis.xadd(keys.outbox("f"), {"t": "nowhere", "o": "1-1", "b": "{}"})
    taker = Holder(room=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(intake_of(server, "n", "1", taker).run)
        await until_taken(taker)
        with anyio.fail_after(10):
            while await redis.xlen(keys.outbox("f")):
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


async def test_what_a_peer_took_over_and_left_behind_can_still_be_ended(
    server: Server, redis: Redis
) -> None:
    """By the one that had it first, was only paused, and takes over from the peer that died."""
    await publish(redis)
    first = Holder(room=1)

    async def dead_among_them(nodes: object) -> list[str]:
        return ["b"] if is_peer_dead else []

    is_peer_dead = False
    paused = DurableIntake(
        Address(socket=server.socket),
        node="a",
        epoch="1",
        place=Place("us-east-1", "123456789012"),
        taker=first,
        set_flag=no_flag,
        dead_among=dead_among_them,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(paused.run)
        await until_taken(first)
        stream = keys.durable_stream("f")
        entry_id = first.held[0].entry_id
        await redis.sadd(keys.DURABLE_NODES, "b")
        await redis.sadd(keys.durable_epochs("b"), "1")
        await redis.sadd(keys.durable_epoch_functions("b", "1"), "f")
        await redis.xclaim(stream, keys.GROUP, "b:1", 0, [entry_id])
        is_peer_dead = True
        with anyio.fail_after(10):
            while (await redis.xpending_range(stream, keys.GROUP, "-", "+", 1))[0][
                "consumer"
            ] != b"a:1":
                await anyio.lowlevel.checkpoint()
        assert len(first.held) == 1
        tasks.cancel_scope.cancel()


async def test_what_a_lost_connection_had_read_is_run(server: Server, redis: Redis) -> None:
    """Only that of one function's stream was lost, and with it an answer."""
    stream, taker = keys.durable_stream("f"), Holder(room=1)
    async with anyio.create_task_group() as tasks:
        intake = intake_of(server, "n", "1", taker)
        tasks.start_soon(intake.run)
        await publish(redis)
        await until_taken(taker)
        intake.commit(taker.held[0], taker.held[0].progress, Over("success", "Success"))  # type: ignore[arg-type]  # it came on this lane, so it has a progress
        await intake.committed()
        taker.held.clear()
        with anyio.fail_after(10):
            while not (reading := [c for c in await redis.client_list() if c["cmd"] == READ]):
                await anyio.lowlevel.checkpoint()
        # In one transaction, so that no blocked read is served before: this is the answer that
        # is lost with the connection.
        async with redis.pipeline(transaction=True) as together:
            for client in reading:
                together.client_kill_filter(_id=client["id"])
            together.xadd(stream, {"e": packed("r2")})
            together.xreadgroup(keys.GROUP, "n:1", {stream: ">"})
            await together.execute()
        await publish(redis, "r3")
        with anyio.fail_after(10):
            while {delivery.request_id for delivery in taker.held} != {"r2", "r3"}:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
