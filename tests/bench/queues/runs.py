"""Runs: a queue's worker, its publisher, and what they put on record."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.queues.peers import QUEUES, Peer
from tests.bench.queues.probe import RECORD, VARIABLE
from tests.bench.queues.servers import Server

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Run:
    """A queue in an empty database of its own. Nobody works on it yet."""

    peer: Peer
    folder: Path
    url: str

    @property
    def records(self) -> Path:
        return self.folder / "started"

    @property
    def env(self) -> dict[str, str]:
        mine = {"BENCH_QUEUE": self.url, VARIABLE: str(self.records), "PYTHONPATH": str(ROOT)}
        return {**os.environ, **mine, **dict(self.peer.variables)}

    def publish(self, how: str, *numbers: int) -> int:
        """How many were accepted."""
        return published(str(self.peer.python), self.peer.module, self.env, how, *numbers)

    def begun(self) -> int:
        """How many jobs have started."""
        return self.records.stat().st_size // RECORD.size if self.records.exists() else 0

    def starts(self) -> list[tuple[float, float]]:
        """(published, started) of each, in seconds of this machine's clock."""
        return [(record[0], record[1]) for record in RECORD.iter_unpack(self.records.read_bytes())]

    @contextmanager
    def working(self, count: int) -> Iterator[int]:
        """`count` processes at work; the pid of their parent."""
        log = self.folder / "log"
        with log.open("wb") as told:
            process = subprocess.Popen(
                self.peer.working(count),
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=told,
                start_new_session=True,
            )
        try:
            yield process.pid
        except BaseException:
            print(log.read_text(errors="replace")[-2_000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def run(peer: Peer, server: Server, database: int) -> Iterator[Run]:
    with server.client(database) as client:
        client.flushdb()
    server.settle()
    with tempfile.TemporaryDirectory(prefix="trivet-bench-") as folder:
        url = peer.url.format(socket=server.socket, database=database)
        yield Run(peer, Path(folder), url)


def published(python: str, module: str, env: Mapping[str, str], how: str, *numbers: int) -> int:
    """Publish through a queue's own client; how many it says were accepted."""
    command = [python, "-m", f"{QUEUES}.publisher", module, how, *map(str, numbers)]
    told = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout
    return int(told.split()[-1])
