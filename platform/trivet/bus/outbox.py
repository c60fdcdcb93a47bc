"""Outbox: tells destinations how asynchronous invocations ended, each of them once.

What is to be told was written down with the end itself. It is delivered under an idempotency key
and only then taken off, so that a crash in between repeats what the destination knows to ignore.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import anyio
import hiredis
import structlog

from trivet.bus import frames, keys
from trivet.bus.enqueue import ENQUEUE, LARGEST_PAYLOAD_BYTES, MOST_WAITING, ONCE_LIFETIME_S
from trivet.bus.resp import Connection
from trivet.bus.scripts import script
from trivet.core.arns import Place
from trivet.core.destinations import parse_destination
from trivet.core.invocations import Event
from trivet.core.lineage import extended

log = structlog.get_logger()

DELIVERED = script("delivered")
TELL_BUS = script("tell_bus")

MOST_AT_ONCE = 100
MOST_ON_A_BUS = 10_000
AGAIN_S = 5.0  # a destination that is full


class Outbox:
    """Delivers over one connection to the durable server, which must know the three scripts."""

    def __init__(self, out: Connection, place: Place, rung: Callable[[str], None]) -> None:
        """`rung(function)` hears that a destination has a new event."""
        self._out = out
        self._place = place
        self._rung = rung
        self._wanted: set[str] = set()
        self._has_wanted = anyio.Event()
        self.undelivered = 0  # since the connection was made

    def __repr__(self) -> str:
        return f"<Outbox {len(self._wanted)} functions to look at>"

    def noted(self, function: str) -> None:
        """`function` may have something in its outbox."""
        self._wanted.add(function)
        self._has_wanted.set()

    async def look(self) -> None:
        """Find what others left behind."""
        for name in await self._out.call("SMEMBERS", keys.OUTBOXES):
            self.noted(name.decode())

    async def run(self) -> None:
        """Deliver, for as long as the connection lives."""
        while True:
            await self._has_wanted.wait()
            self._has_wanted = anyio.Event()
            wanted, self._wanted = self._wanted, set()
            for function in wanted:
                if not await self._empty(function):
                    self._wanted.add(function)
            if self._wanted:
                with anyio.move_on_after(AGAIN_S):
                    await self._has_wanted.wait()
                self._has_wanted.set()

    async def _empty(self, function: str) -> bool:
        """Deliver all that `function` has. False when some of it must wait."""
        outbox, after = keys.outbox(function), "-"
        is_empty = True
        while True:
            entries = await self._out.call("XRANGE", outbox, after, "+", "COUNT", MOST_AT_ONCE)
            for entry_id, fields in entries:
                after = f"({entry_id.decode()}"
                told = await self._deliver(function, fields)
                if told is None:
                    is_empty = False
                    continue
                names = (outbox, keys.totals(function))
                word = "delivered" if told else "undelivered"
                await self._out.call("EVALSHA", DELIVERED.sha, 2, *names, entry_id, word)
            if len(entries) < MOST_AT_ONCE:
                break
        if is_empty:
            await self._out.call("SREM", keys.OUTBOXES, function)
            if await self._out.call("XLEN", outbox):
                await self._out.call("SADD", keys.OUTBOXES, function)
                return False
        return is_empty

    async def _deliver(self, function: str, fields: list[bytes]) -> bool | None:
        """True: told. False: can never be told. None: not now."""
        said = dict(zip(fields[::2], fields[1::2], strict=False))
        try:
            target, origin, body = said[b"t"].decode(), said[b"o"].decode(), said[b"b"]
            destination = parse_destination(target, self._place)
        except (KeyError, ValueError) as error:
            log.error("outbox.malformed", function=function, error=repr(error))
            return False
        once = keys.told_once(function, origin)
        try:
            if destination.kind == "bus":
                await self._tell_bus(destination.name, once, body)
                return True
            trace = extended(said.get(b"x", b"").decode(), destination.name)
            return await self._tell_function(destination.name, target, once, body, trace)
        except hiredis.HiredisError as error:
            log.warning("outbox.refused", function=function, target=target, error=str(error))
            return None  # out of memory, most likely: the end itself is kept

    async def _tell_bus(self, bus: str, once: str, body: bytes) -> None:
        names = (keys.bus_entries(bus), keys.bus_once(bus, once))
        limits = (ONCE_LIFETIME_S, MOST_ON_A_BUS)
        await self._out.call("EVALSHA", TELL_BUS.sha, 2, *names, body, *limits)

    async def _tell_function(
        self, name: str, arn: str, once: str, body: bytes, trace: str
    ) -> bool | None:
        exists = await self._out.call("EXISTS", keys.function_record(name))
        if not exists or len(body) > LARGEST_PAYLOAD_BYTES:
            log.warning(
                "destination.undelivered", target=name, exists=bool(exists), bytes=len(body)
            )
            self.undelivered += 1
            return False
        event = Event(
            id=str(uuid.uuid5(uuid.NAMESPACE_OID, once)),
            function=name,
            source="destination",
            payload=body,
            invoked_arn=arn,
            trace_id=trace,
        )
        packed = frames.pack_event(
            event, call=0, reply_to="", version_key="", invoked_arn=arn, expires_ms=0
        )
        names = (keys.durable_stream(name), keys.totals(name), keys.accepted_once(name, once))
        limits = (ONCE_LIFETIME_S, MOST_WAITING)
        await self._out.call("SADD", keys.LEDGERS, name)
        answer: Any = await self._out.call("EVALSHA", ENQUEUE.sha, 3, *names, packed, *limits)
        if answer < 0:
            return None
        await self._out.call("SADD", keys.BACKLOG, name)
        self._rung(name)
        return True
