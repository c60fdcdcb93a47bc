"""A supervisor's inside with a zygote and environments that a test plays, over the real wire."""

from __future__ import annotations

import gc
import io
import itertools
import json
import os
import socket
import time
import uuid
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.abc
from redis.asyncio import Redis

from trivet.bus import frames
from trivet.core.billing import Reading
from trivet.core.functions import Function, FunctionVersion
from trivet.core.outcomes import Outcome
from trivet.runtimes import Runtime
from trivet.settings import Settings
from trivet.store.blobs import Blobs
from trivet.store.functions import FunctionStore
from trivet.store.logs import LogWriter
from trivet.supervisor.briefing import Briefing
from trivet.supervisor.cgroups import CgroupTree
from trivet.supervisor.deadlines import Deadlines
from trivet.supervisor.dispatch import Dispatcher
from trivet.supervisor.doors import Doors
from trivet.supervisor.policies import Policies
from trivet.supervisor.pool import Pool
from trivet.supervisor.quarters import Premises
from trivet.supervisor.rooms import Rooms
from trivet.supervisor.slots import Slots
from trivet_worker import wire

RUNTIME = "python3.11"
# Generous: it bounds a failing test, no passing one waits for it.
PATIENCE_S = 3.0


async def until(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def settle() -> None:
    """Let the loop see everything that is readable by now."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


@dataclass
class Inside:
    """The far ends of one environment, which the test plays."""

    zygote: PlayedZygote
    number: int
    uid: int
    channel: socket.socket
    log: int
    given: int  # wire.WITH_*, and the size of its /tmp
    life: int = -1  # closing it makes what stands for the pidfd readable
    received: bytes = b""

    def start(self, **doors: int) -> None:
        """`doors`: descriptors by the names of wire.DOOR_*, which are closed here."""
        pidfd, self.life = os.pipe()
        bits = {getattr(wire, name): fd for name, fd in doors.items()}
        fds = [pidfd, *(bits[bit] for bit in sorted(bits))]
        self.zygote.tell(wire.STARTED, self.number, 1, *fds, second=sum(bits))
        for fd in fds:
            os.close(fd)

    async def begin(self) -> dict[str, Any]:
        """Started, and initialised."""
        self.start()
        kind, _, body = await self.frame()
        assert kind == wire.INIT
        self.send(wire.INITIALISED, 0)
        order: dict[str, Any] = json.loads(body)
        return order

    async def frame(self) -> tuple[int, int, bytes]:
        with anyio.fail_after(PATIENCE_S):
            while True:
                if len(self.received) >= wire.FRAME.size:
                    kind, attempt, length = wire.FRAME.unpack_from(self.received)
                    end = wire.FRAME.size + length
                    if len(self.received) >= end:
                        body = self.received[wire.FRAME.size : end]
                        self.received = self.received[end:]
                        return kind, attempt, body
                await anyio.wait_readable(self.channel)
                data = self.channel.recv(1 << 20)
                if not data:
                    raise EOFError
                self.received += data

    async def event(self) -> tuple[int, str]:
        """(attempt, request id) of the next event."""
        kind, attempt, body = await self.frame()
        assert kind == wire.EVENT
        length = wire.EVENT_HEAD.unpack_from(body)[1]
        begin = wire.EVENT_HEAD.size
        return attempt, body[begin : begin + length].decode()

    def send(self, kind: int, attempt: int, payload: bytes = b"") -> None:
        body = wire.USAGE.pack(1024) + payload
        self.channel.setblocking(True)
        self.channel.sendall(wire.FRAME.pack(kind, attempt, len(body)) + body)
        self.channel.setblocking(False)

    async def answer(self, payload: bytes = b"{}") -> str:
        attempt, request_id = await self.event()
        self.send(wire.RESULT, attempt, payload)
        return request_id

    def close_channel(self) -> None:
        self.channel.close()

    def exit(self, status: int = 0) -> None:
        """The process ends, and its zygote tells how."""
        self.vanish()
        self.zygote.tell(wire.EXITED, self.number, status)

    def vanish(self) -> None:
        """The process ends, and nobody tells how."""
        self.channel.close()
        for end in (self.life, self.log):
            if end >= 0:
                os.close(end)
        self.life = self.log = -1


@dataclass
class PlayedZygote:
    """The far end of a zygote's command socket."""

    commands: socket.socket
    insides: list[Inside] = field(default_factory=list)
    kills: list[int] = field(default_factory=list)
    signals: list[tuple[int, int]] = field(default_factory=list)  # SIGSTOP and SIGCONT
    adopted: list[int] = field(default_factory=list)

    def tell(self, kind: int, number: int, first: int = 0, *fds: int, second: int = 0) -> None:
        message = wire.COMMAND.pack(kind, number, first, second)
        socket.send_fds(self.commands, [message], list(fds))

    def ready(self, bits: int = 0) -> None:
        self.tell(wire.READY, 0, wire.PROTOCOL, second=bits)

    def hear(self) -> bool:
        """Take one command, if one is there."""
        try:
            message, fds, _, _ = socket.recv_fds(
                self.commands, wire.COMMAND.size, wire.MOST_DESCRIPTORS
            )
        except BlockingIOError:
            return False
        if not message:
            return False
        kind, number, first, second = wire.COMMAND.unpack(message)
        if kind == wire.SPAWN:
            channel = socket.socket(fileno=fds[0])
            channel.setblocking(False)
            for fd in fds[2:]:
                os.close(fd)
            self.insides.append(Inside(self, number, first, channel, fds[1], second))
            return True
        if kind == wire.KILL and first:
            self.signals.append((number, first))
        elif kind == wire.KILL:
            self.kills.append(number)
        elif kind == wire.ADOPT:
            self.adopted.append(number)
        for fd in fds:
            os.close(fd)
        return True

    def hear_all(self) -> None:
        while self.commands.fileno() >= 0 and self.hear():
            pass

    async def spawned(self) -> Inside:
        """The next environment that was asked for."""
        count = len(self.insides)
        while len(self.insides) == count:
            with anyio.fail_after(PATIENCE_S):
                await anyio.wait_readable(self.commands)
            self.hear()
        return self.insides[-1]

    def die(self) -> None:
        """As a killed zygote: what it holds closes, what it started lives on."""
        for inside in self.insides:
            if inside.life < 0 and inside.log >= 0:
                inside.vanish()
        self.commands.close()


Make = Callable[..., "Supervised"]


@asynccontextmanager
async def supervising(folder: Path, durable: Redis) -> AsyncIterator[Make]:
    """make(**settings): a supervisor's inside; all are ended with the block."""
    made: list[Supervised] = []

    def make(**settings: Any) -> Supervised:
        made.append(Supervised(folder, durable, tasks, **settings))
        return made[-1]

    async with anyio.create_task_group() as tasks:
        yield make
        for each in made:
            await each.close()
        await settle()
        tasks.cancel_scope.cancel()
    made.clear()
    # What a test left half-way holds descriptors: it is collected in the test that made it.
    gc.collect()


class Supervised:
    """Dispatcher, fleets and pool, whose answers a test reads."""

    def __init__(
        self,
        folder: Path,
        durable: Redis,
        tasks: anyio.abc.TaskGroup,
        *,
        cgroups: CgroupTree | None = None,
        rooms: Rooms | None = None,
        doors: Doors | None = None,
        **settings: Any,
    ) -> None:
        """No spares and no frost, unless `settings` say otherwise."""
        settings = {"spares": 0, "freeze_after_ms": 0, **settings}
        self.settings = Settings(data=str(folder), **settings)
        self.blobs = Blobs(self.settings.blobs_path)
        self.blobs.prepare()
        self.store = FunctionStore(durable)
        self.deadlines = Deadlines()
        self.writer = LogWriter(self.settings.logs_path)
        runtime = Runtime(name=RUNTIME, kind="python", program="/python", version="3.11")
        self.slots = Slots(self.settings.first_uid, cgroups)
        self.pool = Pool(
            self.settings,
            {RUNTIME: runtime},
            self.blobs,
            self.writer,
            Premises(self.settings, self.slots, rooms=rooms, doors=doors),
            Briefing(self.settings, None),
            freed=lambda: self.dispatcher.slot_freed(),
        )
        self.dispatcher = Dispatcher(
            self.settings, self.pool, self.store, self.deadlines, Policies(), tasks
        )
        self.answers: dict[str, bytes] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.reads: list[str] = []
        self.dispatcher.settlement = cast(Any, self)
        self._calls = itertools.count(1)
        self._zygotes: list[PlayedZygote] = []

    async def close(self) -> None:
        """End every process; what the supervisor holds for them is closed with them."""
        for fleet in self.dispatcher._fleets.values():
            fleet.queue.clear()
        self.attach()  # takes the starts that still wait for a zygote
        await settle()
        for zygote in self._zygotes:
            zygote.hear_all()
            for inside in zygote.insides:
                inside.vanish()
            zygote.commands.close()
        with anyio.move_on_after(PATIENCE_S):
            while self.pool._bodies:
                await anyio.lowlevel.checkpoint()
        # What a test left half-way, unborn or unseen: nobody else would close it.
        for body in list(self.pool._bodies):
            body.exited(None)
        for link in self.pool.zygotes.values():
            link._detach()
        self.slots.close()
        self.writer.close()

    # ------------------------------------------------------------------ as a Settlement

    def read(self, function: str) -> None:
        self.reads.append(function)
        self.dispatcher.room(function)

    def ended(
        self, delivery: frames.Delivery, outcome: Outcome, reading: Reading, tail: bytes
    ) -> None:
        self.outcomes[delivery.request_id] = outcome
        self._answered(delivery, outcome.payload)

    is_behind = False

    def refused(self, delivery: frames.Delivery) -> bool:
        return False

    def failed(self, delivery: frames.Delivery, message: str) -> None:
        self._answered(delivery, message.encode())

    def dropped(self, delivery: frames.Delivery, message: str) -> None:
        self._answered(delivery, message.encode())

    def throttled(self, delivery: frames.Delivery) -> None:
        self._answered(delivery, b"throttled")

    def _answered(self, delivery: frames.Delivery, payload: bytes) -> None:
        assert delivery.request_id not in self.answers, "answered twice"
        self.answers[delivery.request_id] = payload

    # ------------------------------------------------------------------ what a test does

    def attach(self, *, is_ready: bool = True, bits: int = 0) -> PlayedZygote:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        zygote = PlayedZygote(theirs)
        self._zygotes.append(zygote)
        self.pool.zygotes[RUNTIME].attach(ours)
        if is_ready:
            zygote.ready(bits)
        return zygote

    async def deploy(self, name: str = "hello", **version: Any) -> FunctionVersion:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(zipfile.ZipInfo("index.py"), "")
        blob = self.blobs.put(buffer.getvalue())
        made = FunctionVersion(
            function=name,
            code_sha256=blob.sha256_hex,
            **{"runtime": RUNTIME, "handler": "index.handler", **version},
        )
        function = Function(
            latest=made, code_bytes=1, revision_id=str(uuid.uuid4()), last_modified_ms=1
        )
        before = await self.store.get(name)
        if before is None:
            await self.store.create(function)
        else:
            await self.store.replace(function, before.revision_id)
        return made

    def delivery(self, version: FunctionVersion, **fields: Any) -> frames.Delivery:
        call = next(self._calls)
        values: dict[str, Any] = {
            "entry_id": b"1-%d" % call,
            "function": version.function,
            "call": call,
            "reply_to": "gateway",
            "request_id": str(uuid.uuid4()),
            "version_key": version.key,
            "expires_ms": int(time.time() * 1000) + 60_000,
            "invoked_arn": "arn",
            "trace_id": "",
            "wants_log_tail": False,
            "client_context": b"",
            "payload": b"{}",
        }
        return frames.Delivery(**{**values, **fields})

    def deliver(self, version: FunctionVersion, count: int = 1, **fields: Any) -> list[str]:
        """Hand `count` events in, as the intake does. Returns their request ids."""
        deliveries = [self.delivery(version, **fields) for _ in range(count)]
        self.dispatcher.take(deliveries)
        return [delivery.request_id for delivery in deliveries]

    async def warm(self, version: FunctionVersion, zygote: PlayedZygote) -> Inside:
        """An environment that has answered once and is idle."""
        (request_id,) = self.deliver(version)
        inside = await zygote.spawned()
        await inside.begin()
        await inside.answer()
        await until(lambda: request_id in self.answers)
        return inside
