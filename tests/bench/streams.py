"""Streams: plain XADD on a server that flushes each write to disk, with as little around it."""

from __future__ import annotations

import selectors
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from trivet.bus.resp import pack
from trivet.launcher.embedded import server_program

STREAM = b"bench"
CHUNK_BYTES = 1 << 20


@contextmanager
def flushing_server() -> Iterator[str]:
    """The socket of a server of the durable lane's make and settings."""
    with tempfile.TemporaryDirectory(prefix="trivet-bench-") as folder:
        path = Path(folder) / "s"
        options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder]
        options += ["--appendonly", "yes", "--appendfsync", "always"]
        process = subprocess.Popen([server_program(), *options], stdout=subprocess.DEVNULL)
        try:
            while not path.exists():
                assert process.poll() is None
            yield str(path)
        finally:
            process.terminate()
            process.wait()


def add(path: str, payload: str, connections: int, seconds: float, batch: int) -> dict[str, float]:
    """Each connection adds `batch` entries and awaits the answers, again and again."""
    command = pack((b"XADD", STREAM, b"*", b"e", payload)) * batch
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(connections):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(path)
            selector.register(client, selectors.EVENT_READ, [0])
            client.sendall(command)
        added = 0
        began = time.perf_counter()
        while (took_s := time.perf_counter() - began) < seconds:
            for key, _ in selector.select(1.0):
                ready, lines = key.fileobj, key.data
                assert isinstance(ready, socket.socket)
                data = ready.recv(CHUNK_BYTES)
                assert data[:1] != b"-", data
                lines[0] += data.count(b"\n")
                if lines[0] == 2 * batch:  # an answer is its length and the entry's id
                    lines[0] = 0
                    added += batch
                    ready.sendall(command)
    _clear(path)
    return {"per_s": added / took_s}


def _clear(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(pack((b"DEL", STREAM)))
        client.recv(CHUNK_BYTES)
