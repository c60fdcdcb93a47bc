"""The ledger over a real server: checked, listed, shown and sent again by a real client."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import anyio
import pytest
from botocore.exceptions import ClientError
from redis.asyncio import Redis
from tests.platform.conftest import Call, Echo
from tests.platform.test_durable_lane import Holder, Lane, event, lane, until

from trivet.aws.services import Services
from trivet.bus import frames, keys
from trivet.bus.dequeue import DurableIntake
from trivet.core.billing import Reading
from trivet.core.retries import Again, Attempt, AttemptStatus, Over, Verdict
from trivet.store.audits import Auditor
from trivet.store.bills import BillStore
from trivet.store.ledgers import LedgerStore, Page

pytestmark = pytest.mark.anyio

__all__ = ["lane"]  # a fixture

DEAD = Over("dead", "RetriesExhausted")
DONE = Over("success", "Success")
GONE = Over("dropped", "FunctionDeleted")
ON_FAILURE = "arn:aws:lambda:us-east-1:123456789012:function:rescue"
TOLD = Over("destination", "RetriesExhausted", ON_FAILURE)
NEVER_MS = 4_000_000_000_000


def ran(
    intake: DurableIntake,
    delivery: frames.Delivery,
    status: AttemptStatus = "ok",
    verdict: Verdict = DONE,
) -> None:
    """An attempt at the event ended, in the way that a supervisor commits it."""
    assert delivery.progress is not None
    reading = Reading(
        request_id=delivery.request_id,
        function=delivery.function,
        version="$LATEST",
        ended_ms=int(time.time() * 1000),
        memory_mb=128,
        billed_ms=7,
        init_ms=None,
        start="warm",
        status="" if status == "ok" else "error",
    )
    error = "" if status == "ok" else "ValueError"
    attempt = Attempt(reading.ended_ms, status, error, "$LATEST", 7, 128)
    told = b'{"version":"1.0"}' if isinstance(verdict, Over) and verdict.target else b""
    intake.commit(delivery, delivery.progress.with_attempt(attempt), verdict, (reading,), told)


@pytest.fixture
async def told(lane: Lane, durable: Redis) -> list[str]:
    """Request ids of six events: one succeeded; one is dead; one failed and is told of; one was
    dropped; one is delayed; one is being run."""
    publisher, taker = await lane.publisher(), Holder()
    intake = await lane.intake(taker)
    sent = [event(payload=b'{"n":%d}' % number) for number in range(6)]
    for each in sent:
        await publisher.publish(each)
    intake.rung("hello")
    await until(lambda: len(taker.held) == 6)
    first, second, third, fourth, fifth, _ = taker.held
    ran(intake, first)
    ran(intake, second, "error", DEAD)
    # Nobody looks after this outbox for as long as its destination is full.
    await durable.set(keys.function_record("rescue"), b"x")
    ran(intake, third, "timeout", TOLD)
    intake.end(fourth, GONE)
    ran(intake, fifth, "crash", Again(NEVER_MS))
    await intake.committed()
    return [each.id for each in sent]


async def check(call: Call, **settings: Any) -> dict[str, Any]:
    answer = await call("trivet", "check_ledger", **settings)
    return {each["Name"]: each for each in answer["Invariants"]}


def broken(found: dict[str, Any]) -> set[str]:
    return {name for name, each in found.items() if not each["Holds"]}


async def test_what_is_right_passes_with_its_figures(call: Call, told: list[str]) -> None:
    found = await check(call, Accepted="\n".join(told).encode(), Function="hello")
    assert broken(found) == set(), found
    figures = {name: each["Figures"] for name, each in found.items()}
    assert figures["I1"] == {
        "accepted": 6,
        "ended": 4,
        "in_flight": 2,
        "kept": 4,
        "forgotten": 0,
    }
    assert (figures["I3"]["billed"], figures["I3"]["attempts"]) == (4, 4)
    assert figures["I4"]["mb_ms"] == figures["I4"]["billed_mb_ms"] == 4 * 7 * 128
    assert figures["I4"]["readings"] == 4
    assert figures["I5"]["owed"] == 1
    assert figures["I7"] == {"accepted": 6, "missing": 0, "untold": 0}
    assert broken(await check(call)) == set()  # the destination's own event included
    assert broken(await check(call, Quiesced=True)) == {"I1"}


Break = Callable[[Redis], Awaitable[Any]]


async def _lose_an_end(durable: Redis) -> None:
    entries: Any = await durable.xrange(keys.ledger("hello"))
    (dropped,) = (entry_id for entry_id, fields in entries if fields[b"s"] == b"dropped")
    await durable.xdel(keys.ledger("hello"), dropped)


async def _end_twice(durable: Redis) -> None:
    entries: Any = await durable.xrange(keys.ledger("hello"))
    (fields,) = (fields for _, fields in entries if fields[b"s"] == b"dropped")
    await durable.xadd(keys.ledger("hello"), fields)
    await durable.hincrby(keys.totals("hello"), "dropped", 1)
    await durable.hincrby(keys.totals("hello"), "accepted", 1)


async def _junk_in_the_ledger(durable: Redis) -> None:
    await durable.xadd(keys.ledger("hello"), {"s": "success", "p": "junk"})
    await durable.hincrby(keys.totals("hello"), "success", 1)
    await durable.hincrby(keys.totals("hello"), "accepted", 1)


async def _lose_the_readings(durable: Redis) -> None:
    await durable.delete(keys.readings("hello"))


def _count(name: str, by: int) -> Break:
    return lambda durable: cast(Awaitable[Any], durable.hincrby(keys.totals("hello"), name, by))


@pytest.mark.parametrize(
    ("break_", "invariants"),
    [
        (_lose_an_end, {"I1"}),
        (_count("accepted", 1), {"I1"}),
        (lambda durable: durable.delete(keys.delayed("hello")), {"I1"}),
        (_end_twice, {"I2"}),
        (_junk_in_the_ledger, {"I2"}),
        (_count("requests", -1), {"I3"}),
        (_count("requests", 1), {"I3"}),
        (_count("mb_ms", 1), {"I4"}),
        (_lose_the_readings, {"I4"}),
        (_count("delivered", 1), {"I5"}),
        (_count("outbox", -1), {"I5"}),
        (_count("aborted", 1), {"I6"}),
    ],
)
async def test_a_break_of_the_data_fails_its_invariant(
    call: Call, told: list[str], durable: Redis, break_: Break, invariants: set[str]
) -> None:
    await break_(durable)
    found = await check(call, Function="hello")
    assert broken(found) == invariants, found
    for name in invariants:
        assert found[name]["Problems"][0].startswith("hello: ")
        assert found[name]["Advice"]


async def test_a_client_s_own_file_is_compared(call: Call, told: list[str]) -> None:
    stranger = "00000000-0000-4000-8000-000000000000"
    found = await check(call, Accepted=f"{told[0]}\n{stranger}\n".encode())
    assert broken(found) == {"I7"}
    assert stranger in found["I7"]["Problems"][0]


@pytest.mark.slow
async def test_a_platform_at_work_raises_no_false_alarm(
    call: Call, lane: Lane, durable: Redis
) -> None:
    """Events fail, are parked, come back at once and succeed while they are checked."""
    publisher, taker = await lane.publisher(), Holder(room=1_000)
    intake = await lane.intake(taker)
    accepted: list[str] = []
    checks = 0

    async def publish() -> None:
        number = 0
        while checks < 12:
            sent = event(payload=b"[%d]" % number)
            await publisher.publish(sent)
            accepted.append(sent.id)
            intake.rung("hello")
            number += 1

    async def work() -> None:
        while checks < 12:
            for delivery in taker.held:
                attempts = delivery.progress.attempts if delivery.progress else ()
                if len(attempts) < 2 and int(delivery.payload[1:-1]) % 3:
                    soon = int(time.time() * 1000) + 5
                    ran(intake, delivery, "error", Again(soon))
                else:
                    ran(intake, delivery)
            taker.held.clear()
            intake.read("hello")
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(publish)
        tasks.start_soon(work)
        while checks < 12:
            found = await check(call, Accepted="\n".join(accepted).encode())
            checks += 1
            assert broken(found) == set(), found
    assert found["I1"]["Figures"]["accepted"] > 100
    assert found["I6"]["Figures"]["retries"] > 10


class Restless(LedgerStore):
    """Something moves just before the stream is read."""

    def __init__(self, redis: Redis, move: Callable[[], Awaitable[None]]) -> None:
        super().__init__(redis)
        self.move = move

    async def on_stream(
        self, function: str, after: str = "", *, newest_first: bool = False
    ) -> AsyncIterator[Page]:
        await self.move()
        async for page in super().on_stream(function, after, newest_first=newest_first):
            yield page


@pytest.mark.parametrize("verdict", [DONE, Again(NEVER_MS)], ids=["ends", "parked"])
async def test_an_event_that_moves_under_the_check_is_not_missed(
    lane: Lane, durable: Redis, monkeypatch: pytest.MonkeyPatch, verdict: Verdict
) -> None:
    """In the first pass, since a second one would not see it move."""
    monkeypatch.setattr("trivet.store.audits._PASSES", 1)
    publisher, taker = await lane.publisher(), Holder()
    intake = await lane.intake(taker)
    await publisher.publish(event())
    intake.rung("hello")
    await until(lambda: bool(taker.held))
    ran(intake, taker.held.pop(), "error", Again(int(time.time() * 1000)))
    await until(lambda: bool(taker.held))

    async def move() -> None:
        ran(intake, taker.held.pop(), "ok" if verdict is DONE else "error", verdict)
        await intake.committed()

    unseen = {taker.held[0].request_id}
    auditor = Auditor(Restless(durable, move), BillStore(durable))
    findings = await auditor.findings("hello", unseen)
    assert [finding.problems for finding in findings if not finding.holds] == []
    assert not unseen
    assert findings[2].figures["attempts"] == 2


# -------------------------------------------------------------------------- listing, showing


async def test_events_are_listed_and_shown_wherever_they_are(call: Call, told: list[str]) -> None:
    listed = (await call("trivet", "list_events", Function="hello"))["Events"]
    by_id = {each["Id"]: each for each in listed}
    states = [by_id[request_id]["State"] for request_id in told]
    assert states == ["success", "dead", "destination", "dropped", "delayed", "waiting"]
    times = [each["AcceptedTime"] for each in listed]
    assert times == sorted(times, reverse=True)
    dead = await call("trivet", "get_event", Id=told[1])
    assert dead["Condition"] == "RetriesExhausted"
    (attempt,) = dead["Attempts"]
    assert (attempt["Status"], attempt["ErrorType"], attempt["BilledMs"]) == (
        "error",
        "ValueError",
        7,
    )
    assert dead["Payload"] == '{"n":1}'
    assert dead["EndedTime"] >= dead["AcceptedTime"]
    delayed = await call("trivet", "get_event", Id=told[4], Function="hello")
    assert delayed["DueTime"].timestamp() == NEVER_MS / 1000
    assert "Entry" not in delayed
    running = await call("trivet", "get_event", Id=told[5])
    assert running["RunBy"] == "n:1"


@pytest.mark.parametrize("state", ["success", "dead", "dropped", "waiting", "delayed", "expired"])
async def test_a_state_is_listed_by_itself(call: Call, told: list[str], state: str) -> None:
    answer = await call("trivet", "list_events", Function="hello", State=state)
    assert [each["State"] for each in answer["Events"]] == [state] * (state != "expired")


async def test_every_event_is_on_one_page(call: Call, told: list[str]) -> None:
    found: list[str] = []
    more: dict[str, str] = {}
    while True:
        page = await call("trivet", "list_events", Function="hello", MaxItems=1, **more)
        found += [each["Id"] for each in page["Events"]]
        if "NextMarker" not in page:
            break
        more = {"Marker": page["NextMarker"]}
    assert sorted(found) == sorted(told)
    together = await call("trivet", "list_events", MaxItems=3)
    assert len(together["Events"]) == 3
    assert "NextMarker" not in together


async def test_a_destination_that_waits_or_was_told_is_shown(
    call: Call, told: list[str], durable: Redis
) -> None:
    async def shown() -> Any:
        return (await call("trivet", "get_event", Id=told[2])).get("Destination")

    with anyio.fail_after(10):
        while await durable.sismember(keys.OUTBOXES, "hello"):  # nobody looks at it any more
            await anyio.lowlevel.checkpoint()
    entries: Any = await durable.xrange(keys.ledger("hello"))
    (origin,) = (f[b"o"].decode() for _, f in entries if f[b"i"] == told[2].encode())
    fields: Any = {"t": ON_FAILURE, "o": origin, "b": b'{"version":"1.0"}'}
    with anyio.fail_after(10):
        while True:  # the first sweep of the lane may deliver it in between
            entry = await durable.xadd(keys.outbox("hello"), fields)
            seen = await shown()
            if seen["Status"] == "waiting":
                break
    assert seen == {
        "Target": ON_FAILURE,
        "Status": "waiting",
        "Record": '{"version":"1.0"}',
    }
    await durable.xdel(keys.outbox("hello"), entry)
    delivered = await shown()  # it really was, before
    assert (delivered["Target"], delivered["Status"]) == (ON_FAILURE, "delivered")


# -------------------------------------------------------------------------- replay


async def refused(call: Call, operation: str, **settings: Any) -> tuple[str, int, str]:
    with pytest.raises(ClientError) as caught:
        await call("trivet", operation, **settings)
    response = caught.value.response
    error = response["Error"]
    return error["Code"], response["ResponseMetadata"]["HTTPStatusCode"], error["Message"]


async def test_an_event_that_ended_is_sent_again_as_a_new_one(
    call: Call, told: list[str], services: Services
) -> None:
    platform = cast(Echo, services.platform)
    answer = await call("trivet", "replay_event", Id=told[1])
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202
    edited = await call("trivet", "replay_event", Id=told[1], Payload='{"n": "new"}')
    (first, _), (second, _) = platform.published
    assert (first.id, second.id) == (answer["Id"], edited["Id"])
    assert len({first.id, second.id, told[1]}) == 3
    assert (first.function, first.source, first.payload) == ("hello", "replay", b'{"n":1}')
    assert second.payload == b'{"n": "new"}'


async def test_an_event_is_sent_again_by_its_entry(
    call: Call, told: list[str], services: Services
) -> None:
    listed = (await call("trivet", "list_events", Function="hello", State="dead"))["Events"]
    entry = listed[0]["Entry"]
    await call("trivet", "replay_event", Id=told[1], Function="hello", Entry=entry)
    assert len(cast(Echo, services.platform).published) == 1


async def test_what_cannot_be_sent_again_is_refused_in_words(
    call: Call, told: list[str], durable: Redis
) -> None:
    assert await refused(call, "replay_event", Id=told[4]) == (
        "ResourceConflictException",
        409,
        f"The event {told[4]} has not ended: it is delayed.",
    )
    stranger = "00000000-0000-4000-8000-000000000000"
    assert await refused(call, "get_event", Id=stranger) == (
        "ResourceNotFoundException",
        404,
        f"Event not found: {stranger}",
    )
    kind, _, _ = await refused(call, "replay_event", Id=told[1], Payload="{")
    assert kind == "InvalidRequestContentException"
    kind, _, _ = await refused(call, "list_events", Marker="ended:1-1")
    assert kind == "ValidationException"
    kind, _, _ = await refused(call, "list_events", Function="hello", Marker="junk")
    assert kind == "ValidationException"
    # As the ledger holds an event that was larger than its budget allows.
    entries: Any = await durable.xrange(keys.ledger("hello"))
    for entry_id, fields in entries:
        await durable.xdel(keys.ledger("hello"), entry_id)
        await durable.xadd(keys.ledger("hello"), {**fields, b"e": b""})
    kind, status, words = await refused(call, "replay_event", Id=told[1])
    assert (kind, status) == ("ResourceConflictException", 409)
    assert "too large to be kept" in words
    await call("trivet", "replay_event", Id=told[1], Payload="{}")
