"""The limit's equal form: the least Python that runs events of a stream as the durable lane must.

One process reads, forked workers run one event at a time, each over a socket pair. Nothing is read
ahead: a worker has a connection, over which the acknowledgement of the event that has ended and
the next read leave in one write, and share the server's flush. No attempts, no ledger, no bill, no
timeouts, no fences.

    python -m MODULE WORKERS
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import struct
import sys
import time
from functools import partial
from typing import Any, cast

import hiredis
import uvloop
from tests.bench.queues.probe import started

STREAM, GROUP = b"events", b"workers"
LENGTH = struct.Struct("<I")
CHUNK_BYTES = 1 << 18


def pack(*parts: bytes) -> bytes:
    packed: bytes = hiredis.pack_command(parts)  # type: ignore[arg-type]  # its stub names one item
    return packed


def server() -> tuple[str, bytes]:
    """The path of its socket, and the command that chooses the database."""
    path, database = os.environ["BENCH_QUEUE"].split()
    return path, pack(b"SELECT", database.encode())


# ------------------------------------------------------------------------ publishing

_publisher: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []


async def ready() -> None:
    path, select = server()
    _publisher.append(await asyncio.open_unix_connection(path))
    await _answered(select + pack(b"XGROUP", b"CREATE", STREAM, GROUP, b"0", b"MKSTREAM"), 2)


async def publish() -> None:
    """Does not wait for its answer, which a single connection could not give to the right one."""
    _, writer = _publisher[0]
    writer.write(_added())


async def publish_many(count: int) -> None:
    await _answered(b"".join(_added() for _ in range(count)), 2 * count)


def _added() -> bytes:
    return pack(b"XADD", STREAM, b"*", b"e", json.dumps({"published": time.time()}).encode())


async def _answered(commands: bytes, lines: int) -> None:
    """An answer has one line, but an id has two."""
    reader, writer = _publisher[0]
    writer.write(commands)
    for _ in range(lines):
        await reader.readline()


# --------------------------------------------------------------------------- running


def work(channel: socket.socket) -> None:
    """The worker's whole life: an event, its answer, and so on."""
    gc.freeze()
    data = b""
    while True:
        while len(data) < 4 or len(data) < 4 + LENGTH.unpack_from(data)[0]:
            more = channel.recv(CHUNK_BYTES)
            if not more:
                os._exit(0)
            data += more
        end = 4 + LENGTH.unpack_from(data)[0]
        started(json.loads(data[4:end])["published"])
        data = data[end:]
        answer = json.dumps(None).encode()
        channel.sendall(LENGTH.pack(len(answer)) + answer)


class Worker(asyncio.Protocol):
    """A worker with its connection to the server."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._reader = hiredis.Reader()
        consumer = b"consumer-%d" % channel.fileno()
        self._read = pack(
            *(b"XREADGROUP", b"GROUP", GROUP, consumer, b"COUNT", b"1", b"BLOCK", b"0"),
            *(b"STREAMS", STREAM, b">"),
        )
        self._entry = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, since uvloop's transports derive from nothing of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(server()[1] + self._read)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, Exception):
                raise reply
            if isinstance(reply, list):
                self._give(reply)

    def connection_lost(self, error: Exception | None) -> None:
        os._exit(0)

    def _give(self, reply: Any) -> None:
        self._entry, fields = reply[0][1][0]
        event = fields[1]
        self._channel.send(LENGTH.pack(len(event)) + event)

    def answered(self) -> None:
        data = self._channel.recv(CHUNK_BYTES)
        assert len(data) == 4 + LENGTH.unpack_from(data)[0], data
        ended = pack(b"XACK", STREAM, GROUP, self._entry) + pack(b"XDEL", STREAM, self._entry)
        self._transport.write(ended + self._read)


def _given(worker: Worker) -> Worker:
    return worker


async def supervise(channels: list[socket.socket]) -> None:
    loop = asyncio.get_running_loop()
    for channel in channels:
        worker = Worker(channel)
        loop.add_reader(channel.fileno(), worker.answered)
        await loop.create_unix_connection(partial(_given, worker), server()[0])
    gc.freeze()
    await loop.create_future()


def main(workers: int) -> None:
    channels = []
    for _ in range(workers):
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            work(theirs)
        theirs.close()
        ours.setblocking(False)
        channels.append(ours)
    uvloop.run(supervise(channels))


if __name__ == "__main__":
    main(int(sys.argv[1]))
