"""Servers: one of the durable lane's make for all queues, each with a database of its own."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
from tests.bench.platforms import await_that

from trivet.launcher.embedded import server_program

ALWAYS = "always"
POLICIES = (ALWAYS, "everysec", "no")
"""How often a server flushes what it appends to its file."""

PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    socket: str
    pid: int

    def client(self, database: int = 0) -> redis.Redis:
        return redis.Redis(unix_socket_path=self.socket, db=database)

    def settle(self) -> None:
        """Begin a new file with what is there now, so that no run pays for the ones before."""
        with self.client() as client:
            client.bgrewriteaof()
            await_that(lambda: _is_rewritten(client), "the file is written anew")

    def cpu_s(self) -> float:
        """What it has used so far."""
        with self.client() as client:
            told = client.info("cpu")
        assert isinstance(told, dict)
        return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


def _is_rewritten(client: redis.Redis) -> bool:
    told = client.info("persistence")
    assert isinstance(told, dict)
    return not (told["aof_rewrite_in_progress"] or told["aof_rewrite_scheduled"])


@contextmanager
def server(flushes: str) -> Iterator[Server]:
    """`flushes`: one of POLICIES. Who runs as another user may connect, too."""
    with tempfile.TemporaryDirectory(prefix="trivet-bench-") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "s"
        options = ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "777"]
        options += ["--save", "", "--dir", folder, "--maxmemory-policy", "noeviction"]
        options += ["--appendonly", "yes", "--appendfsync", flushes]
        # When to rewrite the file is said here: not in the middle of somebody's run.
        options += ["--auto-aof-rewrite-percentage", "0"]
        process = subprocess.Popen([server_program(), *options], stdout=subprocess.DEVNULL)
        try:
            ends = time.monotonic() + PATIENCE_S
            while not path.is_socket():
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < ends, "the server does not listen"
            found = Server(str(path), process.pid)
            with found.client() as client:
                client.ping()
            yield found
        finally:
            process.terminate()
            process.wait()
