"""Peers: other queues, each in a private environment in the temporary folder.

They are installed on request, by name and never by the project's locks: nothing of ours needs them.
The limit's equal form is run as they are, in our own environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

PEERS = Path(os.environ.get("TRIVET_BENCH_PEERS") or Path(tempfile.gettempdir()) / "trivet-peers")
QUEUES = "tests.bench.queues"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A queue, and the worker that comes with it."""

    name: str
    folder: str = ""  # of its environment, below PEERS; empty: it needs none of its own
    packages: Sequence[str] = ()
    module: str
    url: str  # of a database at a socket
    command: Sequence[str]  # its worker; {count}: how many processes
    share: int = 1  # it is given one in so many events, since it is that much slower
    most_per_s: int = 1_000_000  # it is published to no faster
    oldest_python: tuple[int, int] = (3, 11)
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def programs(self) -> Path:
        return PEERS / self.folder / "bin" if self.folder else Path(sys.executable).parent

    @property
    def python(self) -> Path:
        return self.programs / "python"

    def working(self, count: int) -> list[str]:
        program, *words = (word.format(count=count) for word in self.command)
        return [str(self.programs / program), *words]


LIMIT = Peer(
    name="limit",
    module=f"{QUEUES}.limit_queue",
    url="{socket} {database}",
    command=("python", "-m", f"{QUEUES}.limit_queue", "{count}"),
)


ARDIQ = Peer(
    name="ardiq",
    folder="ardiq",
    packages=("ardiq",),
    module=f"{QUEUES}.ardiq_queue",
    url="unix://{socket}?db={database}",
    command=("ardiq", "run", "-q", "-w", "{count}", f"{QUEUES}.ardiq_queue:app"),
    oldest_python=(3, 12),
)
ARDIQ_ONE_AT_A_TIME = replace(
    ARDIQ, name="ardiq, 1 at a time", variables=(("BENCH_ONE_AT_A_TIME", "1"),)
)
TASKIQ = Peer(
    name="taskiq",
    folder="taskiq",
    packages=("taskiq", "taskiq-redis", "hiredis", "uvloop"),
    module=f"{QUEUES}.taskiq_queue",
    url="unix://{socket}?db={database}",
    command=(
        *("taskiq", "worker", f"{QUEUES}.taskiq_queue:broker"),
        *("--workers", "{count}", "--log-level", "ERROR"),
    ),
    share=2,
)
CELERY = Peer(
    name="celery",
    folder="celery",
    packages=("celery[redis]", "hiredis"),
    module=f"{QUEUES}.celery_queue",
    url="redis+socket://{socket}?virtual_host={database}",
    command=(
        *("celery", "-A", f"{QUEUES}.celery_queue", "worker", "-P", "prefork", "-c", "{count}"),
        *("-l", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"),
    ),
    share=10,
    most_per_s=100,
)


def present(peers: Sequence[Peer], *, install: bool) -> list[Peer]:
    """Those that can be run. What is missing is installed, or said."""
    found = []
    for peer in peers:
        if not peer.python.exists() and install:
            _install(peer)
        if peer.python.exists():
            found.append(peer)
        else:
            print(f"  {peer.name} is not installed, and left out", file=sys.stderr)
    return found


def _install(peer: Peer) -> None:
    python = next(_pythons(peer.oldest_python), None)
    if python is None:
        oldest = ".".join(map(str, peer.oldest_python))
        print(f"  {peer.name} wants a Python from {oldest} on", file=sys.stderr)
        return
    folder = PEERS / peer.folder
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    words = ["-m", "pip", "install", "-qq", "--no-input", *peer.packages]
    subprocess.run([str(peer.python), *words], check=True)


def _pythons(oldest: tuple[int, int]) -> Iterator[str]:
    """By trying: version managers put names on PATH of versions that they lack."""
    test = f"import sys; sys.exit(sys.version_info < {oldest})"
    kept = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    named = [f"python3.{minor}" for minor in (13, 12, 14, 11)]
    for python in [sys.executable, *named, *map(str, sorted(kept.glob("3.*/bin/python3")))]:
        try:
            subprocess.run([python, "-c", test], check=True, stderr=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError):
            continue
        yield python
