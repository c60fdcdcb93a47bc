"""Bodies: their doors, what a function brings along, and what it is told."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis
from tests.platform.supervised import Make, settle, supervising, until

from trivet.core.functions import FunctionVersion
from trivet.core.roles import KEY_BYTES
from trivet.gateway.passages import CONNECTION, Passage
from trivet.settings import Settings
from trivet.store.roles import Roles
from trivet.supervisor.briefing import Briefing
from trivet.supervisor.doors import Doors
from trivet_worker import wire

pytestmark = [
    pytest.mark.anyio,
    # Zygotes and environments that a test plays are left half-way on purpose.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
async def make(tmp_path: Path, durable: Redis) -> AsyncIterator[Make]:
    async with supervising(tmp_path, durable) as make:
        yield make


def listener() -> tuple[int, int]:
    """A descriptor of one, as a jailer would bind it, and its port."""
    bound = socket.create_server(("127.0.0.1", 0))
    port: int = bound.getsockname()[1]
    return bound.detach(), port


async def test_a_call_from_inside_reaches_the_gateway_until_its_environment_ends(
    make: Make,
) -> None:
    doors = Doors()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setblocking(False)
    heard: list[list[object]] = []

    def hear(message: list[object], fd: int) -> None:
        heard.append(message)
        if fd >= 0:
            os.close(fd)

    gateway = Passage(theirs, heard=hear, lost=lambda _: None, drained=lambda: None)
    doors.attach(ours)
    host = make(doors=doors)
    version = await host.deploy()
    zygote = host.attach(bits=wire.ISOLATION_NETWORK)
    await settle()
    (request_id,) = host.deliver(version)
    inside = await zygote.spawned()
    door, port = listener()
    inside.start(DOOR_AWS=door)
    await inside.frame()
    stream = await anyio.connect_tcp("127.0.0.1", port)
    await until(lambda: heard)
    assert heard[0][0] == CONNECTION
    assert "hello" in heard[0]
    await stream.aclose()
    inside.exit()
    await until(lambda: request_id in host.answers)
    with pytest.raises(OSError, match=r"refused|failed"):
        await anyio.connect_tcp("127.0.0.1", port)
    assert not doors._doors
    gateway.close()
    doors.close()


async def test_what_a_function_brings_along_gets_its_events_by_the_runtime_api(make: Make) -> None:
    host = make()
    version = await host.deploy(runtime="provided.al2023")
    zygote = host.attach(bits=wire.ISOLATION_NETWORK)
    await settle()
    (request_id,) = host.deliver(version)
    inside = await zygote.spawned()
    assert inside.given == wire.WITH_CODE | wire.AS_CUSTOM | 512 << 8
    door, port = listener()
    inside.start(DOOR_RUNTIME=door)
    kind, _, _ = await inside.frame()
    assert kind == wire.INIT
    inside.channel.close()  # it becomes the user's program
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await stream.receive()
        assert request_id.encode() in head
        body = b"41"
        await stream.send(
            b"POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: x\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (request_id.encode(), len(body), body)
        )
        await until(lambda: host.answers.get(request_id) == b"41")
    inside.life, life = -1, inside.life
    os.close(life)
    zygote.tell(wire.EXITED, inside.number, 0)
    await until(lambda: not host.pool._bodies)


async def test_without_a_network_of_its_own_nothing_brought_along_can_run(make: Make) -> None:
    host = make()
    version = await host.deploy(runtime="provided.al2023")
    zygote = host.attach()
    await settle()
    (request_id,) = host.deliver(version)
    for _ in range(3):
        inside = await zygote.spawned()
        inside.start()
        await settle()
        zygote.hear_all()
        assert zygote.kills[-1] == inside.number
        inside.exit(-9)
    await until(lambda: request_id in host.answers)
    assert host.answers[request_id] == b"No execution environment could be started."


def test_a_function_is_told_where_services_are_and_who_it_is(tmp_path: Path) -> None:
    settings = Settings(
        data=str(tmp_path),
        host="0.0.0.0",
        aws_port=4000,
        service_endpoints="dynamodb=http://10.0.0.9:8000/db",
    )
    briefing = Briefing(settings, Roles(bytes(KEY_BYTES)))
    version = FunctionVersion(
        function="f", runtime="python3.11", handler="h.h", code_sha256="0" * 64, role="arn:r"
    )

    def told(isolation: int) -> dict[str, str]:
        packed = briefing.pack(
            version, isolation=isolation, task_root="/var/task", log_stream="stream"
        )
        variables: dict[str, str] = json.loads(packed)["environment"]
        return variables

    walled, plain = told(wire.ISOLATION_NETWORK), told(0)
    assert walled["AWS_ENDPOINT_URL"] == f"http://127.0.0.1:{wire.AWS_PORT}"
    assert walled["AWS_ENDPOINT_URL_DYNAMODB"] == f"http://127.0.1.1:{wire.AWS_PORT}/db"
    assert plain["AWS_ENDPOINT_URL"] == "http://127.0.0.1:4000"
    assert plain["AWS_ENDPOINT_URL_DYNAMODB"] == "http://10.0.0.9:8000/db"
    assert plain["AWS_ACCESS_KEY_ID"].startswith("ASIA")
