"""What an environment holds of the host: slots, cgroups, rooms, each given back exactly once."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis
from tests.platform import caged
from tests.platform.caged import Caged
from tests.platform.supervised import Inside, Make, settle, supervising, until

from trivet.core.egress import INTERNET, NONE
from trivet.launcher import cgroups as launcher
from trivet.launcher.cgroups import Cgroups
from trivet.launcher.identities import identities
from trivet.provisioner import wire as asked
from trivet.settings import Settings
from trivet.supervisor import slots as slots_module
from trivet.supervisor.cgroups import CgroupTree
from trivet.supervisor.rooms import Rooms
from trivet.supervisor.slots import STOCK, Slot, Slots
from trivet_worker import wire

pytestmark = [
    pytest.mark.anyio,
    # Zygotes and environments that a test plays are left half-way on purpose.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BITS = wire.ISOLATION_UID | wire.ISOLATION_MOUNT | wire.ISOLATION_NETWORK
OUTGROW = "kept = [bytearray(1 << 20) for _ in range(200)]"


@pytest.fixture
def bases(tmp_path: Path) -> Iterator[Cgroups]:
    """Real bases in this machine's v1 hierarchies; whatever a test leaves there is killed."""
    found = caged.survey_v1()
    settings = Settings(data=str(tmp_path))
    made = launcher.prepare(settings, identities(settings), found)
    assert made, made.reason
    yield made
    assert made.remove()


@pytest.fixture
def tree(bases: Cgroups) -> CgroupTree:
    return CgroupTree(bases.version, bases.paths)


@pytest.fixture
async def make(tmp_path: Path, durable: Redis, bases: Cgroups) -> AsyncIterator[Make]:
    # It ends before the bases do, which it fills in a thread.
    async with supervising(tmp_path, durable) as make:
        yield make


def names(bases: Cgroups, controller: str = "memory") -> set[str]:
    base = bases.paths[controller]
    return {name for name in os.listdir(base) if os.path.isdir(f"{base}/{name}")}


def said(bases: Cgroups, controller: str, uid: int, file: str) -> str:
    return Path(bases.paths[controller], str(uid), file).read_text().strip()


def caged_as(bases: Cgroups, inside: Inside, code: str) -> Caged:
    """A real process in the cgroups of a played environment."""
    return Caged([f"{base}/{inside.uid}" for base in bases.bases], code)


def shrink(bases: Cgroups, inside: Inside) -> None:
    """To 64 MB, so that a test outgrows it soon."""
    path = Path(bases.paths["memory"], str(inside.uid), "memory.limit_in_bytes")
    path.write_text("64M")


# ------------------------------------------------------------------------------ slots


async def taken(slots: Slots) -> Slot:
    got: list[Slot | None] = []
    slots.take(got.append)
    await until(lambda: got)
    assert got[0] is not None
    return got[0]


async def test_slots_are_ready_before_they_are_needed(bases: Cgroups, tree: CgroupTree) -> None:
    slots = Slots(200_000, tree)
    await until(lambda: len(slots._stock) == STOCK)
    assert names(bases) == {str(200_000 + n) for n in range(STOCK)}
    got: list[Slot | None] = []
    slots.take(got.append)
    assert got, "it was not ready"
    many = [await taken(slots) for _ in range(3 * STOCK)]
    assert len({slot.uid for slot in many}) == len(many)
    await until(lambda: not slots._making)
    slots.close()


async def test_a_slot_is_used_again_once_nothing_lives_in_it(
    bases: Cgroups, tree: CgroupTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots_module, "LONGEST_RETRY_S", 0.02)
    slots = Slots(200_000, tree)
    slot = await taken(slots)
    process = Caged([f"{base}/{slot.uid}" for base in bases.bases], caged.WAIT)
    slots.give_back(slot)
    await until(lambda: slots._removing and not slots._making)
    with anyio.move_on_after(0.2):
        await until(lambda: not slots._removing)
    assert str(slot.uid) in names(bases), "its cgroup went, though something lives in it"
    assert slot.uid not in slots._uids
    process.close()
    await until(lambda: not slots._removing)
    assert str(slot.uid) not in names(bases)
    assert slots._uids[-1] == slot.uid
    slots.close()


async def test_without_room_for_a_cgroup_there_is_no_slot() -> None:
    slots = Slots(200_000, CgroupTree(1, {"memory": "/nowhere"}))
    got: list[Slot | None] = []
    slots.take(got.append)
    await until(lambda: got)
    assert got == [None]
    await until(lambda: not slots._making)
    slots.close()


# --------------------------------------------------------------------- limits and frost


async def test_an_environment_has_limits_before_it_starts_and_none_is_left_after(
    make: Make, bases: Cgroups, tree: CgroupTree
) -> None:
    host = make(cgroups=tree)
    version = await host.deploy(memory_mb=256, ephemeral_mb=1024)
    zygote = host.attach(bits=BITS | wire.ISOLATION_CGROUP)
    await settle()
    host.deliver(version)
    inside = await zygote.spawned()
    assert inside.given == wire.WITH_CODE | wire.WITH_CGROUP | 1024 << 8
    limit = said(bases, "memory", inside.uid, "memory.limit_in_bytes")
    assert limit == str((256 + 1024) << 20), "its /tmp is in memory, and is the function's own"
    await inside.begin()
    inside.exit()
    await until(lambda: str(inside.uid) not in names(bases))
    await until(lambda: not host.slots._removing)


async def test_without_cgroups_at_the_zygote_none_is_joined(
    make: Make, bases: Cgroups, tree: CgroupTree
) -> None:
    host = make(cgroups=tree)
    version = await host.deploy()
    zygote = host.attach(bits=BITS)
    await settle()
    host.deliver(version)
    assert (await zygote.spawned()).given == wire.WITH_CODE | 512 << 8


async def test_a_cgroup_freezes_thaws_for_an_event_and_dies_frozen(
    make: Make, bases: Cgroups, tree: CgroupTree
) -> None:
    host = make(cgroups=tree, freeze_after_ms=10)
    version = await host.deploy()
    zygote = host.attach(bits=BITS | wire.ISOLATION_CGROUP)
    await settle()
    inside = await host.warm(version, zygote)

    def state() -> str:
        return said(bases, "freezer", inside.uid, "freezer.state")

    await until(lambda: state() == "FROZEN")
    zygote.hear_all()
    assert not zygote.signals
    (request_id,) = host.deliver(version)
    assert state() == "THAWED", "the event came first"
    assert await inside.answer() == request_id
    await until(lambda: state() == "FROZEN")
    fleet = host.dispatcher._fleets[version.function, version.key]
    assert fleet.retire(idle_before=float("inf")) == 1
    assert state() == "THAWED", "SIGKILL waits for ever in what is frozen"
    zygote.hear_all()
    assert zygote.kills == [inside.number]
    inside.exit(-signal.SIGKILL)
    await until(lambda: str(inside.uid) not in names(bases))


# --------------------------------------------------------------------------- memory


async def test_what_outgrew_its_memory_is_told_from_what_was_killed(
    make: Make, bases: Cgroups, tree: CgroupTree
) -> None:
    host = make(cgroups=tree, scratch="auto")
    version = await host.deploy(memory_mb=128, ephemeral_mb=512)
    zygote = host.attach(bits=BITS | wire.ISOLATION_CGROUP)
    await settle()
    kinds: list[str] = []
    for outgrows in (True, False):
        inside = await host.warm(version, zygote)
        shrink(bases, inside)
        (request_id,) = host.deliver(version)
        await inside.event()
        if outgrows:
            process = caged_as(bases, inside, OUTGROW)
            assert process.status() == -signal.SIGKILL
            process.close()
        inside.exit(-signal.SIGKILL)
        await until(lambda: request_id in host.answers)  # noqa: B023  # awaited in this turn
        assert b"Runtime exited with error: signal: killed" in host.answers[request_id]
        kinds.append(host.outcomes[request_id].error_type)
    assert kinds == ["Runtime.OutOfMemory", "Runtime.ExitError"]


async def test_an_answer_counts_though_a_child_outgrew_the_memory_and_is_the_last(
    make: Make, bases: Cgroups, tree: CgroupTree
) -> None:
    host = make(cgroups=tree)
    version = await host.deploy()
    zygote = host.attach(bits=BITS | wire.ISOLATION_CGROUP)
    await settle()
    inside = await host.warm(version, zygote)
    shrink(bases, inside)
    (request_id,) = host.deliver(version)
    attempt, _ = await inside.event()
    process = caged_as(bases, inside, OUTGROW)
    assert process.status() == -signal.SIGKILL
    process.close()
    inside.send(wire.RESULT, attempt, b'"partly"')
    await until(lambda: request_id in host.answers)
    assert host.answers[request_id] == b'"partly"'
    zygote.hear_all()
    assert zygote.kills == [inside.number]
    inside.exit(-signal.SIGKILL)


async def test_the_memory_that_is_reported_is_what_the_kernel_counted(
    make: Make, bases: Cgroups, tree: CgroupTree
) -> None:
    host = make(cgroups=tree)
    version = await host.deploy(memory_mb=256)
    zygote = host.attach(bits=BITS | wire.ISOLATION_CGROUP)
    await settle()
    inside = await host.warm(version, zygote)
    fleet = host.dispatcher._fleets[version.function, version.key]
    (environment,) = fleet.idle
    process = caged_as(bases, inside, 'kept = bytearray(100 << 20)\nprint("x", flush=True)\n')
    assert process.line() == "x"
    assert 100 <= environment.peak_mb() <= 130
    process.close()
    assert 100 <= environment.peak_mb() <= 130, "a peak does not pass"


# ---------------------------------------------------------------------------- rooms


@dataclass
class PlayedProvisioner:
    """Gives /dev/null for everything, and counts."""

    link: socket.socket
    networks: set[int] = field(default_factory=set)
    kinds: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def answer(self) -> None:
        while True:
            try:
                message = asked.Message.unpack(self.link.recv(asked.SIZE))
            except BlockingIOError:
                return
            if message.kind == asked.RELEASE:
                self.networks.discard(message.number)  # of one that reaches nothing, too
            elif message.kind in (asked.NETWORK, asked.SCRATCH):
                if message.kind == asked.NETWORK:
                    if message.detail != asked.NONE:  # that is forgotten at once
                        self.networks.add(message.number)
                    self.kinds.append(message.detail)
                else:
                    self.sizes.append(message.value)
                null = os.open(os.devnull, os.O_RDONLY)
                given = asked.Message(asked.GIVEN, message.number, detail=message.kind).pack()
                socket.send_fds(self.link, [given], [null])
                os.close(null)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Answer whatever comes, as it comes."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.link, self.answer)
        yield
        loop.remove_reader(self.link)


async def housed(rooms: Rooms) -> PlayedProvisioner:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    rooms.attach(ours)
    theirs.send(asked.Message(asked.READY, value=asked.PROTOCOL).pack())
    await settle()
    played = PlayedProvisioner(theirs)
    played.answer()
    await settle()
    return played


async def test_an_environment_gets_a_room_and_gives_it_back_once(make: Make) -> None:
    rooms = Rooms(INTERNET, spares=1)
    provisioner = await housed(rooms)
    host = make(rooms=rooms)
    version = await host.deploy(egress="none", ephemeral_mb=2048)
    zygote = host.attach(bits=BITS)
    await settle()
    host.deliver(version)
    with provisioner.answering():
        inside = await zygote.spawned()
    with_room = wire.WITH_CODE | wire.WITH_NETWORK | wire.WITH_SCRATCH
    assert inside.given == with_room | 2048 << 8
    assert provisioner.kinds[-1] == asked.NONE
    assert 2048 in provisioner.sizes
    usual = await host.deploy("usual")
    before = len(provisioner.networks)
    asked_before = len(provisioner.kinds)
    host.deliver(usual)
    other = await zygote.spawned()  # what was ready: nobody was asked
    assert len(provisioner.kinds) == asked_before
    assert other.given == with_room | 512 << 8
    other.start()
    other.exit()
    await until(lambda: len(host.pool._bodies) == 1)
    with provisioner.answering():
        await until(lambda: len(provisioner.kinds) > asked_before)
    assert len(provisioner.networks) == before, "one was made in its place, one given back"
    rooms.close()
    provisioner.link.close()


async def test_one_that_ends_before_its_room_came_takes_nothing(make: Make) -> None:
    rooms = Rooms(NONE, spares=0)
    provisioner = await housed(rooms)
    host = make(rooms=rooms, init_limit_ms=50)
    version = await host.deploy(egress="internet", timeout_ms=50)
    zygote = host.attach(bits=BITS)
    await settle()
    before = len(os.listdir("/proc/self/fd"))
    (request_id,) = host.deliver(version)
    await until(lambda: request_id in host.answers)  # it was given up, twice
    await until(lambda: not host.pool._bodies)
    provisioner.answer()
    await settle()
    zygote.hear_all()
    assert not zygote.insides
    assert len(os.listdir("/proc/self/fd")) <= before
    rooms.close()
    provisioner.link.close()


@pytest.mark.parametrize("end", ["refused", "died", "killed before it started", "zygote lost"])
async def test_everything_is_given_back_whatever_ends_it(
    make: Make, bases: Cgroups, tree: CgroupTree, end: str
) -> None:
    rooms = Rooms(INTERNET, spares=0)
    provisioner = await housed(rooms)
    host = make(cgroups=tree, rooms=rooms)
    version = await host.deploy()
    zygote = host.attach(bits=BITS | wire.ISOLATION_CGROUP)
    await settle()
    await until(lambda: len(host.slots._stock) == STOCK)
    before = len(os.listdir("/proc/self/fd"))
    host.deliver(version)
    with provisioner.answering():
        inside = await zygote.spawned()
    (body,) = host.pool._bodies
    for fleet in host.dispatcher._fleets.values():
        fleet.queue.clear()
    if end == "refused":
        inside.vanish()
        zygote.tell(wire.REFUSED, inside.number, 12)
    elif end == "died":
        inside.start()
        inside.exit(-signal.SIGKILL)
    elif end == "killed before it started":
        body.kill()
        inside.start()
        await settle()
        zygote.hear_all()
        assert zygote.kills == [inside.number]
        inside.exit(-signal.SIGKILL)
    else:
        zygote.die()
    await until(lambda: not host.pool._bodies)
    await until(lambda: not host.slots._removing)
    body.exited(None)  # once more does no harm
    await settle()
    provisioner.answer()
    assert not provisioner.networks
    assert str(inside.uid) not in names(bases)
    assert list(host.slots._uids).count(inside.uid) == 1
    # Its cgroup files may have been opened, and are closed; a lost zygote's link is too.
    assert len(os.listdir("/proc/self/fd")) <= before
    rooms.close()
    provisioner.link.close()
