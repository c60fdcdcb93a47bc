"""Consume: the supervisor's half of the express lane.

It listens to the bell, and reads the streams of the functions it serves. Acknowledgements and
replies leave in batches, one write for each turn of the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import anyio
import anyio.abc
import hiredis
import structlog

from trivet.bus import frames, keys
from trivet.bus.resp import RECONNECT_S, Address, Connection, connected, pack
from trivet.bus.scripts import load, script
from trivet.bus.streams import Streams

log = structlog.get_logger()

LEAVE = script("leave")

REPLY_ENTRY_BYTES = 1_000_000  # frames of one turn are split over entries of about this size


class Taker(Protocol):
    """Who runs the events: the dispatcher."""

    def room(self, function: str) -> int:
        """How many more events of `function` to take now."""
        ...

    def take(self, deliveries: list[frames.Delivery]) -> None: ...

    def is_idle(self, function: str) -> bool:
        """Whether nothing of `function` is left here: it may be left to the bell."""
        ...

    def changed(self, function: str) -> None:
        """The function was updated or deleted."""
        ...


class Intake:
    """Reads events for one supervisor epoch, and answers them. Implements `streams.Lane`."""

    def __init__(self, address: Address, *, node: str, epoch: str, taker: Taker) -> None:
        self._address = address
        self._node = node
        self._epoch = epoch
        self._consumer = f"{node}:{epoch}"
        self._taker = taker
        self._loop = asyncio.get_running_loop()
        self._out: Connection | None = None
        self._streams: Streams | None = None
        self._is_draining = False
        # What this turn of the loop answered: one write carries it all.
        self._answered: dict[str, list[bytes]] = {}
        self._frames: dict[str, list[bytes]] = {}
        self._is_flushing = False
        # Entries in hand. What is pending for this epoch beside them was lost with a connection.
        self._held: set[bytes] = set()
        self.malformed = 0  # entries since the start
        # Who else wants to hear the bell: the durable lane has its events rung here too.
        self.on_durable_ring: Callable[[str], None] = lambda function: None

    @property
    def batches(self) -> int:
        """Writes that carried answers, since the lane was last connected."""
        return self._out.writes if self._out else 0

    def __repr__(self) -> str:
        return f"<Intake {self._consumer} {self._streams or 'away'}>"

    # ------------------------------------------------------------------ answering

    def answer(self, delivery: frames.Delivery, reply: bytes) -> None:
        """Send reply frames to the caller and take the event off the stream, with this turn."""
        self._held.discard(delivery.entry_id)
        self._frames.setdefault(delivery.reply_to, []).append(reply)
        self._answered.setdefault(delivery.function, []).append(delivery.entry_id)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        out = self._out
        if out is None:
            return  # kept for the next connection: the server may be there still, and the callers
        answered, self._answered = self._answered, {}
        waiting, self._frames = self._frames, {}
        for gateway, parts in waiting.items():
            stream = keys.replies(gateway)
            for batch in _batches(parts):
                out.send(pack((b"XADD", stream, b"NOMKSTREAM", b"*", b"f", batch)), _checked)
        for function, entry_ids in answered.items():
            stream = keys.express_stream(function)
            out.send(pack((b"XACK", stream, keys.GROUP, *entry_ids)), _checked)
            out.send(pack((b"XDEL", stream, *entry_ids)), _checked)
        out.flush()

    # ------------------------------------------------------------------ streams.Lane

    def stream(self, function: str) -> str:
        return keys.express_stream(function)

    def room(self, function: str) -> int:
        return self._taker.room(function)

    def taken(self, function: str, entries: list[Any]) -> None:
        deliveries = []
        for entry_id, fields in entries:
            try:
                deliveries.append(frames.unpack_event(function, entry_id, fields))
            except frames.MalformedEvent as error:
                # Nobody to answer: no publisher of ours wrote it. It must not be read again.
                self.malformed += 1
                log.error("event.malformed", function=function, entry=entry_id, reason=str(error))
                self._answered.setdefault(function, []).append(entry_id)
                self._flush_soon()
        self._held.update(delivery.entry_id for delivery in deliveries)
        self._taker.take(deliveries)

    @property
    def noted(self) -> str:
        return keys.epoch_functions(self._node, self._epoch)

    async def began(self, out: Connection, function: str) -> None:
        pass

    async def leave(self, out: Connection, function: str) -> bool:
        names = (keys.express_stream(function), keys.rung_flag(function))
        return bool(await out.call("EVALSHA", LEAVE.sha, 2, *names, keys.GROUP))

    # ------------------------------------------------------------------ which functions

    def read(self, function: str) -> None:
        """Take more of `function`, if it is served and there is room."""
        if self._streams is not None:
            self._streams.read(function)

    def leave_idle(self) -> None:
        """Let go of the streams of functions that have nothing here any more."""
        if self._streams is not None:
            for function in self._streams.served():
                if self._taker.is_idle(function):
                    self._streams.let_go(function)

    def rung(self, function: str) -> None:
        """`function` has work that nobody reads: begin to serve it."""
        if self._streams is not None and not self._is_draining:
            self._streams.serve(function)

    async def set_durable_flag(self, function: str, is_rung: bool) -> None:
        """Raise or clear the durable lane's flag, which lies on this server, off the disk."""
        if self._out is not None:
            flag = keys.durable_rung_flag(function)
            await self._out.call(*(("SET", flag, "1") if is_rung else ("DEL", flag)))

    # ------------------------------------------------------------------ what keeps it going

    async def run(self, *, started: Callable[[], None]) -> None:
        """Keep connected to the express server. `started` is called at each connection."""
        while True:
            try:
                async with connected(self._address) as out, connected(self._address) as bell:
                    await self._serve(out, bell, started)
            except OSError:
                await anyio.sleep(RECONNECT_S)
            except hiredis.HiredisError as error:
                # LOADING, NOAUTH and their like: say it, and try again.
                log.warning("express.refused", error=str(error))
                await anyio.sleep(10 * RECONNECT_S)

    async def _serve(self, out: Connection, bell: Connection, started: Callable[[], None]) -> None:
        await load(out, LEAVE)
        rung = await self._succeed(out)
        last = await _newest(bell)
        # Each is useless without the other: who takes events must be able to answer.
        out.lost.add_done_callback(lambda _: bell.close())
        async with anyio.create_task_group() as tasks:
            streams = Streams(self._address, out, self, self._consumer, tasks)
            self._out, self._streams = out, streams
            try:
                self._flush()
                started()
                for function in rung:
                    self.rung(function)
                await self._listen(bell, last)
            except ConnectionError:
                log.warning("express.lost")
            finally:
                self._out = self._streams = None
                streams.close()
                tasks.cancel_scope.cancel()

    async def _listen(self, bell: Connection, last: bytes) -> None:
        """Until the connection is lost, which is raised."""
        ended: asyncio.Future[None] = self._loop.create_future()

        def on_rung(reply: Any) -> None:
            # In this very turn: what is read after a change was told of must find it known.
            nonlocal last
            if isinstance(reply, Exception):
                if not ended.done():
                    ended.set_exception(reply)
                return
            for entry_id, fields in reply[0][1] if reply else ():
                last = entry_id
                self._heard(entry_id, fields)
            listen()

        def listen() -> None:
            command = (b"XREAD", b"BLOCK", b"5000", b"STREAMS", keys.BELL, last)
            bell.send(pack(command), on_rung)

        listen()
        await ended

    def _heard(self, entry_id: bytes, fields: list[bytes]) -> None:
        function = fields[1].decode(errors="replace")
        if not function.isprintable():
            log.warning("bell.malformed", entry=entry_id)
        elif fields[0] == keys.RING:
            self.rung(function)
        elif fields[0] == keys.RING_DURABLE:
            self.on_durable_ring(function)
        elif fields[0] == keys.CHANGED:
            self._taker.changed(function)

    async def _succeed(self, out: Connection) -> set[str]:
        """Clear up after this node's dead epochs: fail what they held, ring what they served."""
        await out.call("SADD", keys.epochs(self._node), self._epoch)
        rung = set()
        for name in await out.call("SMEMBERS", keys.epochs(self._node)):
            epoch = name.decode()
            if epoch == self._epoch:
                continue
            functions = await out.call("SMEMBERS", keys.epoch_functions(self._node, epoch))
            for function in [f.decode() for f in functions]:
                await _fail_pending(out, function, f"{self._node}:{epoch}")
                rung.add(function)
            await out.call("DEL", keys.epoch_functions(self._node, epoch))
            await out.call("SREM", keys.epochs(self._node), epoch)
        # After a lost connection this epoch's own streams are read again too.
        for name in await out.call("SMEMBERS", keys.epoch_functions(self._node, self._epoch)):
            function = name.decode()
            held = self._held.union(self._answered.get(function, ()))
            await _fail_pending(out, function, self._consumer, held)
            rung.add(function)
        return rung

    async def drain(self) -> None:
        """Stop taking events. What is unread, and this epoch, are the successor's."""
        self._is_draining = True
        if self._streams is not None:
            await self._streams.stop()


async def _fail_pending(
    out: Connection, function: str, consumer: str, held: frozenset[bytes] | set[bytes] = frozenset()
) -> None:
    """Answer, with a failure, what was taken and never run: it never runs a second time.

    `held` is still being run.
    """
    stream = keys.express_stream(function)
    try:
        start = "-"
        while True:
            pending = await out.call("XPENDING", stream, keys.GROUP, start, "+", 500, consumer)
            for entry_id, *_ in pending:
                start = f"({entry_id.decode()}"
                if entry_id in held:
                    continue
                for _, fields in await out.call("XRANGE", stream, entry_id, entry_id):
                    await _fail_entry(out, function, entry_id, fields)
                await out.call("XACK", stream, keys.GROUP, entry_id)
                await out.call("XDEL", stream, entry_id)
            if not pending:
                break
        if not held:
            await out.call("XGROUP", "DELCONSUMER", stream, keys.GROUP, consumer)
    except hiredis.HiredisError as error:
        # NOGROUP and "no such key": the server came back empty, so nothing is pending.
        log.info("epoch.nothing_pending", function=function, reason=str(error))


async def _fail_entry(out: Connection, function: str, entry_id: bytes, fields: list[bytes]) -> None:
    try:
        delivery = frames.unpack_event(function, entry_id, fields)
    except frames.MalformedEvent:
        return
    message = "The supervisor that ran this invocation ended."
    failed = frames.pack_failure(delivery.call, "ServiceException", 500, message)
    await out.call("XADD", keys.replies(delivery.reply_to), "NOMKSTREAM", "*", "f", failed)


async def _newest(bell: Connection) -> bytes:
    """Where to begin listening: rings before this are repeated by their gateways."""
    entries = await bell.call("XREVRANGE", keys.BELL, "+", "-", "COUNT", 1)
    newest: bytes = entries[0][0] if entries else b"0"
    return newest


def _batches(parts: list[bytes]) -> list[bytes]:
    whole = b"".join(parts)
    if len(whole) <= REPLY_ENTRY_BYTES or len(parts) == 1:
        return [whole]
    batches: list[bytes] = []
    batch: list[bytes] = []
    size = 0
    for part in parts:
        if batch and size + len(part) > REPLY_ENTRY_BYTES:
            batches.append(b"".join(batch))
            batch, size = [], 0
        batch.append(part)
        size += len(part)
    batches.append(b"".join(batch))
    return batches


def _checked(reply: Any) -> None:
    if isinstance(reply, Exception) and not isinstance(reply, ConnectionError):
        log.warning("express.refused", error=str(reply))
