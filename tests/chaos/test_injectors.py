"""The tools of chaos do what they say: otherwise nothing that withstands them proves anything."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Lost
from tests.chaos import injectors
from tests.chaos.external import ExternalServer, compiled_shim
from tests.chaos.proxy import Proxy, Tcp
from tests.chaos.schedule import Fault, Wanted, steps
from tests.chaos.slopes import Allowed, growth

pytestmark = pytest.mark.anyio

DELAY_S = 0.1
PATIENCE_S = 10.0


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ExternalServer]:
    server = ExternalServer(tmp_path / "server", is_durable=True, shim=compiled_shim(tmp_path))
    server.start()
    async with Redis(unix_socket_path=server.socket) as client:
        await answering(client)
    yield server
    server.kill()


@pytest.fixture
async def proxy(server: ExternalServer) -> AsyncIterator[Proxy]:
    proxy = Proxy(server.socket)
    yield proxy
    await proxy.close()


async def through(proxy: Proxy) -> Redis:
    place = await proxy.start()
    assert isinstance(place, Tcp)
    return Redis(host=place.host, port=place.port, retry=Retry(NoBackoff(), 0))


async def answering(client: Redis) -> None:
    with anyio.fail_after(PATIENCE_S):
        while True:
            try:
                await client.ping()
                return
            except Lost:
                await anyio.sleep(0.01)


async def test_a_proxy_passes_on_and_delays(proxy: Proxy) -> None:
    async with await through(proxy) as client:
        value = random.Random(1).randbytes(1 << 20)
        await client.set("a", value)
        assert await client.get("a") == value
        proxy.delay_s = DELAY_S
        begun = time.monotonic()
        await client.ping()
        assert time.monotonic() - begun >= 2 * DELAY_S


async def test_a_proxy_swallows_and_lets_pass_again(proxy: Proxy) -> None:
    async with await through(proxy) as client:
        await client.ping()
        proxy.swallow()
        answers = []

        async def ask() -> None:
            answers.append(await client.set("a", "1"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            with anyio.move_on_after(DELAY_S):
                await anyio.Event().wait()
            assert answers == []
            proxy.let_pass()
        assert answers == [True]


async def test_a_proxy_cuts_what_there_is_and_takes_anew(proxy: Proxy) -> None:
    async with await through(proxy) as client:
        await client.ping()
        proxy.cut()
        with pytest.raises(Lost):
            await client.ping()
        await answering(client)
        assert proxy.taken == 2


async def test_a_proxy_cuts_in_the_middle_of_an_answer(proxy: Proxy) -> None:
    async with await through(proxy) as client:
        await client.set("a", bytes(100))
        place = client.connection_pool.connection_kwargs
        reader, writer = await asyncio.open_connection(place["host"], place["port"])
        proxy.cut_after(50)
        writer.write(b"GET a\r\n")
        with anyio.fail_after(PATIENCE_S):
            told = await reader.read()
        assert len(told) == 50
        writer.close()


async def test_a_disk_that_stalls_holds_every_answer_back(server: ExternalServer) -> None:
    if not server.can_stall:
        pytest.skip("no C compiler is here")
    async with Redis(unix_socket_path=server.socket) as client:
        server.stall()
        answers = []

        async def write() -> None:
            answers.append(await client.set("a", "1"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            with anyio.move_on_after(DELAY_S):
                await anyio.Event().wait()
            assert answers == []
            server.flow()
        assert answers == [True]


async def test_what_was_answered_is_there_after_a_kill(server: ExternalServer) -> None:
    async with Redis(unix_socket_path=server.socket) as client:
        await client.set("a", "1")
    server.kill()
    server.start()
    async with Redis(unix_socket_path=server.socket) as client:
        await answering(client)
        assert await client.get("a") == b"1"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


async def test_a_disk_is_filled_to_the_last_block_and_emptied(small_disk: Path) -> None:
    free = os.statvfs(small_disk).f_bavail
    fill = injectors.of_disk(small_disk)["fill"]

    async def filled() -> None:
        await fill(Fault("fill", "disk", PATIENCE_S))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(filled)
        with anyio.fail_after(PATIENCE_S):
            while os.statvfs(small_disk).f_bavail:  # noqa: ASYNC110  # a disk tells nobody
                await anyio.sleep(0.01)
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "other").write_bytes(bytes(4096))
        tasks.cancel_scope.cancel()
    (small_disk / "other").unlink()
    assert os.statvfs(small_disk).f_bavail == free


def test_a_seed_decides_the_order_and_each_fault_strikes_as_often_as_wanted() -> None:
    wanted = [Wanted("kill", "a", 7), Wanted("kill", "b", 5), Wanted("stop", "c", 4, 1.0, 5.0)]
    plan = steps(3, wanted, rest_s=0.5)
    assert plan == steps(3, wanted, rest_s=0.5)
    assert plan != steps(4, wanted, rest_s=0.5)
    faults = [fault for step in plan for fault in step.faults]
    assert [sum(f.part == part for f in faults) for part in "abc"] == [7, 5, 4]
    assert all(1.0 <= f.seconds <= 5.0 for f in faults if f.kind == "stop")
    assert max(len(step.faults) for step in plan) == 2


def test_what_grows_is_told_from_what_is_noisy() -> None:
    dice, allowed = random.Random(1), Allowed(share_per_hour=0.01, noise=10.0)
    flat = [(5.0 * i, 1_000 + dice.uniform(-20, 20)) for i in range(240)]
    assert growth(flat, allowed)[2]
    leaking = [(at, value + 0.1 * at) for at, value in flat]
    share, grown, is_flat = growth(leaking, allowed)
    assert not is_flat
    assert share == pytest.approx(0.3, abs=0.1)
    assert grown == pytest.approx(60, abs=15)
    settled = [(at, value if at > 400 else value / 2) for at, value in flat]
    assert growth(settled, allowed)[2], "it may grow at first"
