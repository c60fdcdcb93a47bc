"""Dequeue: the supervisor's half of the durable lane. At least once, and never read ahead.

An event stays on its stream until its attempt has ended; one script then takes it off and meters
it. What a dead epoch had taken is claimed by its successor, or by a peer, and run again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import anyio
import anyio.abc
import hiredis
import structlog

from trivet.bus import frames, keys
from trivet.bus.commits import Commits
from trivet.bus.delays import WAKE, Delays
from trivet.bus.enqueue import ENQUEUE
from trivet.bus.outbox import DELIVERED, TELL_BUS, Outbox
from trivet.bus.readings import pack_readings
from trivet.bus.resp import RECONNECT_S, Address, Connection, connected, pack
from trivet.bus.scripts import load, script
from trivet.bus.streams import Streams, ensure_group
from trivet.bus.succession import RETIRE, Succession
from trivet.core import retries
from trivet.core.arns import Place
from trivet.core.billing import Reading, usage_of
from trivet.core.retries import Again, Over, Progress, Verdict

log = structlog.get_logger()

COMMIT = script("commit")
METER = script("meter")
UNREAD = script("unread")

SWEEP_S = 5.0
MARK_LIFETIME_S = 3_600  # far longer than a batch may be sent again after
BILL_LIFETIME_S = 400 * 86_400
MOST_READINGS = 100_000  # entries a function keeps, each a batch


async def _none_of(nodes: Sequence[str]) -> Sequence[str]:
    return ()


class Taker(Protocol):
    """Who runs the events: the dispatcher."""

    def durable_room(self, function: str, backlog: int) -> int:
        """How many more events of `function` can be run right now, of the `backlog` that waited
        when somebody looked last."""
        ...

    def take(self, deliveries: list[frames.Delivery]) -> None: ...

    def is_idle(self, function: str) -> bool: ...


class DurableIntake:
    """Reads durable events for one epoch, and commits them. Implements `streams.Lane`."""

    def __init__(
        self,
        address: Address,
        *,
        node: str,
        epoch: str,
        place: Place,
        taker: Taker,
        set_flag: Callable[[str, bool], Awaitable[None]],
        dead_among: Callable[[Sequence[str]], Awaitable[Sequence[str]]] = _none_of,
        ledger_bytes: int = 16 * 2**20,
    ) -> None:
        """`set_flag` raises or clears a function's durable flag, on the express server.

        `dead_among(nodes)` tells which of them live no more. `ledger_bytes`: how much of its ended
        events a function keeps.
        """
        self._address = address
        self._node = node
        self._epoch = epoch
        self._consumer = f"{node}:{epoch}"
        self._place = place
        self._taker = taker
        self._set_flag = set_flag
        self._ledger_bytes = ledger_bytes
        self._out: Connection | None = None
        self._streams: Streams | None = None
        self._delays: Delays | None = None
        self._outbox: Outbox | None = None
        self._is_draining = False
        # Entries that are here: a server that came back from its disk may offer them again.
        self._held: set[tuple[str, bytes]] = set()
        self._backlogs: dict[str, int] = {}  # unread events, by the last look and what came since
        self._commits = Commits()
        self._succession = Succession(
            node,
            epoch,
            prepare=self._note,
            is_held=lambda function, entry_id: (function, entry_id) in self._held,
            take=self._take,
        )
        self._dead_among = dead_among
        self._spent: dict[str, list[str]] = {}  # by function: marks of batches that are on disk
        self._billed: set[tuple[str, str]] = set()  # (month, function) the server knows about
        self.malformed = 0  # entries since the start
        self.has_peers = False  # whether other nodes ever took events from this server
        self.fenced = 0  # attempts that ended after somebody else had taken their event over

    @property
    def batches(self) -> int:
        """Writes that carried commits, since the lane was last connected."""
        return self._out.writes if self._out else 0

    @property
    def is_ready(self) -> bool:
        """Whether what is committed now goes to disk soon."""
        return self._out is not None and not self._out.is_stalled

    def __repr__(self) -> str:
        return (
            f"<DurableIntake {len(self._held)} held, {len(self._commits)} uncommitted, "
            f"{self._streams or 'away'}>"
        )

    # ------------------------------------------------------------------ ending attempts

    def commit(
        self,
        delivery: frames.Delivery,
        progress: Progress,
        verdict: Verdict,
        readings: Sequence[Reading] = (),
        told: bytes = b"",
    ) -> None:
        """An attempt has ended, or none is to be made: meter it and carry out the verdict, in one
        act. `told` is what the verdict's target is to be told."""
        function = delivery.function
        due, state, condition, target = "", "", "", ""
        if isinstance(verdict, Again):
            due = str(verdict.due_ms)
        else:
            state, condition, target = verdict.state, verdict.condition, verdict.target
        month = readings[0].month if readings else "none"
        usage = usage_of(readings)
        commands = [*self._bill_noted(month, function)] if readings else []
        if told:
            commands.append(pack((b"SADD", keys.OUTBOXES, function)))
        commands.append(
            pack(
                (
                    b"EVALSHA",
                    COMMIT.sha,
                    b"8",
                    keys.durable_stream(function),
                    keys.totals(function),
                    keys.readings(function),
                    keys.month_bill(function, month),
                    keys.delayed(function),
                    keys.parked(function),
                    keys.ledger(function),
                    keys.outbox(function),
                    keys.GROUP,
                    self._consumer,
                    delivery.entry_id,
                    pack_readings(readings),
                    usage.requests,
                    usage.mb_ms,
                    BILL_LIFETIME_S,
                    MOST_READINGS,
                    progress.origin,
                    delivery.request_id,
                    frames.pack_progress(progress),
                    due,
                    state,
                    condition,
                    told,
                    target,
                    delivery.trace_id,
                    self._ledger_bytes,
                )
            )
        )

        def then(answer: int) -> None:
            self._held.discard((function, delivery.entry_id))  # until then it is pending, and here
            if answer < 0:
                self.fenced += 1
                log.warning("commit.fenced", function=function, request_id=delivery.request_id)
            elif isinstance(verdict, Again):
                if self._delays is not None:
                    self._delays.parked(function, verdict.due_ms)
            elif told and self._outbox is not None:
                self._outbox.noted(function)

        # By the connection that reads the function next, where that can be: one flush for both.
        over = self._streams.lend(function) if self._streams is not None else None
        self._commits.send(b"".join(commands), len(commands), then, over=over)

    def _bill_noted(self, month: str, function: str) -> list[bytes]:
        """Before the bill, so that whoever finds the bill finds its name."""
        if (month, function) in self._billed:
            return []
        self._billed.add((month, function))
        return [pack((b"SADD", keys.billed_functions(month), function))]

    def meter(self, readings: Sequence[Reading], then: Callable[[], None] | None = None) -> None:
        """Meter a batch of one function's express attempts; `then` is called once it is on disk."""
        function, month = readings[0].function, readings[0].month
        usage = usage_of(readings)
        mark = keys.commit_mark(function, secrets.token_hex(8))
        spent = self._spent.pop(function, [])
        commands = [
            *self._bill_noted(month, function),
            pack(
                (
                    b"EVALSHA",
                    METER.sha,
                    3 + len(spent),
                    mark,
                    keys.readings(function),
                    keys.month_bill(function, month),
                    *spent,
                    MARK_LIFETIME_S,
                    pack_readings(readings),
                    usage.requests,
                    usage.mb_ms,
                    BILL_LIFETIME_S,
                    MOST_READINGS,
                )
            ),
        ]

        def on_disk(_: int) -> None:
            self._spent.setdefault(function, []).append(mark)
            if then is not None:
                then()

        self._commits.send(b"".join(commands), len(commands), on_disk)

    def retry(self, delivery: frames.Delivery) -> None:
        """It could not be run now, which is not its fault: it waits, and then goes to anyone."""
        progress = _of(delivery)
        verdict = retries.after_fault(progress, int(time.time() * 1000))
        self.commit(delivery, replace(progress, backoffs=progress.backoffs + 1), verdict)

    def end(self, delivery: frames.Delivery, over: Over, told: bytes = b"") -> None:
        """It is not to be run any more."""
        self.commit(delivery, _of(delivery), over, told=told)

    # ------------------------------------------------------------------ streams.Lane

    def stream(self, function: str) -> str:
        return keys.durable_stream(function)

    def room(self, function: str) -> int:
        return self._taker.durable_room(function, self._backlogs.get(function, 0))

    def taken(self, function: str, entries: list[Any]) -> None:
        self._backlogs[function] = max(0, self._backlogs.get(function, 0) - len(entries))
        self._take(function, entries, {})

    def _take(self, function: str, entries: list[Any], aborted: dict[bytes, int]) -> None:
        """`aborted`: how often an entry was delivered before, to who was never heard of again."""
        deliveries = []
        for entry_id, fields in entries:
            key = (function, entry_id)
            if key in self._held or fields is None:
                continue
            try:
                delivery = frames.unpack_durable(function, entry_id, fields)
            except frames.MalformedEvent as error:
                log.error("event.malformed", function=function, entry=entry_id, reason=str(error))
                self.malformed += 1
                self._quarantine(function, entry_id, fields)
                continue
            self._held.add(key)
            if entry_id in aborted:
                progress = _of(delivery)
                delivery.progress = replace(progress, aborted=progress.aborted + aborted[entry_id])
            deliveries.append(delivery)
        self._taker.take(deliveries)

    def _quarantine(self, function: str, entry_id: bytes, fields: list[bytes]) -> None:
        """Keep junk aside, bounded and as it is, for whoever wants to know where it came from."""
        stream = keys.durable_stream(function)
        commands = (
            pack((b"XADD", keys.quarantine(function), b"MAXLEN", b"1000", b"*", *fields)),
            # In this order: what is pending and gone is cleared by the next claim, while an entry
            # that is nobody's any more would lie there for ever.
            pack((b"XDEL", stream, entry_id)),
            pack((b"XACK", stream, keys.GROUP, entry_id)),
        )
        self._commits.send(b"".join(commands), len(commands), lambda _: None)

    @property
    def noted(self) -> str:
        return keys.durable_epoch_functions(self._node, self._epoch)

    async def began(self, out: Connection, function: str) -> None:
        # What was read over a connection of its own that was lost, and never came here.
        await self._succession.claim_lost(out, function)

    async def _note(self, out: Connection, function: str) -> None:
        await out.call("SADD", self.noted, function)
        await ensure_group(out, keys.durable_stream(function))

    async def leave(self, out: Connection, function: str) -> bool:
        # The flag first: who publishes from here on rings. Then the look, which sees the others.
        await self._set_flag(function, False)
        if await self._has_unread(out, function, tidy=True):
            await self._set_flag(function, True)
            return True
        await out.call("SREM", keys.BACKLOG, function)
        if await out.call("EXISTS", keys.durable_stream(function), keys.delayed(function)):
            await out.call("SADD", keys.BACKLOG, function)
        return False

    async def _has_unread(self, out: Connection, function: str, *, tidy: bool = False) -> bool:
        """Whether events wait. `tidy` removes an empty stream, which ends every read of it."""
        stream = keys.durable_stream(function)
        return bool(await out.call("EVALSHA", UNREAD.sha, 1, stream, keys.GROUP, int(tidy)))

    # ------------------------------------------------------------------ which functions

    def read(self, function: str) -> None:
        if self._streams is not None:
            self._streams.read(function)

    def rung(self, function: str) -> None:
        if self._streams is not None and not self._is_draining:
            self._streams.serve(function)

    def leave_idle(self) -> None:
        if self._streams is not None:
            for function in self._streams.served():
                if self._taker.is_idle(function):
                    self._streams.let_go(function)

    # ------------------------------------------------------------------ what keeps it going

    async def run(self) -> None:
        """Keep connected to the durable server."""
        while True:
            try:
                async with connected(self._address) as out:
                    await self._serve(out)
            except OSError:
                await anyio.sleep(RECONNECT_S)
            except hiredis.HiredisError as error:
                log.warning("durable.refused", error=str(error))
                await anyio.sleep(10 * RECONNECT_S)

    async def _serve(self, out: Connection) -> None:
        await load(out, COMMIT, METER, UNREAD, WAKE, ENQUEUE, DELIVERED, TELL_BUS, RETIRE)
        self._billed.clear()
        self._commits.connected(out)
        served = await self._succession.begin(out)
        async with anyio.create_task_group() as tasks:
            streams = Streams(self._address, out, self, self._consumer, tasks)
            self._out, self._streams = out, streams
            self._delays = delays = Delays(out, self.rung, tasks)
            self._outbox = outbox = Outbox(out, self._place, self.rung)
            try:
                # Their flags may still say that somebody was told: nobody would ring for them.
                for function in served:
                    self.rung(function)
                tasks.start_soon(_until_lost, outbox.run)
                tasks.start_soon(_until_lost, self._sweep, out, delays, outbox)
                await out.lost
            finally:
                self._out = self._streams = self._delays = self._outbox = None
                self._commits.lost()
                delays.close()
                streams.close()
                tasks.cancel_scope.cancel()

    async def _sweep(self, out: Connection, delays: Delays, outbox: Outbox) -> None:
        """Find what lost hints would leave lying. With a new connection, all that there is: whoever
        died or lost his may have taken a name from a set, and not put it back."""
        is_first = True
        while True:
            nodes = [name.decode() for name in await out.call("SMEMBERS", keys.DURABLE_NODES)]
            self.has_peers = len(nodes) > 1
            dead = await self._dead_among(nodes)
            for node in dead:
                for function in await self._succession.claim_node(out, node):
                    self.rung(function)
            for name in await out.call("SMEMBERS", keys.LEDGERS if is_first else keys.BACKLOG):
                function = name.decode()
                if is_first:
                    outbox.noted(function)
                await self._succession.claim_strays(out, function, dead)
                if await self._has_unread(out, function):
                    self._backlogs[function] = await out.call("XLEN", keys.durable_stream(function))
                    self.rung(function)
                else:
                    self._backlogs.pop(function, None)
                found = await out.call("ZRANGE", keys.delayed(function), 0, 0, "WITHSCORES")
                if found:
                    delays.parked(function, float(found[1]))
            await delays.look()
            await outbox.look()
            is_first = False
            await anyio.sleep(SWEEP_S)

    async def drain(self) -> None:
        """Take nothing more, and see every commit through. The rest is the successor's."""
        self._is_draining = True
        if self._streams is not None:
            await self._streams.stop()

    async def committed(self) -> None:
        """Returns when every commit so far is on disk."""
        await self._commits.answered()


def _of(delivery: frames.Delivery) -> Progress:
    assert delivery.progress is not None  # every event of this lane has one
    return delivery.progress


async def _until_lost(
    serve: Callable[..., Awaitable[None]], *arguments: Connection | Delays | Outbox
) -> None:
    """What a lost connection interrupts begins anew with the next one."""
    try:
        await serve(*arguments)
    except (OSError, hiredis.HiredisError) as error:
        log.warning("durable.interrupted", error=str(error))
