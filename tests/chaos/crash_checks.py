"""What must hold after a crash-point run, whatever failed in it: invariants I1 to I7."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from tests.chaos.books import Books, read_books
from tests.chaos.crash_processes import BILLED_MS, ENVIRONMENTS, MEMORY_MB, METERED, METERED_CALLS
from tests.chaos.crash_scenario import EVENTS, FUNCTIONS, JUNK, LISTENER

from trivet.bus import keys
from trivet.core.audit import Demands, report
from trivet.core.destinations import DEFAULT_BUS
from trivet.store.audits import Auditor
from trivet.store.bills import BillStore
from trivet.store.ledgers import LedgerStore


@dataclass(frozen=True, slots=True)
class Accepted:
    """What the client wrote down."""

    number: int
    request_id: str
    function: str
    is_new: bool


def is_quiet(redis: Redis) -> bool:
    """Whether nothing is under way any more."""
    together: Any = redis.pipeline(transaction=False)
    for function in FUNCTIONS:
        together.xlen(keys.durable_stream(function))
        together.hlen(keys.parked(function))
        together.xlen(keys.outbox(function))
    return not any(together.execute())


def accepted(folder: Path) -> list[Accepted]:
    lines = [line.split("\t") for line in (folder / "accepted").read_text().splitlines()]
    return [Accepted(int(n), request_id, fn, new == "1") for n, request_id, fn, new in lines]


def started(folder: Path) -> Counter[str]:
    """Executions by request id."""
    lines = (folder / "started").read_text().splitlines()
    return Counter(line.split("\t")[0] for line in lines)


def violations(redis: Any, folder: Path, kills: int) -> list[str]:
    """What does not hold, in words. `kills`: of the supervisor."""
    everything = {function: read_books(redis, function) for function in FUNCTIONS}
    found = [words for each in everything.values() for words in _of_function(each)]
    found.extend(_told(redis, everything))
    found.extend(_executed(everything, started(folder), kills))
    found.extend(_promised(everything, accepted(folder)))
    found.extend(_metered(read_books(redis, METERED), folder, kills))
    junk = {fields[b"e"] for _, fields in redis.xrange(keys.quarantine("steady"))}
    if junk != {*JUNK}:
        found.append(f"I1 junk: {junk} is in quarantine")
    return found


async def audited(socket: str, folder: Path) -> list[str]:
    """What `trivet ledger check` finds, which reads all of it another way."""
    unseen = {each.request_id for each in accepted(folder) if each.is_new}
    async with AsyncRedis(unix_socket_path=socket) as redis:
        ledgers = LedgerStore(redis)
        auditor = Auditor(ledgers, BillStore(redis))
        found = [await auditor.findings(name, unseen) for name in await ledgers.functions()]
    findings = report(found, Demands(is_quiesced=True), len(unseen), unseen)
    return [
        f"{each.invariant} by the audit: {each.problems}" for each in findings if not each.holds
    ]


def _of_function(each: Books) -> Iterator[str]:
    yield from each.errors()
    if each.on_stream or each.pending or each.parked:
        yield f"I1 {each.name}: in flight {[*each.on_stream, *each.parked]}, pending {each.pending}"
    attempts: Counter[str] = Counter()
    for entry in each.ledger:
        attempts[entry.request_id] += len(entry.progress.attempts)
    if +attempts != each.readings:
        yield f"I3 {each.name}: the readings are of other attempts"
    if each.outbox or each.totals["undelivered"]:
        yield f"I5 {each.name}: {each.outbox} untold, {each.totals['undelivered']} undelivered"


def _told(redis: Any, everything: dict[str, Books]) -> Iterator[str]:
    def count(function: str, state: str) -> int:
        return everything[function].totals[state]

    heard = everything[LISTENER].totals["accepted"]
    ended = count("glad-function", "success") + count("sad-function", "destination")
    if heard != ended:
        yield f"I5 {ended} ends were to be told to a function, which heard of {heard}"
    heard = redis.xlen(keys.bus_entries(DEFAULT_BUS))
    ended = count("glad-bus", "success") + count("sad-bus", "destination")
    if heard != ended:
        yield f"I5 {ended} ends were to be told to a bus, which heard of {heard}"


def _executed(everything: dict[str, Books], starts: Counter[str], kills: int) -> Iterator[str]:
    attempts, aborted = Counter[str](), Counter[str]()
    for each in everything.values():
        for entry in each.ledger:
            attempts[entry.request_id] += len(entry.progress.attempts)
            aborted[entry.request_id] += entry.progress.aborted
    for request_id, count in starts.items():
        if not attempts[request_id] <= count <= attempts[request_id] + aborted[request_id]:
            yield (
                f"I6 {request_id}: executed {count} times, "
                f"{attempts[request_id]} attempts and {aborted[request_id]} aborted"
            )
    duplicates = starts.total() - attempts.total()
    if not 0 <= duplicates <= kills * ENVIRONMENTS:
        yield f"I6 {duplicates} executions too many after {kills} kills"


def _promised(everything: dict[str, Books], promised: list[Accepted]) -> Iterator[str]:
    states = {
        (function, entry.request_id): entry.state
        for function, each in everything.items()
        for entry in each.ledger
    }
    for each in promised:
        state = states.get((each.function, each.request_id), "lost")
        if each.is_new and state != EVENTS[each.number].state:
            yield f"I7 {EVENTS[each.number]}: accepted, and then {state}"
    if missing := {*range(len(EVENTS))} - {each.number for each in promised}:
        yield f"I7 never accepted: {[EVENTS[number] for number in missing]}"
    keyed = len({sent.once for sent in EVENTS if sent.once})
    if everything["keyed"].totals["accepted"] != keyed:
        yield f"I7 {everything['keyed'].totals['accepted']} accepted under {keyed} keys"


def _metered(each: Books, folder: Path, kills: int) -> Iterator[str]:
    """Express calls: at most one window of them is unbilled after a kill, and none billed twice."""
    calls, rows = len((folder / "metered").read_text().splitlines()), each.readings.total()
    if each.billed["requests"] != rows or each.billed["mb_ms"] != rows * BILLED_MS * MEMORY_MB:
        yield f"I3 {METERED}: {rows} readings, billed {dict(each.billed)}"
    if len(each.readings) != rows or not calls - METERED_CALLS * kills <= rows <= calls:
        yield f"I3 {METERED}: {calls} calls, {rows} readings, {kills} kills"
