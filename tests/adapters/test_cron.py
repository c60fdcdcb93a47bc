"""The cron adapter under a clock that a test sets."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from tests.adapters.hosts import Hosted

from trivet import FunctionNotFound, Schedule, Throttled, TriggerSet, Unavailable
from trivet_adapters.cron import run
from trivet_adapters.cron.timetable import LOOK_AGAIN_S, Timetable

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class SetClock:
    at: datetime = NOON
    running_s: float = 1_000.0

    def now(self) -> datetime:
        return self.at

    def monotonic_s(self) -> float:
        return self.running_s

    def run(self, seconds: float) -> None:
        """Time passes."""
        self.at += timedelta(seconds=seconds)
        self.running_s += seconds

    def set(self, seconds: float) -> None:
        """Somebody sets the clock."""
        self.at += timedelta(seconds=seconds)


@dataclass
class Machine:
    """An adapter that can be ended and started again."""

    host: Hosted = field(default_factory=Hosted)
    clock: SetClock = field(default_factory=SetClock)
    schedules: tuple[Schedule, ...] = ()
    timetable: Timetable | None = None

    async def start(self) -> None:
        self.timetable = Timetable(self.host, self.clock)
        assert await self.timetable.hold(self.schedules)

    async def turn(self) -> float:
        assert self.timetable is not None
        return await self.timetable.turn()

    async def run(self, seconds: int) -> None:
        """Let time pass as the adapter lets it pass."""
        left = float(seconds)
        while left > 0:
            wait_s = min(await self.turn(), left)
            self.clock.run(wait_s)
            left -= wait_s
        await self.turn()

    @property
    def fired(self) -> list[str]:
        return [payload["time"][11:19] for payload in self.host.publisher.payloads]


def minutely(created: datetime = NOON, **fields: str) -> Schedule:
    created_ms = int(created.timestamp() * 1000)
    made = {"name": "s", "id": "1", "function": "f", "expression": "rate(1 minute)", **fields}
    return Schedule(**made, created_ms=created_ms)


@pytest.fixture
async def machine() -> Machine:
    machine = Machine(schedules=(minutely(),))
    await machine.start()
    return machine


async def test_every_slot_fires_once_and_at_its_time(machine: Machine) -> None:
    assert await machine.turn() == LOOK_AGAIN_S
    await machine.run(59)
    assert machine.fired == []
    await machine.run(121)
    assert machine.fired == ["12:01:00", "12:02:00", "12:03:00"]


async def test_the_event_is_the_one_of_the_tutorial(machine: Machine) -> None:
    await machine.run(60)
    (event,) = machine.host.publisher.events
    assert event.function == "f"
    assert json.loads(event.payload) == {
        "version": "0",
        "id": event.id,
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": "123456789012",
        "time": "2026-11-23T12:01:00Z",
        "region": "us-east-1",
        "resources": ["arn:aws:events:us-east-1:123456789012:rule/s"],
        "detail": {},
    }


async def test_a_restart_fires_no_slot_again_and_what_was_missed_once(machine: Machine) -> None:
    await machine.run(90)
    await machine.start()
    await machine.turn()
    assert machine.fired == ["12:01:00"]
    machine.clock.run(150)  # nobody is there
    await machine.start()
    await machine.run(60)
    assert machine.fired == [f"12:0{n}:00" for n in (1, 2, 3, 4, 5)]
    assert machine.host.publisher.dropped == 0


async def test_slots_missed_too_long_ago_are_skipped_and_said(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.clock.run(3_600)
    await machine.start()
    with caplog.at_level(logging.WARNING):
        await machine.turn()
    assert machine.fired == [f"12:5{n}:00" for n in (6, 7, 8, 9)] + ["13:00:00"]
    assert "slots since 2026-11-23T12:00:00+00:00 are skipped" in caplog.text


async def test_a_slot_published_but_not_remembered_is_dropped_by_its_key(machine: Machine) -> None:
    machine.host.memory.raises = Unavailable("away")
    await machine.run(60)
    machine.host.memory.raises = None
    await machine.start()
    await machine.turn()
    assert machine.fired == ["12:01:00"]
    assert machine.host.publisher.dropped == 1


@pytest.mark.parametrize("step_s", [3_600, 86_400])
async def test_a_clock_set_ahead_is_caught_up_by_one_slot(machine: Machine, step_s: int) -> None:
    await machine.run(60)
    machine.clock.set(step_s)
    await machine.run(60)
    assert machine.fired == [
        "12:01:00",
        *(["13:01:00", "13:02:00"] if step_s == 3_600 else ["12:01:00", "12:02:00"]),
    ]


async def test_a_clock_set_back_fires_no_slot_again(machine: Machine) -> None:
    await machine.run(180)
    machine.clock.set(-120)
    await machine.run(180)
    assert machine.fired == [f"12:0{n}:00" for n in (1, 2, 3, 4)]


async def test_a_clock_that_was_wrong_by_a_year_does_not_silence_a_schedule(
    machine: Machine,
) -> None:
    machine.clock.set(365 * 86_400)
    await machine.run(60)
    machine.clock.set(-365 * 86_400)
    await machine.run(60)
    await machine.start()
    await machine.run(60)
    assert machine.fired[-2:] == ["12:02:00", "12:03:00"]


@pytest.mark.parametrize("refusal", [Throttled("full"), Unavailable("away")])
async def test_a_slot_that_cannot_be_published_is_tried_again(
    machine: Machine, refusal: Throttled | Unavailable
) -> None:
    machine.host.publisher.raises = refusal
    await machine.run(70)
    assert await machine.turn() == 1.0
    machine.host.publisher.raises = None
    await machine.run(5)
    assert machine.fired == ["12:01:00"]


async def test_a_schedule_whose_function_went_fires_into_the_void(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.host.publisher.raises = FunctionNotFound("Function not found: f")
    await machine.run(60)
    assert "Function not found: f" in caplog.text
    machine.host.publisher.raises = None
    await machine.run(60)
    assert machine.fired == ["12:02:00"]


async def test_a_cron_expression_means_wall_time_in_its_zone() -> None:
    schedule = minutely(expression="cron(30 13 * * ? *)", timezone="Europe/Berlin")
    machine = Machine(schedules=(schedule,))
    await machine.start()
    await machine.run(3_600)
    assert machine.fired == ["12:30:00"]


async def test_schedules_come_and_go_while_the_adapter_runs() -> None:
    host = Hosted()
    created = datetime.now(UTC) - timedelta(seconds=2)
    host.triggers.set(TriggerSet((minutely(created, expression="rate(1 second)"),)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, host)
        await host.publisher.until(3)
        later = minutely(created, expression="rate(1 second)", id="2", function="g")
        host.triggers.set(TriggerSet((later,)))
        await host.publisher.until(8)
        tasks.cancel_scope.cancel()
    functions = [event.function for event in host.publisher.events]
    assert functions[-1] == "g"
    assert functions == sorted(functions)
    times = [p["time"] for p, f in zip(host.publisher.payloads, functions, strict=True) if f == "g"]
    assert len(set(times)) == len(times)
