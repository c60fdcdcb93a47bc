"""Dequeue: the supervisor's half of the durable lane. At least once, and never read ahead.

An event stays on its stream until its attempt has ended; one script then takes it off and meters
it. What a dead epoch had taken is claimed by its successor and run again.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import anyio
import anyio.abc
import hiredis
import structlog

from trivet.bus import frames, keys
from trivet.bus.readings import pack_readings
from trivet.bus.resp import RECONNECT_S, Address, Connection, connected, pack
from trivet.bus.scripts import load, script
from trivet.bus.streams import Streams, ensure_group
from trivet.core.billing import Reading, usage_of

log = structlog.get_logger()

COMMIT = script("commit")
UNREAD = script("unread")

SWEEP_S = 5.0
MARK_LIFETIME_S = 3_600  # far longer than a commit may be sent again after
BILL_LIFETIME_S = 400 * 86_400
MOST_READINGS = 100_000  # entries a function keeps, each a batch
# An event that could not be started is tried again after these waits, the last one repeated.
RETRY_AFTER_S = (1.0, 2.0, 5.0, 15.0, 60.0)


class Taker(Protocol):
    """Who runs the events: the dispatcher."""

    def durable_room(self, function: str) -> int:
        """How many more events of `function` can be run right now."""
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
        taker: Taker,
        set_flag: Callable[[str, bool], Awaitable[None]],
    ) -> None:
        """`set_flag` raises or clears a function's durable flag, on the express server."""
        self._address = address
        self._node = node
        self._epoch = epoch
        self._consumer = f"{node}:{epoch}"
        self._taker = taker
        self._set_flag = set_flag
        self._loop = asyncio.get_running_loop()
        self._out: Connection | None = None
        self._streams: Streams | None = None
        self._is_draining = False
        # Entries that are here: a server that came back from its disk may offer them again.
        self._held: set[tuple[str, bytes]] = set()
        self._tries: dict[tuple[str, bytes], int] = {}
        # Commits without an answer, in order; sent again after a lost connection.
        self._uncommitted: dict[int, bytes] = {}
        self._then: dict[int, Callable[[], None]] = {}
        self._number = 0
        self.malformed = 0  # entries since the start
        self._all_committed = asyncio.Event()
        self._all_committed.set()

    @property
    def batches(self) -> int:
        """Writes that carried commits, since the lane was last connected."""
        return self._out.writes if self._out else 0

    def __repr__(self) -> str:
        return (
            f"<DurableIntake {len(self._held)} held, {len(self._uncommitted)} uncommitted, "
            f"{self._streams or 'away'}>"
        )

    # ------------------------------------------------------------------ ending events

    def commit(self, delivery: frames.Delivery, readings: Sequence[Reading]) -> None:
        """The event has ended: take it off its stream and meter what it used, in one act."""
        key = (delivery.function, delivery.entry_id)
        self._held.discard(key)
        self._tries.pop(key, None)
        self._commit(delivery.function, delivery.entry_id, readings)

    def meter(self, readings: Sequence[Reading], then: Callable[[], None] | None = None) -> None:
        """Meter a batch of one function's express attempts; `then` is called once it is on disk."""
        self._commit(readings[0].function, b"", readings, then)

    def _commit(
        self,
        function: str,
        entry_id: bytes,
        readings: Sequence[Reading],
        then: Callable[[], None] | None = None,
    ) -> None:
        month = readings[0].month if readings else "none"
        usage = usage_of(readings)
        command = pack(
            (
                b"EVALSHA",
                COMMIT.sha,
                b"4",
                keys.durable_stream(function),
                keys.readings(function),
                keys.month_bill(function, month),
                keys.commit_mark(function, secrets.token_hex(8)),
                keys.GROUP,
                entry_id,
                pack_readings(readings),
                usage.requests,
                usage.mb_ms,
                MARK_LIFETIME_S,
                BILL_LIFETIME_S,
                MOST_READINGS,
            )
        )
        if readings:
            # Before the bill, so that whoever finds the bill finds its name.
            command = pack((b"SADD", keys.billed_functions(month), function)) + command
        self._number += 1
        self._uncommitted[self._number] = command
        if then is not None:
            self._then[self._number] = then
        self._all_committed.clear()
        if self._out is not None:
            self._send_commit(self._out, self._number, 2 if readings else 1)

    def _send_commit(self, out: Connection, number: int, replies: int) -> None:
        command = self._uncommitted[number]
        remaining = replies

        def on_reply(reply: Any) -> None:
            nonlocal remaining
            remaining -= 1
            if isinstance(reply, ConnectionError):
                return  # sent again by the next connection
            if isinstance(reply, Exception):
                log.error("commit.refused", error=str(reply))
            if remaining == 0:
                self._uncommitted.pop(number, None)
                then = self._then.pop(number, None)
                if then is not None:
                    then()
                if not self._uncommitted:
                    self._all_committed.set()

        out.send_several(command, [on_reply] * replies)

    def retry(self, delivery: frames.Delivery) -> None:
        """It could not be run now, which is not its fault: try again, and keep it till then."""
        key = (delivery.function, delivery.entry_id)
        tries = self._tries.get(key, 0)
        self._tries[key] = tries + 1
        wait_s = RETRY_AFTER_S[min(tries, len(RETRY_AFTER_S) - 1)]
        self._loop.call_later(wait_s, self._take_again, delivery)

    def _take_again(self, delivery: frames.Delivery) -> None:
        if not self._is_draining:
            self._taker.take([delivery])

    # ------------------------------------------------------------------ streams.Lane

    def stream(self, function: str) -> str:
        return keys.durable_stream(function)

    def room(self, function: str) -> int:
        return self._taker.durable_room(function)

    def taken(self, function: str, entries: list[Any]) -> None:
        deliveries = []
        for entry_id, fields in entries:
            key = (function, entry_id)
            if key in self._held or fields is None:
                continue
            self._held.add(key)
            try:
                delivery = frames.unpack_event(function, entry_id, fields)
            except frames.MalformedEvent as error:
                log.error("event.malformed", function=function, entry=entry_id, reason=str(error))
                self._held.discard(key)
                self.malformed += 1
                self._quarantine(function, entry_id, fields)
                continue
            delivery.is_durable = True
            deliveries.append(delivery)
        self._taker.take(deliveries)

    def _quarantine(self, function: str, entry_id: bytes, fields: list[bytes]) -> None:
        """Keep junk aside, bounded and as it is, for whoever wants to know where it came from."""
        if self._out is None:
            return
        stream = keys.quarantine(function)
        self._out.send(pack((b"XADD", stream, b"MAXLEN", b"1000", b"*", *fields)), _ignored)
        self._commit(function, entry_id, ())

    async def prepare(self, out: Connection, function: str) -> None:
        await out.call("SADD", keys.durable_epoch_functions(self._node, self._epoch), function)
        await ensure_group(out, keys.durable_stream(function))

    async def leave(self, out: Connection, function: str) -> bool:
        # The flag first: who publishes from here on rings. Then the look, which sees the others.
        await self._set_flag(function, False)
        if await self._has_unread(out, function, tidy=True):
            await self._set_flag(function, True)
            return True
        await out.call("SREM", keys.BACKLOG, function)
        if await out.call("EXISTS", keys.durable_stream(function)):
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
        await load(out, COMMIT, UNREAD)
        served = await self._succeed(out)
        async with anyio.create_task_group() as tasks:
            streams = Streams(self._address, out, self, self._consumer, tasks)
            self._out, self._streams = out, streams
            try:
                for number, command in list(self._uncommitted.items()):
                    replies = 2 if command.startswith(b"*3\r\n$4\r\nSADD") else 1
                    self._send_commit(out, number, replies)
                # Their flags may still say that somebody was told: nobody would ring for them.
                for function in served:
                    self.rung(function)
                tasks.start_soon(self._sweep, out)
                await out.lost
            finally:
                self._out = self._streams = None
                streams.close()
                tasks.cancel_scope.cancel()

    async def _sweep(self, out: Connection) -> None:
        """Find the functions whose ring was lost. At the start of an epoch, all that have work."""
        while True:
            for name in await out.call("SMEMBERS", keys.BACKLOG):
                function = name.decode()
                if await self._has_unread(out, function):
                    self.rung(function)
            await anyio.sleep(SWEEP_S)

    async def _succeed(self, out: Connection) -> set[str]:
        """Take over what this node's dead epochs were running: it is run again.

        Returns the functions that they, or this epoch before its connection was lost, served.
        """
        await out.call("SADD", keys.durable_epochs(self._node), self._epoch)
        own = await out.call("SMEMBERS", keys.durable_epoch_functions(self._node, self._epoch))
        served = {function.decode() for function in own}
        for name in await out.call("SMEMBERS", keys.durable_epochs(self._node)):
            epoch = name.decode()
            if epoch == self._epoch:
                continue
            names = await out.call("SMEMBERS", keys.durable_epoch_functions(self._node, epoch))
            for function in names:
                await self._claim(out, function.decode(), f"{self._node}:{epoch}")
                served.add(function.decode())
            await out.call("DEL", keys.durable_epoch_functions(self._node, epoch))
            await out.call("SREM", keys.durable_epochs(self._node), epoch)
        return served

    async def _claim(self, out: Connection, function: str, consumer: str) -> None:
        stream = keys.durable_stream(function)
        try:
            await self.prepare(out, function)
            while True:
                pending = await out.call("XPENDING", stream, keys.GROUP, "-", "+", 500, consumer)
                if not pending:
                    break
                ids = [entry_id for entry_id, *_ in pending]
                claimed = await out.call("XCLAIM", stream, keys.GROUP, self._consumer, 0, *ids)
                log.info("events.reclaimed", function=function, count=len(ids))
                self.taken(function, claimed)
            # Only now: removing a consumer destroys what is pending for it.
            await out.call("XGROUP", "DELCONSUMER", stream, keys.GROUP, consumer)
        except hiredis.HiredisError as error:
            log.warning("durable.refused", function=function, error=str(error))

    async def drain(self) -> None:
        """Take nothing more, and see every commit through. The rest is the successor's."""
        self._is_draining = True
        if self._streams is not None:
            await self._streams.stop()

    async def committed(self) -> None:
        """Returns when every commit so far is on disk."""
        await self._all_committed.wait()


def _ignored(reply: Any) -> None:
    if isinstance(reply, Exception) and not isinstance(reply, ConnectionError):
        log.warning("durable.refused", error=str(reply))
