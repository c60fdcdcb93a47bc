"""Consume: the supervisor's half of the express lane.

It listens to the bell, and keeps one blocked read on the stream of each function it serves. What
it reads never exceeds the room it was given; acknowledgements and replies leave in batches.
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
from trivet.bus.resp import RECONNECT_S, Address, Connection, connect, connected, pack
from trivet.bus.scripts import load, script

log = structlog.get_logger()

LEAVE = script("leave")

# One blocked connection each. Beyond it the function read longest ago is left to the bell.
MOST_STREAMS = 64
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


class _Stream:
    """The blocked read on one function's stream."""

    def __init__(self, function: str, connection: Connection, client_id: int) -> None:
        self.function = function
        self.connection = connection
        self.client_id = client_id
        self.is_reading = False
        self.is_unblocking = False


class Intake:
    """Reads events for one supervisor epoch, and answers them."""

    def __init__(self, address: Address, *, node: str, epoch: str, taker: Taker) -> None:
        self._address = address
        self._node = node
        self._epoch = epoch
        self._consumer = f"{node}:{epoch}"
        self._taker = taker
        self._loop = asyncio.get_running_loop()
        self._out: Connection | None = None
        self._streams: dict[str, _Stream] = {}
        self._opening: set[str] = set()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._is_draining = False
        # What this turn of the loop answered: one write carries it all.
        self._answered: dict[str, list[bytes]] = {}
        self._frames: dict[str, list[bytes]] = {}
        self._is_flushing = False

    def __repr__(self) -> str:
        reading = sum(s.is_reading for s in self._streams.values())
        return f"<Intake {len(self._streams)} streams, {reading} reading>"

    # ------------------------------------------------------------------ answering

    def answer(self, delivery: frames.Delivery, reply: bytes) -> None:
        """Send reply frames to the caller and take the event off the stream, with this turn."""
        self._frames.setdefault(delivery.reply_to, []).append(reply)
        self._answered.setdefault(delivery.function, []).append(delivery.entry_id)
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        answered, self._answered = self._answered, {}
        waiting, self._frames = self._frames, {}
        out = self._out
        if out is None:
            return  # the server is gone, and the gateways have failed these calls already
        for gateway, parts in waiting.items():
            stream = keys.replies(gateway)
            for batch in _batches(parts):
                out.send(pack((b"XADD", stream, b"NOMKSTREAM", b"*", b"f", batch)), _checked)
        for function, entry_ids in answered.items():
            stream = keys.express_stream(function)
            out.send(pack((b"XACK", stream, keys.GROUP, *entry_ids)), _checked)
            out.send(pack((b"XDEL", stream, *entry_ids)), _checked)

    # ------------------------------------------------------------------ reading

    def read(self, function: str) -> None:
        """Take more of `function` if there is room and no read is under way."""
        stream = self._streams.get(function)
        if stream is None or stream.is_reading or self._is_draining:
            return
        room = self._taker.room(function)
        if room <= 0:
            return
        stream.is_reading = True
        command = pack(
            (
                b"XREADGROUP",
                b"GROUP",
                keys.GROUP,
                self._consumer,
                b"COUNT",
                str(room),
                b"BLOCK",
                b"0",
                b"STREAMS",
                keys.express_stream(function),
                b">",
            )
        )
        stream.connection.send(command, lambda reply: self._on_read(stream, reply))

    def _on_read(self, stream: _Stream, reply: Any) -> None:
        stream.is_reading = False
        if isinstance(reply, Exception):
            # NOGROUP: the server came back empty. Drop the stream; the next ring opens it anew.
            self._drop(stream)
            return
        if reply:
            self._taker.take(self._unpacked(stream.function, reply[0][1]))
            self.read(stream.function)
        elif stream.is_unblocking:
            stream.is_unblocking = False
            self._leave(stream)

    def _unpacked(self, function: str, entries: list[Any]) -> list[frames.Delivery]:
        deliveries = []
        for entry_id, fields in entries:
            try:
                deliveries.append(frames.unpack_event(function, entry_id, fields))
            except frames.MalformedEvent as error:
                # Nobody to answer: no publisher of ours wrote it. It must not be read again.
                log.error("event.malformed", function=function, entry=entry_id, reason=str(error))
                self._answered.setdefault(function, []).append(entry_id)
                self._loop.call_soon(self._flush)
        return deliveries

    def leave_idle(self) -> None:
        """Let go of the streams of functions that have nothing here any more."""
        for function, stream in list(self._streams.items()):
            if not stream.is_unblocking and self._taker.is_idle(function):
                self._unblock(stream)

    def _unblock(self, stream: _Stream) -> None:
        if not stream.is_reading:
            self._leave(stream)
        elif self._out is not None:
            stream.is_unblocking = True
            self._out.send(pack((b"CLIENT", b"UNBLOCK", str(stream.client_id))), _checked)

    def _leave(self, stream: _Stream) -> None:
        if self._out is None:
            return
        function = stream.function

        def on_left(reply: Any) -> None:
            if reply == 0:
                self._drop(stream)
            else:
                self.read(function)

        command = pack(
            (
                b"EVALSHA",
                LEAVE.sha,
                b"2",
                keys.express_stream(function),
                keys.rung_flag(function),
                keys.GROUP,
            )
        )
        self._out.send(command, on_left)

    def _drop(self, stream: _Stream) -> None:
        if self._streams.get(stream.function) is stream:
            del self._streams[stream.function]
        stream.connection.close()

    def rung(self, function: str) -> None:
        """`function` has work that nobody reads: begin to serve it."""
        if function in self._streams:
            self.read(function)
        elif function not in self._opening and self._tasks is not None and not self._is_draining:
            self._opening.add(function)
            self._tasks.start_soon(self._open, function)

    async def _open(self, function: str) -> None:
        out = self._out
        try:
            if out is None:
                return
            if len(self._streams) >= MOST_STREAMS:
                self._unblock(next(iter(self._streams.values())))
            # Noted before the first read, so that a successor finds what this epoch left pending.
            await out.call("SADD", keys.epoch_functions(self._node, self._epoch), function)
            await _ensure_group(out, keys.express_stream(function))
            connection = await connect(self._address)
            client_id = await connection.call("CLIENT", "ID")
            self._streams[function] = _Stream(function, connection, client_id)
            self.read(function)
        except OSError:
            return  # the server went: the gateway rings again once it is back
        finally:
            self._opening.discard(function)

    # ------------------------------------------------------------------ what keeps it going

    async def run(self, *, started: Callable[[], None]) -> None:
        """Keep connected to the express server. `started` is called at each connection."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
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
        self._out = out
        try:
            started()
            for function in rung:
                self.rung(function)
            await self._listen(bell, last)
        finally:
            self._out = None
            for stream in list(self._streams.values()):
                self._drop(stream)

    async def _listen(self, bell: Connection, last: bytes) -> None:
        while True:
            reply = await bell.call("XREAD", "BLOCK", 5_000, "STREAMS", keys.BELL, last)
            for entry_id, fields in reply[0][1] if reply else ():
                last = entry_id
                if fields[0] == keys.RING:
                    self.rung(fields[1].decode())
                elif fields[0] == keys.CHANGED:
                    self._taker.changed(fields[1].decode())

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
            rung.add(name.decode())
        return rung

    async def drain(self) -> None:
        """Stop taking events, and give the functions back to whoever comes next."""
        self._is_draining = True
        for stream in list(self._streams.values()):
            if stream.is_reading:
                self._unblock(stream)
        if self._out is None:
            return
        try:
            await self._out.call("SREM", keys.epochs(self._node), self._epoch)
            for function in list(self._streams):
                await self._out.call("DEL", keys.rung_flag(function))
            await self._out.call("DEL", keys.epoch_functions(self._node, self._epoch))
        except ConnectionError:
            return


async def _fail_pending(out: Connection, function: str, consumer: str) -> None:
    """Answer, with a failure, what a dead supervisor had taken: it never runs a second time."""
    stream = keys.express_stream(function)
    try:
        while True:
            pending = await out.call("XPENDING", stream, keys.GROUP, "-", "+", 500, consumer)
            for entry_id, *_ in pending:
                for _, fields in await out.call("XRANGE", stream, entry_id, entry_id):
                    await _fail_entry(out, function, entry_id, fields)
                await out.call("XACK", stream, keys.GROUP, entry_id)
                await out.call("XDEL", stream, entry_id)
            if not pending:
                break
        await out.call("XGROUP", "DELCONSUMER", stream, keys.GROUP, consumer)
    except ConnectionError:
        raise
    except Exception as error:
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


async def _ensure_group(out: Connection, stream: str) -> None:
    try:
        await out.call("XGROUP", "CREATE", stream, keys.GROUP, "0", "MKSTREAM")
    except ConnectionError:
        raise
    except Exception as error:
        if "BUSYGROUP" not in str(error):
            raise


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
