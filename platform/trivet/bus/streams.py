"""Streams: one blocked read on the stream of each function that is served, on either lane.

A stream is opened by a first read that does not block, over the connection that all share: what
was rung for is in hand before the stream has a connection of its own. From then on it rests
(no room, or nobody asked), is read (blocked until an event comes), or is being left. While a
backlog flows, reads do not block: each leaves as soon as there is room, together with the commit
that made it. What is read never exceeds the room that the lane gives at that moment.
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
# Before a stream gets its connection, what its first read brought may start: that is waited for.
OPEN_AFTER_S = 0.002
# A blocked read that was filled this soon found a backlog.
FLOWS_WITHIN_S = 0.005


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

    @property
    def noted(self) -> str:
        """Key of the set of functions that this epoch reads, for whoever succeeds it."""
        ...

    async def began(self, out: Connection, function: str) -> None:
        """The first read is over, and no other is under way yet."""
        ...

    async def leave(self, out: Connection, function: str) -> bool:
        """Give the function up, unless an event waits unread: then true, and it is served on."""
        ...


class State(Enum):
    FIRST = "first"
    OPENING = "opening"
    RESTING = "resting"
    READING = "reading"
    LEAVING = "leaving"


class _Stream:
    def __init__(self, function: str) -> None:
        self.function = function
        self.connection: Connection | None = None  # while it is being opened
        self.client_id = 0
        self.state = State.FIRST
        self.reads = 0  # in flight
        self.asked = 0  # how many events they may bring
        self.is_blocked = False  # the only one in flight waits for an event
        self.is_flowing = False  # more events seem to be waiting than there was room for
        self.is_to_be_left = False
        self.is_rung = False  # while it was being left

    @property
    def is_open(self) -> bool:
        return self.state in (State.RESTING, State.READING)


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
        self._loop = asyncio.get_running_loop()
        self._streams: dict[str, _Stream] = {}
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
        elif not self._is_stopping:
            self._queued[function] = None
            self._open_queued()

    def _open_queued(self) -> None:
        """Open what waits, as far as there are connections; ask the least recent to leave."""
        while self._queued and len(self._streams) < MOST_STREAMS:
            function = next(iter(self._queued))
            del self._queued[function]
            stream = self._streams[function] = _Stream(function)
            self._tasks.start_soon(self._open, stream)
        for function in self.served()[: len(self._queued)]:
            self.let_go(function)

    async def _open(self, stream: _Stream) -> None:
        try:
            try:
                await self._read_first(stream)
            finally:
                stream.state = State.OPENING
                self._check_stopped()
            await anyio.sleep(OPEN_AFTER_S)
            connection = await connect(self._address)
            try:
                client_id = await connection.call("CLIENT", "ID")
            except BaseException:
                connection.close()
                raise
        except (OSError, hiredis.HiredisError) as error:
            # The server went, or is out of memory. Whoever published rings again.
            log.warning("stream.refused", function=stream.function, error=str(error))
            self._drop(stream)
            return
        stream.connection, stream.client_id = connection, client_id
        if self._streams.get(stream.function) is not stream or not self._out.is_open:
            self._drop(stream)
            return
        stream.state = State.RESTING
        if stream.is_to_be_left:
            self._leave(stream)
        else:
            self.read(stream.function)

    async def _read_first(self, stream: _Stream) -> None:
        """Make ready, and take what waits. Raises OSError and hiredis.HiredisError.

        All in one write, which the server carries out in this order: what is read without a note
        would be lost to a successor.
        """
        lane, function = self._lane, stream.function
        commands: list[tuple[str | bytes, ...]] = [
            (b"SADD", lane.noted, function),
            _group_of(lane.stream(function)),
        ]
        room = 0 if self._is_stopping else lane.room(function)
        if room > 0:
            commands.append(self._reading(stream, room))
        replies = await self._out.call_all(*commands)
        failed = [reply for reply in replies if isinstance(reply, Exception) and _matters(reply)]
        if room > 0 and replies[-1] and not isinstance(replies[-1], Exception):
            stream.is_to_be_left = False
            lane.taken(function, replies[-1][0][1])
        if failed:
            raise failed[0]
        await lane.began(self._out, function)

    def lend(self, function: str) -> Connection | None:
        """The connection that reads `function` next, if nothing that is sent over it must wait
        behind a blocked read. What leaves with the next read shares its flush on the server."""
        stream = self._streams.get(function)
        if stream is None or not stream.is_open or stream.is_blocked:
            return None
        return stream.connection

    def read(self, function: str) -> None:
        """Take more of `function` if there is room, and nothing waits for it already."""
        stream = self._streams.get(function)
        if stream is None or not stream.is_open or stream.is_blocked or self._is_stopping:
            return
        if stream.reads and not stream.is_flowing:
            return  # what is in flight tells whether there is more
        room = self._lane.room(function) - stream.asked
        if room <= 0:
            return
        assert stream.connection is not None
        stream.state = State.READING
        stream.reads += 1
        stream.asked += room
        stream.is_blocked = not stream.is_flowing
        block = (b"BLOCK", b"0") if stream.is_blocked else ()
        command = pack(self._reading(stream, room, *block))
        asked_at = self._loop.time()
        stream.connection.send(command, lambda reply: self._on_read(stream, room, asked_at, reply))
        stream.connection.flush()  # nothing of this turn comes after it

    def _reading(self, stream: _Stream, room: int, *block: bytes) -> tuple[str | bytes, ...]:
        return (
            b"XREADGROUP",
            b"GROUP",
            keys.GROUP,
            self._consumer,
            b"COUNT",
            str(room),
            *block,
            b"STREAMS",
            self._lane.stream(stream.function),
            b">",
        )

    def _on_read(self, stream: _Stream, room: int, asked_at: float, reply: Any) -> None:
        was_blocked, stream.is_blocked = stream.is_blocked, False
        stream.asked -= room
        stream.reads -= 1
        if not stream.reads:
            stream.state = State.RESTING
        if isinstance(reply, Exception):
            # NOGROUP: the server came back empty. The next ring opens the stream anew.
            self._drop(stream)
        elif reply:
            stream.is_to_be_left = False
            entries = reply[0][1]
            stream.is_flowing = len(entries) == room and (
                not was_blocked or self._loop.time() - asked_at < FLOWS_WITHIN_S
            )
            if stream.function in self._streams:  # the one read last is left last
                self._streams[stream.function] = self._streams.pop(stream.function)
            self._lane.taken(stream.function, entries)
            self.read(stream.function)
        elif stream.is_to_be_left and not stream.reads:
            self._leave(stream)
        else:
            stream.is_flowing = False  # or unblocked by a word that came too late
            self.read(stream.function)
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
        else:
            stream.is_to_be_left = stream.state is not State.LEAVING
            if stream.state is State.READING:
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
        if stream.connection is not None:
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
            taking = (State.FIRST, State.READING)
            if not any(stream.state in taking for stream in self._streams.values()):
                self._stopped.set()

    def close(self) -> None:
        for stream in list(self._streams.values()):
            self._drop(stream)


async def ensure_group(out: Connection, stream: str) -> None:
    """Make the stream and its group, if they are not there."""
    try:
        await out.call(*_group_of(stream))
    except hiredis.HiredisError as error:
        if _matters(error):
            raise


def _group_of(stream: str) -> tuple[str | bytes, ...]:
    return (b"XGROUP", b"CREATE", stream, keys.GROUP, b"0", b"MKSTREAM")


def _matters(error: Exception) -> bool:
    """Not that the group is there already."""
    return "BUSYGROUP" not in str(error)
