"""Enqueue: the publishers' half of the durable lane. What it accepts is on disk.

Commands of one turn of the loop share a write and, on the server, a flush to disk: that is the
group commit. The bell and its flags lie on the express server, off the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import hiredis
import structlog

from trivet.bus import frames, keys
from trivet.bus.resp import RECONNECT_S, Address, Connection, connected, pack
from trivet.bus.scripts import load, script
from trivet.core.invocations import Event
from trivet.errors import FunctionNotFound, RequestTooLarge, Throttled, Unavailable

log = structlog.get_logger()

ENQUEUE = script("enqueue")

LARGEST_PAYLOAD_BYTES = 1_048_576  # AWS: 1 MB since October 2025
ONCE_LIFETIME_S = 86_400
MOST_WAITING = 1_000_000  # events of one function; what AWS does not bound, a disk does
MOST_IN_FLIGHT = 10_000  # publishes that have no answer yet: more would only pile up
# A server that cannot flush in this time is in trouble; the caller may try again.
ACCEPT_WITHIN_S = 5.0
RECONNECT_WAIT_S = 2.0


class DurablePublisher:
    """Implements `trivet.ports.Publisher`."""

    def __init__(
        self,
        durable: Address,
        express: Address,
        *,
        exists: Callable[[str], Awaitable[bool]],
        full: Callable[[], str] = lambda: "",
        most_waiting: int = MOST_WAITING,
    ) -> None:
        """`exists` tells whether a function is deployed; `full` why nothing is accepted now."""
        self._durable = durable
        self._express = express
        self._exists = exists
        self._full = full
        self._most_waiting = str(most_waiting)
        self._loop = asyncio.get_running_loop()
        self._out: Connection | None = None
        self._bell: Connection | None = None
        self._connected = asyncio.Event()
        self._in_flight = 0
        self._known: set[str] = set()  # functions that this connection noted in LEDGERS
        self.published = 0  # events since the start
        self.on_throttled: Callable[[str], None] = lambda function: None  # for whoever counts them

    def __repr__(self) -> str:
        state = "connected" if self._out else "away"
        return f"<DurablePublisher {self._in_flight} in flight, {state}>"

    @property
    def batches(self) -> int:
        """Writes that carried events, each a group commit, since the lane was last connected."""
        return self._out.writes if self._out else 0

    async def publish(self, event: Event, *, once: str = "") -> bool:
        if len(event.payload) > LARGEST_PAYLOAD_BYTES:
            raise RequestTooLarge(
                f"{len(event.payload)} byte payload is too large for the Event invocation type "
                f"(limit {LARGEST_PAYLOAD_BYTES} bytes)"
            )
        if not await self._exists(event.function):
            raise FunctionNotFound(f"Function not found: {event.function}")
        if reason := self._full():
            raise Unavailable(reason)
        if self._in_flight >= MOST_IN_FLIGHT:
            self.on_throttled(event.function)
            raise Throttled("Rate Exceeded.", Reason="CallerRateLimitExceeded")
        self._in_flight += 1
        try:
            answer = await self._enqueue(event, once)
        finally:
            self._in_flight -= 1
        if answer < 0:
            self.on_throttled(event.function)
            raise Throttled("Rate Exceeded.", Reason="FunctionInvocationRateLimitExceeded")
        self.published += 1
        self._ring(event.function)
        return answer > 0

    async def _enqueue(self, event: Event, once: str) -> int:
        out = self._out or await self._reconnected()
        if out.is_stalled:
            raise Unavailable("The durable lane does not answer; try again in a moment.")
        packed = frames.pack_event(
            event, call=0, reply_to="", version_key="", invoked_arn=event.invoked_arn, expires_ms=0
        )
        function = event.function
        answer: asyncio.Future[int] = self._loop.create_future()

        def on_reply(reply: Any) -> None:
            if answer.done():
                return
            if isinstance(reply, Exception):
                # OOM, MISCONF (the disk is full) and a lost server alike: nothing was promised.
                log.warning("durable.refused", error=str(reply))
                answer.set_exception(
                    Unavailable("The durable lane did not take the event; try again later.")
                )
            else:
                answer.set_result(reply)

        if function not in self._known:
            self._known.add(function)
            out.send(pack((b"SADD", keys.LEDGERS, function)), _ignored)
        out.send(
            pack(
                (
                    b"EVALSHA",
                    ENQUEUE.sha,
                    b"3",
                    keys.durable_stream(function),
                    keys.totals(function),
                    keys.accepted_once(function, once),
                    packed,
                    str(ONCE_LIFETIME_S) if once else b"0",
                    self._most_waiting,
                )
            ),
            on_reply,
        )
        # Behind the event, so that a sweep that finds the name finds the event too.
        out.send(pack((b"SADD", keys.BACKLOG, function)), _ignored)
        deadline = self._loop.call_later(ACCEPT_WITHIN_S, _give_up, answer)
        try:
            return await answer
        finally:
            deadline.cancel()

    async def _reconnected(self) -> Connection:
        try:
            with anyio.fail_after(RECONNECT_WAIT_S):
                await self._connected.wait()
        except TimeoutError:
            raise Unavailable("The durable lane is away; try again in a moment.") from None
        if self._out is None:  # and gone again
            raise Unavailable("The durable lane is away; try again in a moment.")
        return self._out

    def _ring(self, function: str) -> None:
        """Wake a supervisor, unless one was told already. A sweep repairs lost rings."""
        bell = self._bell
        if bell is None:
            return

        def on_flag(reply: Any) -> None:
            if reply is not None and not isinstance(reply, Exception):
                entry = (b"*", keys.RING_DURABLE, function)
                bell.send(pack((b"XADD", keys.BELL, b"MAXLEN", b"~", b"500", *entry)), _ignored)

        bell.send(pack((b"SET", keys.durable_rung_flag(function), b"1", b"NX")), on_flag)

    # ------------------------------------------------------------------ what keeps it going

    async def run(self) -> None:
        """Keep the connections to both servers, for as long as the process lives."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep, self._durable, self._use_durable)
            tasks.start_soon(self._keep, self._express, self._use_bell)

    async def _keep(self, address: Address, use: Callable[[Connection], Awaitable[None]]) -> None:
        while True:
            try:
                async with connected(address) as connection:
                    await use(connection)
            except OSError:
                await anyio.sleep(RECONNECT_S)
            except hiredis.HiredisError as error:
                log.warning("lane.refused", error=str(error))
                await anyio.sleep(10 * RECONNECT_S)

    async def _use_durable(self, connection: Connection) -> None:
        await load(connection, ENQUEUE)
        self._known.clear()
        self._out = connection
        self._connected.set()
        try:
            await connection.lost
        finally:
            self._connected.clear()
            self._out = None

    async def _use_bell(self, connection: Connection) -> None:
        self._bell = connection
        try:
            await connection.lost
        finally:
            self._bell = None


def _give_up(answer: asyncio.Future[int]) -> None:
    if not answer.done():
        message = "The durable lane did not answer in time; the event may have been accepted."
        answer.set_exception(Unavailable(message))


def _ignored(reply: Any) -> None:
    if isinstance(reply, Exception) and not isinstance(reply, ConnectionError):
        log.warning("lane.refused", error=str(reply))
