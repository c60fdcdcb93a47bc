"""Soak: a steady load for a while, at the end of which the platform occupies what it did before.

Every few seconds descriptors, memory, processes, cgroups, mounts and networks are looked at; over
the second half of the time none of them may grow. The exit code is 1 if one does.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread
from redis import Redis
from tests.chaos import functions
from tests.chaos.accepted import AcceptedFile
from tests.chaos.load import Asynchronous, Files, Synchronous
from tests.chaos.phase import SETTINGS
from tests.chaos.slopes import Allowed, growth
from tests.chaos.watch import Look, look
from tests.e2e.conftest import Running

from trivet.client import AsyncClient

LOOK_EVERY_S = 5.0
PER_S = 40.0  # asynchronous events, some of them poison: environments come and go
CALLERS = 2
CALLER_PAUSE_S = 0.05

# The promise is one percent an hour. What grows by no more than the noise over the half that is
# judged is flat: four environments come and go, each with a cgroup in up to four hierarchies, a
# network and some ten descriptors here; a heap grows in arenas of 1 MB, and what several processes
# share counts for fewer of them when an environment ends.
ALLOWED = {
    "descriptors": Allowed(share_per_hour=0.01, noise=20),
    "pss_kb": Allowed(share_per_hour=0.01, noise=2_048),
    "server_kb": Allowed(share_per_hour=0.01, noise=512),
    "processes": Allowed(share_per_hour=0.01, noise=4),
    "cgroups": Allowed(share_per_hour=0.01, noise=16),
    "mounts": Allowed(share_per_hour=0.01, noise=4),
    "networks": Allowed(share_per_hour=0.01, noise=4),
    "links": Allowed(share_per_hour=0.01, noise=4),
}
# Before this, heaps and caches still fill: only what is several times the noise is told.
WARM_AFTER_S = 300.0
UNTIL_WARM = 4
# The ledger of a function is bounded by bytes, its Readings by 100,000 entries. Until then each
# event may add this much: an entry in each, with its payload.
KEPT_BYTES_PER_EVENT = 1_500


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="./run soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="of the load (default: 1)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trivet-soak-") as path:
        folder = Path(path)
        folder.chmod(0o755)
        # A small ledger, so that it is full, and forgets, early on.
        running = Running(folder / "data", {**SETTINGS, "TRIVET_LEDGER_MB": "1"})
        running.up()
        try:
            looks = anyio.run(_soak, running, folder, given.minutes * 60, given.seed)
        finally:
            running.down()
    raise SystemExit(told(looks))


async def _soak(
    running: Running, folder: Path, seconds: float, seed: int
) -> list[tuple[float, Look]]:
    drops = folder / "drops"
    drops.mkdir()
    await anyio.to_thread.run_sync(functions.deploy, running, drops)
    env = running.env

    def client() -> AsyncClient:
        return AsyncClient(
            env["AWS_ENDPOINT_URL"],
            access_key=env["AWS_ACCESS_KEY_ID"],
            secret=env["AWS_SECRET_ACCESS_KEY"],
            region=env["AWS_DEFAULT_REGION"],
        )

    file = AcceptedFile(folder / "accepted.jsonl")
    source = functions.events(random.Random(seed))
    load = Asynchronous(client(), file, source, PER_S, sys.maxsize)
    durable = Redis(unix_socket_path=str(running.data / "run" / "durable.sock"))
    looks = []
    begun = time.monotonic()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(load.run)
        tasks.start_soon(Files(drops, random.Random(seed)).run)
        for number in range(CALLERS):
            tasks.start_soon(Synchronous(client(), CALLER_PAUSE_S, number * 10**7).run)
        while (at := time.monotonic() - begun) < seconds:
            looks.append((at, await anyio.to_thread.run_sync(look, running, durable)))
            await anyio.sleep(min(LOOK_EVERY_S, seconds / 8))
        tasks.cancel_scope.cancel()
    file.close()
    return looks


def told(looks: list[tuple[float, Look]]) -> int:
    """Print each figure; 1 if one of them grows."""
    grows = 0
    factor = 1 if looks[-1][0] / 2 >= WARM_AFTER_S else UNTIL_WARM
    for name, usual in ALLOWED.items():
        allowed = replace(usual, noise=usual.noise * factor)
        points = [(at, float(seen.figures()[name])) for at, seen in looks]
        share, grown, is_flat = growth(points, allowed)
        grows += not is_flat
        values = f"{points[0][1]:,.0f} → {points[len(points) // 2][1]:,.0f} → {points[-1][1]:,.0f}"
        words = f"{grown:+,.1f} in the second half, {share:+.1%} an hour"
        print(f"{'✓' if is_flat else '✗'} {name:<12} {values}; {words}")
    (_, first), (_, last) = looks[len(looks) // 2], looks[-1]
    events = max(1, last.accepted - first.accepted)
    each = (last.kept_bytes - first.kept_bytes) / events
    is_bounded = each <= KEPT_BYTES_PER_EVENT
    grows += not is_bounded
    words = f"{each:,.0f} bytes for each of {events:,} events of the second half"
    print(f"{'✓' if is_bounded else '✗'} {'kept':<12} {words}")
    print(f"{grows} grow" if grows else f"flat over {looks[-1][0] / 60:.0f} min")
    return 1 if grows else 0
