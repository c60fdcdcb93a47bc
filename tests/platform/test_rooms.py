"""The supervisor's side of the provisioner: rooms that are ready, late, refused, or lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import anyio
import anyio.lowlevel
import pytest
from tests.platform.provisioned import (
    HOST,
    INTERNET,
    OTHER,
    PRIVATE,
    Running,
    World,
    left_behind,
    make_world,
    reached,
)

from trivet.core import egress
from trivet.core.egress import INTERNET as ANYWHERE
from trivet.core.egress import Egress
from trivet.provisioner import wire
from trivet.provisioner.wire import Message
from trivet.supervisor import rooms
from trivet.supervisor.rooms import AWS_SCRATCH_MB, Room, Rooms

pytestmark = pytest.mark.anyio

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="the provisioner is root's")

EVERYWHERE = [(INTERNET, 80), (OTHER, 80), (PRIVATE, 80), (HOST, 80)]


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.lowlevel.checkpoint()


@dataclass
class Taken:
    """Rooms that came, whose descriptors are closed at the end of the test."""

    rooms: list[Room] = field(default_factory=list)

    async def take(self, source: Rooms, egress: Egress, scratch_mb: int = AWS_SCRATCH_MB) -> Room:
        count = len(self.rooms)
        source.take(egress, scratch_mb, self.rooms.append)
        await until(lambda: len(self.rooms) > count)
        return self.rooms[-1]

    def close(self) -> None:
        for room in self.rooms:
            for descriptor in (room.network, room.scratch):
                if descriptor >= 0:
                    os.close(descriptor)


@pytest.fixture
def taken() -> Iterator[Taken]:
    taken = Taken()
    yield taken
    taken.close()


@pytest.fixture
async def stack() -> AsyncIterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def world() -> Iterator[World]:
    world = make_world()
    for address in (INTERNET, OTHER, PRIVATE):
        world.listen(world.elsewhere, address, 80)
    yield world
    world.close()


def made(stack: contextlib.ExitStack, default: Egress = ANYWHERE, **options: object) -> Rooms:
    source = Rooms(default, **options)  # type: ignore[arg-type]  # the tests' own options
    stack.callback(source.close)
    return source


def attached(stack: contextlib.ExitStack, source: Rooms, world: World, folder: object) -> Running:
    """A provisioner for `source`, whose end the test ends."""
    running = Running(world.host, "--scratch-folder", str(folder))
    source.attach(running.link.dup())
    running.link.close()
    stack.callback(running.stop)
    return running


async def ready(source: Rooms) -> None:
    """Both spares have come."""
    await until(lambda: len(source._ready_networks) == source._spares)
    await until(lambda: len(source._ready_scratch) == source._spares * source._on_disk)


# -------------------------------------------------------------------------- without any


async def test_without_a_provisioner_a_room_is_empty_at_once(stack: contextlib.ExitStack) -> None:
    source = made(stack, is_expected=False)
    came: list[Room] = []
    source.take(ANYWHERE, AWS_SCRATCH_MB, came.append)
    assert came == [Room(-1, -1, -1)]
    assert not source.is_attached


async def test_who_asks_before_the_provisioner_waits_but_not_for_long(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "ANSWER_WITHIN_S", 0.05)
    source = made(stack)
    came: list[Room] = []
    source.take(ANYWHERE, AWS_SCRATCH_MB, came.append)
    assert came == []
    await until(lambda: came)
    source.take(ANYWHERE, AWS_SCRATCH_MB, came.append)  # and nobody waits for nothing twice
    assert came == [Room(-1, -1, -1)] * 2


# ----------------------------------------------------------------------- with a real one


@as_root
async def test_a_room_has_a_network_and_a_disk(
    world: World, stack: contextlib.ExitStack, taken: Taken, tmp_path: object
) -> None:
    source = made(stack)
    attached(stack, source, world, tmp_path)
    room = await taken.take(source, ANYWHERE)
    assert reached(room.network, EVERYWHERE) == {(INTERNET, 80), (OTHER, 80)}
    space = os.fstatvfs(room.scratch)
    assert space.f_bavail * space.f_frsize >= AWS_SCRATCH_MB << 20
    larger = await taken.take(source, ANYWHERE, 1024)
    space = os.fstatvfs(larger.scratch)
    assert space.f_bavail * space.f_frsize >= 1024 << 20


@as_root
async def test_a_room_that_is_ready_comes_at_once_and_is_replaced(
    world: World, stack: contextlib.ExitStack, taken: Taken, tmp_path: object
) -> None:
    source = made(stack, spares=2)
    attached(stack, source, world, tmp_path)
    await ready(source)
    for _ in range(2):
        source.take(ANYWHERE, AWS_SCRATCH_MB, taken.rooms.append)
    assert len(taken.rooms) == 2
    assert len({room.network_number for room in taken.rooms}) == 2
    await ready(source)


@as_root
async def test_a_room_without_egress_reaches_nothing(
    world: World, stack: contextlib.ExitStack, taken: Taken, tmp_path: object
) -> None:
    source = made(stack, on_disk=False)
    attached(stack, source, world, tmp_path)
    room = await taken.take(source, egress.NONE)
    assert (room.network_number, room.scratch) == (-1, -1)
    assert reached(room.network, EVERYWHERE) == set()


@as_root
async def test_a_listed_room_reaches_its_list_and_what_it_is_permitted(
    world: World, stack: contextlib.ExitStack, taken: Taken, tmp_path: object
) -> None:
    source = made(stack, on_disk=False)
    attached(stack, source, world, tmp_path)
    listed = egress.parse(f"{INTERNET}:80 2001:db8::/32 api.example.com")
    room = await taken.take(source, listed)
    assert reached(room.network, EVERYWHERE) == {(INTERNET, 80)}
    permitted: list[tuple[int, str]] = []
    source.on_permitted = lambda *said: permitted.append(said)
    source.permit(room.network_number, "2001:db8::1", 60)  # no network has IPv6
    source.permit(room.network_number, OTHER, 60)
    await until(lambda: len(permitted) == 2)
    assert permitted == [(room.network_number, "2001:db8::1"), (room.network_number, OTHER)]
    assert reached(room.network, EVERYWHERE) == {(INTERNET, 80), (OTHER, 80)}


@pytest.mark.slow
@as_root
async def test_a_room_that_was_left_is_gone_and_its_number_is_used_again(
    world: World, stack: contextlib.ExitStack, taken: Taken, tmp_path: object
) -> None:
    source = made(stack, on_disk=False, spares=0)
    attached(stack, source, world, tmp_path)
    room = await taken.take(source, ANYWHERE)
    source.leave(room)
    source.leave(room)  # once is enough
    other = await taken.take(source, egress.parse(INTERNET))
    assert other.network_number == room.network_number
    assert reached(room.network, EVERYWHERE) == set()
    assert reached(other.network, EVERYWHERE) == {(INTERNET, 80)}


@pytest.mark.slow
@as_root
async def test_rooms_in_use_and_ready_outlive_a_killed_provisioner(
    world: World, stack: contextlib.ExitStack, taken: Taken, tmp_path: object
) -> None:
    """And who waits meanwhile is served by the successor."""
    source = made(stack, on_disk=False, spares=1)
    first = attached(stack, source, world, tmp_path)
    room = await taken.take(source, egress.parse(f"{INTERNET}:80 api.example.com"))
    source.permit(room.network_number, OTHER, 600)
    await ready(source)
    first.process.kill()
    await until(lambda: not source.is_attached)
    source.take(ANYWHERE, AWS_SCRATCH_MB, taken.rooms.append)
    source.take(egress.parse(PRIVATE), AWS_SCRATCH_MB, taken.rooms.append)
    assert len(taken.rooms) == 2  # the spare at once
    attached(stack, source, world, tmp_path)
    await until(lambda: len(taken.rooms) == 3)
    await ready(source)
    assert reached(room.network, EVERYWHERE) == {(INTERNET, 80), (OTHER, 80)}
    assert reached(taken.rooms[1].network, EVERYWHERE) == {(INTERNET, 80), (OTHER, 80)}
    assert reached(taken.rooms[2].network, EVERYWHERE) == set()


@pytest.mark.slow
@as_root
async def test_the_end_of_the_supervisor_ends_all_networks(
    world: World, stack: contextlib.ExitStack, taken: Taken, tmp_path: object
) -> None:
    source = made(stack)
    running = attached(stack, source, world, tmp_path)
    await taken.take(source, ANYWHERE)
    source.close()
    assert await anyio.to_thread.run_sync(partial(running.process.wait, timeout=20)) == 0
    assert await anyio.to_thread.run_sync(left_behind, world.host) == set()


# ------------------------------------------------------------ with one that the test plays


class Played:
    """The provisioner's end, where a real one cannot be made to do what the test needs."""

    def __init__(self, source: Rooms, stack: contextlib.ExitStack) -> None:
        self.end, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.callback(self.end.close)
        self.end.setblocking(False)
        source.attach(link)

    def say(self, message: Message, *descriptors: int) -> None:
        socket.send_fds(self.end, [message.pack()], descriptors)

    async def hear(self) -> Message:
        data = await asyncio.get_running_loop().sock_recv(self.end, wire.SIZE)
        return Message.unpack(data)


async def test_what_is_refused_is_missing_from_the_room(stack: contextlib.ExitStack) -> None:
    source = made(stack, spares=0)
    played = Played(source, stack)
    played.say(Message(wire.READY, value=wire.PROTOCOL))
    came: list[Room] = []
    source.take(ANYWHERE, AWS_SCRATCH_MB, came.append)
    assert (await played.hear()).kind == wire.BEGIN
    for kind in (wire.NETWORK, wire.SCRATCH):
        asked = await played.hear()
        assert asked.kind == kind
        played.say(Message(wire.REFUSED, asked.number, 1, kind))
    await until(lambda: came)
    assert came == [Room(-1, -1, -1)]
    assert (await played.hear()).kind == wire.RELEASE


async def test_a_room_that_comes_too_late_becomes_a_spare_or_is_let_go(
    stack: contextlib.ExitStack, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "ANSWER_WITHIN_S", 0.05)
    source = made(stack, spares=1, on_disk=False)
    played = Played(source, stack)
    played.say(Message(wire.READY, value=wire.PROTOCOL))
    assert (await played.hear()).kind == wire.BEGIN
    spare = await played.hear()
    room = await taken.take(source, ANYWHERE)
    assert room == Room(-1, -1, -1)
    late = await played.hear()
    for asked in (spare, late):
        played.say(Message(wire.GIVEN, asked.number, detail=wire.NETWORK), played.end.fileno())
    released = await played.hear()
    assert (released.kind, released.number) == (wire.RELEASE, late.number)
    source.take(ANYWHERE, AWS_SCRATCH_MB, taken.rooms.append)
    assert taken.rooms[-1].network_number == spare.number


async def test_more_commands_than_a_socket_holds_are_sent_when_there_is_room(
    stack: contextlib.ExitStack, taken: Taken
) -> None:
    source = made(stack, spares=0, on_disk=False)
    played = Played(source, stack)
    played.say(Message(wire.READY, value=wire.PROTOCOL))
    assert (await played.hear()).kind == wire.BEGIN
    for _ in range(3000):
        source.take(ANYWHERE, AWS_SCRATCH_MB, taken.rooms.append)
    heard = [(await played.hear()).number for _ in range(3000)]
    assert heard == list(range(3000))
