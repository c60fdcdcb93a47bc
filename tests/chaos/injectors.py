"""Injectors: what a fault does, by its kind. Each returns when the fault is over."""

from __future__ import annotations

import errno
import os
import random
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread
from tests.chaos.external import ExternalServer
from tests.chaos.proxy import Proxy
from tests.chaos.schedule import Fault
from tests.chaos.victims import find

Injector = Callable[[Fault], Awaitable[None]]

FOUND_WITHIN_S = 10.0
LOOK_EVERY_S = 0.02
MOST_BYTES_BEFORE_A_CUT = 2_000
DELAY_S = 0.05
NEARLY_FULL_BYTES = 4 << 20


class NobodyThere(Exception):
    """The part that is to be struck does not run, and does not come back."""


def of_processes(launcher: int, dice: random.Random) -> dict[str, Injector]:
    """kill: SIGKILL. stop: SIGSTOP, and SIGCONT after a while."""

    async def victim(part: str) -> int:
        with anyio.move_on_after(FOUND_WITHIN_S):
            while True:
                if found := await anyio.to_thread.run_sync(find, launcher, part):
                    return dice.choice(found)
                await anyio.sleep(LOOK_EVERY_S)
        raise NobodyThere(part)

    async def kill(fault: Fault) -> None:
        pid = await victim(fault.part)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    async def stop(fault: Fault) -> None:
        pid = await victim(fault.part)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            try:
                await anyio.sleep(fault.seconds)
            finally:
                os.kill(pid, signal.SIGCONT)

    return {"kill": kill, "stop": stop}


def of_links(proxies: Mapping[str, Proxy], dice: random.Random) -> dict[str, Injector]:
    """delay, swallow (a partition), cut, and cut-within: in the middle of what a server says."""

    async def delay(fault: Fault) -> None:
        proxies[fault.part].delay_s = DELAY_S
        try:
            await anyio.sleep(fault.seconds)
        finally:
            proxies[fault.part].delay_s = 0.0

    async def swallow(fault: Fault) -> None:
        proxies[fault.part].swallow()
        try:
            await anyio.sleep(fault.seconds)
        finally:
            proxies[fault.part].let_pass()

    async def cut(fault: Fault) -> None:
        proxies[fault.part].cut()

    async def cut_within(fault: Fault) -> None:
        proxies[fault.part].cut_after(dice.randrange(1, MOST_BYTES_BEFORE_A_CUT))
        await anyio.sleep(fault.seconds)

    return {"delay": delay, "swallow": swallow, "cut": cut, "cut-within": cut_within}


def of_servers(servers: Mapping[str, ExternalServer]) -> dict[str, Injector]:
    """stall: no flush returns for a while. stall-kill: and then the server is killed."""

    async def stall(fault: Fault) -> None:
        servers[fault.part].stall()
        try:
            await anyio.sleep(fault.seconds)
        finally:
            servers[fault.part].flow()

    async def stall_kill(fault: Fault) -> None:
        server = servers[fault.part]
        server.stall()
        try:
            await anyio.sleep(fault.seconds)
            await anyio.to_thread.run_sync(server.kill)
        finally:
            server.flow()
        server.start()

    return {"stall": stall, "stall-kill": stall_kill}


def of_disk(folder: Path) -> dict[str, Injector]:
    """fill-nearly: all but some megabytes, which the platform must not accept events with.
    fill: all of it, so that what must be written cannot be. Space returns after a while."""
    filler = folder / "filler"

    def fill(free_bytes: int) -> None:
        disk = os.statvfs(folder)
        size = disk.f_bavail * disk.f_frsize - free_bytes
        with filler.open("ab") as file, suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, size))
        if free_bytes == 0:
            _pad(filler)

    async def filled(fault: Fault, free_bytes: int) -> None:
        try:
            await anyio.to_thread.run_sync(fill, free_bytes)
            await anyio.sleep(fault.seconds)
        finally:
            filler.unlink()

    async def fill_nearly(fault: Fault) -> None:
        await filled(fault, NEARLY_FULL_BYTES)

    async def fill_all(fault: Fault) -> None:
        await filled(fault, 0)

    return {"fill-nearly": fill_nearly, "fill": fill_all}


def _pad(filler: Path) -> None:
    """What others freed meanwhile, too."""
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
