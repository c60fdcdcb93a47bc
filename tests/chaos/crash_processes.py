"""The processes of a crash-point run, forked from one that has imported everything.

    python -m tests.chaos.crash_processes      plans on stdin, one JSON a line; pids on stdout

A publisher writes down what was accepted, a supervisor what it starts. Both are the platform's own
classes; only the environments are coroutines, which end as their events ask them to.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import structlog
import uvloop  # noqa: F401  # imported before the forks, which all use it
from redis.asyncio import Redis
from tests.chaos import crash_scenario as scenario

from trivet.bus import commits, dequeue, frames, outbox, resp
from trivet.bus.consume import Intake
from trivet.bus.dequeue import DurableIntake
from trivet.bus.enqueue import DurablePublisher
from trivet.bus.failpoints import Failpoints, parse
from trivet.bus.leases import Lease
from trivet.bus.resp import Address
from trivet.bus.scripts import Script
from trivet.core import outcomes, retries
from trivet.core.billing import Reading
from trivet.core.invocations import Event
from trivet.errors import TrivetError, Unavailable
from trivet.store.functions import FunctionStore
from trivet.supervisor.meter import Meter
from trivet.supervisor.policies import Policies
from trivet.supervisor.settlement import Settlement

PUBLISHER, SUPERVISOR = "publisher", "supervisor"
ENVIRONMENTS = 3
BILLED_MS, MEMORY_MB = 7, 128
METERED = "metered"  # a function of the express lane, whose calls are only metered here
METERED_CALLS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a process is to do. Its files lie in `folder`: those that it appends to, and the
    markers of failpoints that struck."""

    who: str
    socket: str

    folder: str
    epoch: str
    failpoints: str  # as the setting
    commit: str = ""  # text of another `commit.lua`, to see that a run would notice

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def address(self) -> Address:
        return Address(socket=self.socket)

    def appended(self, name: str) -> Appended:
        return Appended(Path(self.folder) / name)


class Appended:
    """A file of lines. What was written is there after a kill: the kernel has it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __repr__(self) -> str:
        return f"<Appended {self._file}>"

    def write(self, *words: str | int) -> None:
        os.write(self._file, ("\t".join(map(str, words)) + "\n").encode())


# ------------------------------------------------------------------ publisher


async def publish(plan: Plan) -> None:
    """Publish what is not known to be accepted, each until it is."""
    path = Path(plan.folder) / "accepted"
    known = {int(line.split("\t")[0]) for line in path.read_text().splitlines()}
    accepted = plan.appended("accepted")

    async def exists(name: str) -> bool:
        return name in scenario.FUNCTIONS

    publisher = DurablePublisher(plan.address, plan.address, exists=exists)

    async def send(number: int, sent: scenario.Sent, limiter: anyio.CapacityLimiter) -> None:
        payload = json.dumps(sent.does).encode()
        async with limiter:
            while True:
                event = Event(
                    id=str(uuid.uuid4()), function=sent.function, source="test", payload=payload
                )
                try:
                    is_new = await publisher.publish(event, once=sent.once)
                except Unavailable:
                    await anyio.sleep(0.01)
                else:
                    accepted.write(number, event.id, sent.function, int(is_new))
                    return

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(publisher.run)
        limiter = anyio.CapacityLimiter(6)
        async with anyio.create_task_group() as sending:
            for number, sent in enumerate(scenario.EVENTS):
                if number not in known:
                    sending.start_soon(send, number, sent, limiter)
        tasks.cancel_scope.cancel()


# ------------------------------------------------------------------ supervisor


class Bench:
    """Runs events as the dispatcher does, in coroutines for environments. Implements both lanes'
    Taker."""

    def __init__(self, plan: Plan, tasks: anyio.abc.TaskGroup, policies: Policies) -> None:
        self._tasks = tasks
        self._policies = policies
        redis = Redis(unix_socket_path=plan.socket)
        self._store = FunctionStore(redis)
        self._started = plan.appended("started")
        self._limiter = anyio.CapacityLimiter(ENVIRONMENTS)
        self._busy: dict[str, int] = {}
        self.settlement: Settlement

    def __repr__(self) -> str:
        return f"<Bench {self._busy}>"

    def room(self, function: str) -> int:
        return 0

    def durable_room(self, function: str, backlog: int) -> int:
        return max(0, ENVIRONMENTS - sum(self._busy.values()))

    def is_idle(self, function: str) -> bool:
        return not self._busy.get(function)

    def changed(self, function: str) -> None:
        """Records are read before each attempt."""

    def take(self, deliveries: list[frames.Delivery]) -> None:
        for delivery in deliveries:
            self._busy[delivery.function] = self._busy.get(delivery.function, 0) + 1
            self._tasks.start_soon(self._attend, delivery)

    async def _attend(self, delivery: frames.Delivery) -> None:
        try:
            function = await self._store.fetch(delivery.function)
        except TrivetError as error:
            self.settlement.failed(delivery, str(error))
        else:
            if function is None:
                self.settlement.dropped(delivery, "It is gone.")
            else:
                self._policies.note(function)
                if not self.settlement.refused(delivery):
                    async with self._limiter:
                        await self._run(delivery)
        self._busy[delivery.function] -= 1
        for name in scenario.FUNCTIONS:
            self.settlement.read(name)

    async def _run(self, delivery: frames.Delivery) -> None:
        assert delivery.progress is not None  # it came on the durable lane
        payload = json.loads(delivery.payload)
        does = payload if isinstance(payload, str) else "ok"  # a record, for the listener
        end = scenario.ends(does, delivery.progress)
        if end == "fault":
            self.settlement.failed(delivery, "There is no network for it.")
            return
        if isinstance(resp.intercept, Failpoints) and resp.intercept.is_dying:
            return  # it was killed by now, but for a turn of the loop
        self._started.write(delivery.request_id, delivery.function)
        if does == "slow":
            await anyio.sleep(0.03)
        if end == "ok":
            outcome = outcomes.returned(b'"done"')
        elif end == "crash":
            outcome = outcomes.exited(delivery.request_id, 1)
        else:
            outcome = outcomes.raised(b'{"errorType":"Refused"}')
        reading = _reading(delivery.function, delivery.request_id)
        self.settlement.ended(delivery, outcome, reading, b"")


def _reading(function: str, request_id: str) -> Reading:
    return Reading(
        request_id=request_id,
        function=function,
        version="$LATEST",
        ended_ms=int(time.time() * 1000),
        memory_mb=MEMORY_MB,
        billed_ms=BILLED_MS,
        init_ms=None,
        start="warm",
        status="",
    )


async def supervise(plan: Plan) -> None:
    """Take events and end them, until killed. Hints are swept for more often than in earnest."""
    dequeue.SWEEP_S, outbox.AGAIN_S, commits.AGAIN_S = 0.1, 0.1, 0.05
    retries.FIRST_BACKOFF_MS = scenario.FIRST_BACKOFF_MS
    address, node = plan.address, "n"
    async with anyio.create_task_group() as tasks:
        policies = Policies()
        bench = Bench(plan, tasks, policies)
        intake = Intake(address, node=node, epoch=plan.epoch, taker=bench)
        lease = Lease(address, node=node, epoch=plan.epoch)
        durable = DurableIntake(
            address,
            node=node,
            epoch=plan.epoch,
            place=scenario.PLACE,
            taker=bench,
            set_flag=intake.set_durable_flag,
            dead_among=lease.dead_among,
        )
        intake.on_durable_ring = durable.rung
        meter = Meter(durable.meter)
        bench.settlement = Settlement(
            intake,
            durable,
            meter,
            policies,
            scenario.PLACE,
            waits_ms=scenario.WAITS_MS,
            is_strict=False,
        )
        tasks.start_soon(lambda: intake.run(started=lambda: None))
        tasks.start_soon(lease.run)
        tasks.start_soon(durable.run)
        tasks.start_soon(_leave_idle, durable)
        metered = plan.appended("metered")
        for number in range(METERED_CALLS):
            meter.add(_reading(METERED, f"{plan.epoch}-{number}"))
            metered.write(number)


async def _leave_idle(durable: DurableIntake) -> None:
    while True:
        await anyio.sleep(0.05)
        durable.leave_idle()


# ------------------------------------------------------------------ forking


def _run(plan: Plan) -> None:
    output = os.open(f"{plan.folder}/output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(output, stream)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    structlog.contextvars.bind_contextvars(who=plan.who, epoch=plan.epoch)
    passed = plan.appended(f"steps.{plan.who}")
    resp.intercept = Failpoints(parse(plan.failpoints), Path(plan.folder), passed.write)
    if plan.commit:
        text = plan.commit.encode()
        digest = hashlib.sha1(text, usedforsecurity=False).hexdigest()
        dequeue.COMMIT = Script(text, digest.encode())
    serve = publish if plan.who == PUBLISHER else supervise
    anyio.run(serve, plan, backend_options={"use_uvloop": True})


def _fork(plan: Plan) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.close(0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _run(plan)
        code = 0
    except BaseException as error:
        structlog.get_logger().exception("process.failed", error=repr(error))
    finally:
        os._exit(code)


def serve_forks() -> None:
    parse("commit=error")  # reads the names of all scripts, while they are what was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever asked watches them
    for line in sys.stdin:
        fields: dict[str, Any] = json.loads(line)
        print(_fork(Plan(**fields)), flush=True)


if __name__ == "__main__":
    serve_forks()
