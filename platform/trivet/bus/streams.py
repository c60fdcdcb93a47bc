"""Streams: one blocked read on the stream of each function that is served, on either lane.

A stream rests (no room, or nobody asked), is read (blocked until an event comes), or is being
left. What is read never exceeds the room that the lane gives at that moment.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any, Protocol

import anyio
import anyio.abc
import hiredis
import structlog

from trivet.bus import keys
from trivet.bus.resp import Address, Connection, connect, pack

log = structlog.get_logger()

# One blocked connection each. Beyond it the function served longest is left to the bell.
MOST_STREAMS = 64


class Lane(Protocol):
    """What tells the two lanes apart."""

    def stream(self, function: str) -> str:
        """Key of the function's stream."""
        ...

    def room(self, function: str) -> int:
        """How many more events of `function` to take now."""
        ...

    def taken(self, function: str, entries: list[Any]) -> None:
        """Entries were read: they are this consumer's now."""
        ...

    async def prepare(self, out: Connection, function: str) -> None:
        """Before the first read: note the function in the epoch, and make the group."""
        ...

    async def leave(self, out: Connection, function: str) -> bool:
        """Give the function up, unless an event waits unread: then true, and it is served on."""
        ...


class State(Enum):
    RESTING = "resting"
    READING = "reading"
    LEAVING = "leaving"


class _Stream:
    def __init__(self, function: str, connection: Connection, client_id: int) -> None:
        self.function = function
        self.connection = connection
        self.client_id = client_id
        self.state = State.RESTING
        self.is_to_be_left = False
        self.is_rung = False  # while it was being left


class Streams:
    """The reads of one consumer. Lives as long as its connection `out` to the server."""

    def __init__(
        self,
        address: Address,
        out: Connection,
        lane: Lane,
        consumer: str,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._address = address
        self._out = out
        self._lane = lane
        self._consumer = consumer
        self._tasks = tasks
        self._streams: dict[str, _Stream] = {}
        self._opening: set[str] = set()
        self._queued: dict[str, None] = {}  # functions that wait for another to be left
        self._is_stopping = False
        self._stopped: asyncio.Event = asyncio.Event()

    def __repr__(self) -> str:
        states = [stream.state for stream in self._streams.values()]
        return f"<Streams {len(states)} served, {states.count(State.READING)} reading>"

    def serve(self, function: str) -> None:
        """Begin to read `function`, or go on."""
        stream = self._streams.get(function)
        if stream is not None:
            if stream.state is State.LEAVING:
                stream.is_rung = True
            self.read(function)
        elif function not in self._opening and not self._is_stopping:
            self._queued[function] = None
            self._open_queued()

    def _open_queued(self) -> None:
        """Open what waits, as far as there are connections; ask the least recent to leave."""
        while self._queued and len(self._streams) + len(self._opening) < MOST_STREAMS:
            function = next(iter(self._queued))
            del self._queued[function]
            self._opening.add(function)
            self._tasks.start_soon(self._open, function)
        for function in self.served()[: len(self._queued)]:
            self.let_go(function)

    async def _open(self, function: str) -> None:
        try:
            await self._lane.prepare(self._out, function)
            connection = await connect(self._address)
            try:
                client_id = await connection.call("CLIENT", "ID")
            except BaseException:
                connection.close()
                raise
        except (OSError, hiredis.HiredisError) as error:
            # The server went, or is out of memory. Whoever published rings again.
            log.warning("stream.refused", function=function, error=str(error))
            return
        finally:
            self._opening.discard(function)
            self._open_queued()
        self._streams[function] = _Stream(function, connection, client_id)
        if self._out.is_open:
            self.read(function)
        else:
            self._drop(self._streams[function])

    def read(self, function: str) -> None:
        """Take more of `function` if there is room and it rests."""
        stream = self._streams.get(function)
        if stream is None or stream.state is not State.RESTING or self._is_stopping:
            return
        room = self._lane.room(function)
        if room <= 0:
            return
        stream.state = State.READING
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
                self._lane.stream(function),
                b">",
            )
        )
        stream.connection.send(command, lambda reply: self._on_read(stream, reply))

    def _on_read(self, stream: _Stream, reply: Any) -> None:
        stream.state = State.RESTING
        if isinstance(reply, Exception):
            # NOGROUP: the server came back empty. The next ring opens the stream anew.
            self._drop(stream)
        elif reply:
            stream.is_to_be_left = False
            if stream.function in self._streams:  # the one read last is left last
                self._streams[stream.function] = self._streams.pop(stream.function)
            self._lane.taken(stream.function, reply[0][1])
            self.read(stream.function)
        elif stream.is_to_be_left:
            self._leave(stream)
        else:
            self.read(stream.function)  # unblocked by a word that came too late
        self._check_stopped()

    # ------------------------------------------------------------------ leaving

    def served(self) -> list[str]:
        return list(self._streams)

    def let_go(self, function: str) -> None:
        """Leave `function` to the bell, as soon as its read has ended."""
        stream = self._streams.get(function)
        if stream is None or stream.is_to_be_left:
            return
        if stream.state is State.RESTING:
            self._leave(stream)
        elif stream.state is State.READING:
            stream.is_to_be_left = True
            self._unblock(stream)

    def _unblock(self, stream: _Stream) -> None:
        def on_unblocked(reply: Any) -> None:
            # The word overtook the read, which goes another way: say it again.
            if reply == 0 and stream.state is State.READING and self._out.is_open:
                self._unblock(stream)

        self._out.send(pack((b"CLIENT", b"UNBLOCK", str(stream.client_id))), on_unblocked)

    def _leave(self, stream: _Stream) -> None:
        stream.is_to_be_left = False
        if not self._is_stopping:
            stream.state = State.LEAVING
            self._tasks.start_soon(self._finish_leaving, stream)

    async def _finish_leaving(self, stream: _Stream) -> None:
        try:
            goes_on = await self._lane.leave(self._out, stream.function)
        except (OSError, hiredis.HiredisError) as error:
            log.warning("stream.refused", function=stream.function, error=str(error))
            goes_on = False
        stream.state = State.RESTING
        if goes_on:
            self.read(stream.function)
            return
        self._drop(stream)
        if stream.is_rung:
            self.serve(stream.function)

    def _drop(self, stream: _Stream) -> None:
        if self._streams.get(stream.function) is stream:
            del self._streams[stream.function]
        stream.connection.close()
        if self._queued and self._out.is_open and not self._is_stopping:
            self._open_queued()

    async def stop(self) -> None:
        """Take nothing more. Returns when no read is under way that could still bring events."""
        self._is_stopping = True
        for stream in self._streams.values():
            if stream.state is State.READING:
                self._unblock(stream)
        self._check_stopped()
        await self._stopped.wait()

    def _check_stopped(self) -> None:
        if self._is_stopping:
            reading = [s for s in self._streams.values() if s.state is State.READING]
            if not reading:
                self._stopped.set()

    def close(self) -> None:
        for stream in list(self._streams.values()):
            self._drop(stream)


async def ensure_group(out: Connection, stream: str) -> None:
    """Make the stream and its group, if they are not there."""
    try:
        await out.call("XGROUP", "CREATE", stream, keys.GROUP, "0", "MKSTREAM")
    except hiredis.HiredisError as error:
        if "BUSYGROUP" not in str(error):
            raise
