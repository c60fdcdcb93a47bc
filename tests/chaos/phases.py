"""Phases: what is struck, and where: all parts, the links to both servers, the disk."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
from redis.asyncio import Redis
from tests.chaos import injectors
from tests.chaos.external import ExternalServer, compiled_shim
from tests.chaos.phase import SETTINGS, Phase, Size
from tests.chaos.probes import LANES
from tests.chaos.proxy import Proxy, Tcp
from tests.chaos.schedule import Wanted
from tests.chaos.verdict import Verdict
from tests.e2e.conftest import Running

DISK_MB = 96
MOST_KILLS_OF_A_SERVER = 10

# What the platform promises at p99, from the strike until it serves again. The schedule's next
# slot is up to a second away, so that nothing is asked of the adapters.
GOALS_S = {
    "kill supervisor": 2.0,
    "kill gateway": 1.0,
    "kill zygote": 0.5,
    "kill express": 1.0,
    "kill durable": 1.0,
}


async def killed(seed: int, size: Size, *, is_quiet: bool) -> Verdict:
    """Everything is killed, and both servers are stopped for up to five seconds."""
    with _folder() as folder:
        running = Running(folder / "data", dict(SETTINGS))
        async with _up(running):
            parts = ("supervisor", "gateway", "adapters", "zygote", "environment")
            per_server = min(size.kills, MOST_KILLS_OF_A_SERVER)
            wanted = [
                *(Wanted("kill", part, size.kills) for part in parts),
                *(Wanted("kill", lane, per_server) for lane in LANES),
                *(Wanted("stop", lane, max(1, per_server // 4), 1.0, 5.0) for lane in LANES),
            ]
            phase = Phase(
                seed=seed,
                size=size,
                running=running,
                folder=folder,
                servers=_embedded(running),
                wanted=wanted,
                goals_s=GOALS_S if is_quiet else {},
            )
            return await phase.run()


async def cut_off(seed: int, size: Size) -> Verdict:
    """Both servers are elsewhere, behind proxies; the durable one on a disk that stalls."""
    with _folder() as folder:
        shim = compiled_shim(folder)
        servers = {
            "express": ExternalServer(folder / "express", is_durable=False),
            "durable": ExternalServer(folder / "durable", is_durable=True, shim=shim),
        }
        async with _behind_proxies(servers) as proxies:
            places = {}
            for lane, proxy in proxies.items():
                place = await proxy.start()
                assert isinstance(place, Tcp)
                places[f"TRIVET_{lane.upper()}_URL"] = f"redis://{place.host}:{place.port}"
            running = Running(folder / "data", {**SETTINGS, **places})
            async with _up(running):
                phase = Phase(
                    seed=seed,
                    size=size,
                    running=running,
                    folder=folder,
                    servers={
                        lane: Redis(unix_socket_path=server.socket)
                        for lane, server in servers.items()
                    },
                    wanted=_cuts(size, can_stall=shim is not None),
                    more={
                        **injectors.of_links(proxies, random.Random(seed)),
                        **injectors.of_servers(servers),
                    },
                )
                found = await phase.run()
    if shim is None:
        found.lines.append("- no C compiler is here: no flush was stalled")
    return found


def _cuts(size: Size, *, can_stall: bool) -> list[Wanted]:
    half, fifth = max(1, size.kills // 2), max(1, size.kills // 5)
    wanted = [Wanted("kill", "supervisor", fifth)]
    for lane in LANES:
        wanted += [
            Wanted("cut", lane, half),
            Wanted("cut-within", lane, half, 0.5, 0.5),
            Wanted("swallow", lane, fifth, 1.0, 5.0),
            Wanted("delay", lane, fifth, 2.0, 2.0),
        ]
    if can_stall:
        wanted.append(Wanted("stall", "durable", fifth, 1.5, 1.5))
        wanted.append(Wanted("stall-kill", "durable", half, 0.5, 1.5))
    return wanted


@asynccontextmanager
async def _behind_proxies(
    servers: Mapping[str, ExternalServer],
) -> AsyncIterator[dict[str, Proxy]]:
    proxies = {lane: Proxy(server.socket) for lane, server in servers.items()}
    try:
        for server in servers.values():
            server.start()
        yield proxies
    finally:
        for lane, server in servers.items():
            await proxies[lane].close()
            server.kill()


async def full_disk(seed: int, size: Size) -> Verdict:
    """The data folder lies on a small disk, which fills up and is emptied again."""
    with _folder() as folder, _small_disk(folder / "disk") as disk:
        if disk is None:
            return Verdict(lines=["- mounting takes root: no disk was filled"])
        here = {"TRIVET_DISK_RESERVE_MB": "8", "TRIVET_SCRATCH": "memory"}
        running = Running(disk / "data", {**SETTINGS, **here})
        async with _up(running):
            count = max(1, size.kills // 2)
            phase = Phase(
                seed=seed,
                size=size,
                running=running,
                folder=folder,
                servers=_embedded(running),
                wanted=[
                    Wanted("fill-nearly", "disk", count, 2.0, 4.0),
                    Wanted("fill", "disk", count, 2.0, 4.0),
                ],
                more=injectors.of_disk(disk),
                # It promises nothing that it cannot write, and ends; its successor reads the rest.
                may_die=("valkey (durable)",),
            )
            return await phase.run()


def _embedded(running: Running) -> dict[str, Redis]:
    run = running.data / "run"
    return {lane: Redis(unix_socket_path=str(run / f"{lane}.sock")) for lane in LANES}


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=755", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@asynccontextmanager
async def _up(running: Running) -> AsyncIterator[None]:
    await anyio.to_thread.run_sync(running.up)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            # Whatever has ended by itself was told already.
            await anyio.to_thread.run_sync(lambda: running.trivet("down", check=False))


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder that services may enter, and that goes with what is in it."""
    path = Path(tempfile.mkdtemp(prefix="trivet-chaos-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        if "CHAOS_KEEP" not in os.environ:
            shutil.rmtree(path)
