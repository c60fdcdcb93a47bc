"""Doors: connections made inside reach the gateway's AWS door, relays and resolver, and no other.

Both ends run here, on a real link; a real client calls. The sockets are bound in this network.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from trivet.aws import sts
from trivet.aws.door import Door
from trivet.aws.services import Caller as AwsCaller
from trivet.aws.services import Services
from trivet.aws.sigv4 import Verifier
from trivet.core.egress import INTERNET, NONE, Egress, parse
from trivet.core.endpoints import endpoint_variables, parse_service_endpoints
from trivet.core.functions import FunctionVersion
from trivet.core.roles import KEY_BYTES, Credentials
from trivet.core.variables import environment_variables
from trivet.errors import SettingsError
from trivet.gateway import inside
from trivet.gateway.inside import GUESTS_OF_ONE, Inside
from trivet.store.roles import Roles
from trivet.supervisor.doors import BURST, Caller, Doors
from trivet.supervisor.doors import Door as SupervisorDoor

pytestmark = pytest.mark.anyio

ACCESS_KEY, SECRET = "AKIABCDEFGHIJKLMNOPQ", "s" * 40
ROLE = "arn:aws:iam::123456789012:role/worker"
ROLES = Roles(b"k" * KEY_BYTES)

Serve = Callable[[anyio.abc.SocketStream], Awaitable[None]]


@dataclass
class Opened:
    """A door, and the sockets of it that an environment would use."""

    door: SupervisorDoor
    port: int
    names: tuple[str, int]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def connect(self, address: str = "127.0.0.1") -> anyio.abc.SocketStream:
        return await anyio.connect_tcp(address, self.port)


@dataclass
class House:
    """Supervisor's doors and gateway's inside, as one process."""

    doors: Doors
    tasks: anyio.abc.TaskGroup
    services: Services
    insides: list[Inside] = field(default_factory=list)
    permits: list[tuple[int, str, int]] = field(default_factory=list)
    entered: anyio.Event = field(default_factory=anyio.Event)

    async def start_gateway(self, endpoints: str = "", **options: Any) -> anyio.CancelScope:
        """A new gateway takes over. Cancel what is given to make it die."""
        verifier = Verifier({ACCESS_KEY: SECRET}.get, "us-east-1", sessions=ROLES.recognise)
        tables = {"sts": {**sts.OPERATIONS, "GetSessionToken": self._hang}}
        door = Door(self.services, verifier, tables, ["sts:*"])
        inside = Inside(door, parse_service_endpoints(endpoints), **options)
        self.insides.append(inside)
        scope = anyio.CancelScope()

        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with scope:
                task_status.started()
                await inside.run(anyio.Event())

        await self.tasks.start(run)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inside.attach(theirs)
        self.doors.attach(ours)
        return scope

    async def _hang(self, services: Services, params: Any, caller: AwsCaller) -> dict[str, Any]:
        self.entered.set()
        await anyio.sleep_forever()
        return {}

    def open(self, function: str = "hello", egress: Egress = INTERNET) -> Opened:
        listener = socket.create_server(("0.0.0.0", 0), backlog=512)
        names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        names.bind(("127.0.0.1", 0))
        port, address = listener.getsockname()[1], names.getsockname()
        caller = Caller(function, "$LATEST", ROLE, 5, egress)
        door = self.doors.open(caller, aws=listener.detach(), names=names.detach())
        return Opened(door, port, address)


@pytest.fixture(params=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture
async def house(services: Services) -> AsyncIterator[House]:
    before = len(os.listdir("/proc/self/fd"))
    doors = Doors()
    async with anyio.create_task_group() as tasks:
        house = House(doors, tasks, services)
        doors.on_permit = lambda *said: house.permits.append(said)
        yield house
        doors.close()
        tasks.cancel_scope.cancel()
    with anyio.fail_after(5):  # nothing is left open, whatever the test did
        while len(os.listdir("/proc/self/fd")) > before:
            gc.collect()  # the real client's connections, where it ended in an error
            await anyio.lowlevel.checkpoint()


def client(opened: Opened, credentials: Credentials | None = None, **config: Any) -> Any:
    """STS, as an SDK inside of the function would speak to it."""
    return boto3.client(
        "sts",
        endpoint_url=opened.url,
        region_name="us-east-1",
        aws_access_key_id=credentials.access_key if credentials else ACCESS_KEY,
        aws_secret_access_key=credentials.secret if credentials else SECRET,
        aws_session_token=credentials.token if credentials else None,
        config=Config(retries={"max_attempts": 0}, **config),
    )


async def whoami(opened: Opened, credentials: Credentials | None = None, **config: Any) -> str:
    def ask() -> str:
        with contextlib.closing(client(opened, credentials, **config)) as asking:
            return str(asking.get_caller_identity()["Arn"])

    return await anyio.to_thread.run_sync(ask)


async def rest(stream: anyio.abc.SocketStream) -> bytes:
    received = bytearray()
    with anyio.fail_after(10):
        while True:
            try:
                received += await stream.receive()
            except anyio.EndOfStream:
                return bytes(received)


async def is_cut(stream: anyio.abc.SocketStream) -> bool:
    with anyio.fail_after(10):
        try:
            return not await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return True


# ------------------------------------------------------------------------------- the AWS endpoint


async def test_a_function_calls_with_its_own_credentials(house: House) -> None:
    await house.start_gateway()
    opened = house.open("hello")
    arn = await whoami(opened, ROLES.issue("hello", ROLE))
    assert arn == "arn:aws:sts::123456789012:assumed-role/worker/hello"


async def test_nobody_elses_credentials_are_good_inside(house: House) -> None:
    await house.start_gateway()
    opened = house.open("hello")
    for credentials in (ROLES.issue("other", ROLE), None):
        with pytest.raises(ClientError) as error:
            await whoami(opened, credentials)
        answer = error.value.response
        assert answer["Error"]["Code"] == "InvalidClientTokenId"
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 403


async def test_a_request_without_a_signature_is_refused(house: House) -> None:
    await house.start_gateway()
    async with await house.open().connect() as stream:
        await stream.send(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert (await rest(stream)).startswith(b"HTTP/1.1 403 ")


async def test_a_call_waits_for_a_gateway_that_restarts(house: House) -> None:
    opened = house.open("hello")
    credentials = ROLES.issue("hello", ROLE)
    async with anyio.create_task_group() as tasks:
        arns: list[str] = []

        async def call() -> None:
            arns.append(await whoami(opened, credentials))

        tasks.start_soon(call)
        first = await house.start_gateway()
        while not arns:
            await anyio.lowlevel.checkpoint()
        first.cancel()
        while house.doors.passage is not None:
            await anyio.lowlevel.checkpoint()
        tasks.start_soon(call)
        await house.start_gateway()
    assert len(arns) == 2


async def test_what_ends_takes_its_connections_with_it(house: House) -> None:
    await house.start_gateway()
    opened, other = house.open("hello"), house.open("other")
    kept = client(opened, ROLES.issue("hello", ROLE))
    broken: list[BaseException] = []

    def hang() -> None:
        try:
            kept.get_session_token()
        except BotoCoreError as error:
            broken.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, hang)
        with anyio.fail_after(10):
            await house.entered.wait()
        opened.door.close()
        opened.door.close()
    assert len(broken) == 1
    kept.close()
    with pytest.raises(OSError, match="failed"):
        await opened.connect()
    assert (await whoami(other, ROLES.issue("other", ROLE))).endswith("/other")


async def test_one_environment_has_so_many_connections_and_no_more(house: House) -> None:
    await house.start_gateway()
    opened, other = house.open(), house.open("other")
    async with contextlib.AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(await opened.connect())
            for _ in range(GUESTS_OF_ONE + 4)
        ]
        for stream in streams[GUESTS_OF_ONE:]:
            assert await is_cut(stream)
        # It has used up its right to connect fast; others have theirs.
        assert len(streams) > BURST
        assert (await whoami(other, ROLES.issue("other", ROLE))).endswith("/other")


async def test_a_function_leaves_room_for_others(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside, "GUESTS_OF_FUNCTION", 3)
    await house.start_gateway()
    first, second, other = house.open(), house.open(), house.open("other")
    async with contextlib.AsyncExitStack() as stack:
        for opened in (first, first, second):
            await stack.enter_async_context(await opened.connect())
        async with await second.connect() as stream:
            assert await is_cut(stream)
        assert (await whoami(other, ROLES.issue("other", ROLE))).endswith("/other")
        first.door.close()
        with anyio.fail_after(10):
            while house.insides[0]._count > 1:
                await anyio.lowlevel.checkpoint()
        assert (await whoami(second, ROLES.issue("hello", ROLE))).endswith("/hello")


async def test_addresses_that_nobody_serves_are_cut(house: House) -> None:
    await house.start_gateway("dynamodb=http://127.0.0.1:9")
    opened = house.open()
    for address in ("127.0.1.2", "127.0.0.2"):
        async with await opened.connect(address) as stream:
            assert await is_cut(stream)


# ----------------------------------------------------------------------------------------- relays


@contextlib.asynccontextmanager
async def elsewhere(serve: Serve) -> AsyncIterator[str]:
    """A service of the operator's. Gives its setting."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            yield f"s3=https://s3.example.com dynamodb=http://127.0.0.1:{port}"
            tasks.cancel_scope.cancel()


async def test_a_service_that_is_served_elsewhere_is_relayed_to(house: House) -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            said = await rest(stream)  # to the end that the function gave it
            await stream.send(b"heard " + said)

    async with elsewhere(serve) as setting:
        await house.start_gateway(setting)
        async with await house.open().connect("127.0.1.1") as stream:
            await stream.send(b"hello")
            await stream.send_eof()
            assert await rest(stream) == b"heard hello"


async def test_many_bytes_pass_both_ways_whole(house: House) -> None:
    size = 20_000_000

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            async for part in stream:
                await stream.send(part)

    async with elsewhere(serve) as setting:
        await house.start_gateway(setting)
        async with await house.open().connect("127.0.1.1") as stream:
            received: list[bytes] = []

            async def read() -> None:
                received.append(await rest(stream))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                sent = os.urandom(size)
                await stream.send(sent)
                await stream.send_eof()
            assert received[0] == sent


async def test_a_function_that_does_not_read_holds_up_whom_it_asked(house: House) -> None:
    sent = 0

    async def serve(stream: anyio.abc.SocketStream) -> None:
        nonlocal sent
        async with stream:
            with contextlib.suppress(anyio.BrokenResourceError):
                while True:
                    await stream.send(b"x" * 65_536)
                    sent += 65_536

    async with elsewhere(serve) as setting:
        await house.start_gateway(setting)
        async with await house.open().connect("127.0.1.1"):
            before = -1
            with anyio.fail_after(20):
                while sent == 0 or sent != before:
                    before = sent
                    with anyio.move_on_after(0.3):
                        await anyio.sleep_forever()
            assert sent < 32_000_000  # what the kernel holds, and little of ours


async def test_a_target_that_is_away_is_a_closed_connection(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    await house.start_gateway(f"dynamodb=http://127.0.0.1:{port}")
    async with await house.open().connect("127.0.1.1") as stream:
        assert await is_cut(stream)


async def test_a_relay_ends_with_the_environment_and_with_its_target(house: House) -> None:
    served: list[anyio.abc.SocketStream] = []
    arrived = [anyio.Event(), anyio.Event()]
    cuts: list[bool] = []

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            served.append(stream)
            await stream.receive()
            arrived[len(served) - 1].set()
            if len(served) == 1:
                cuts.append(await is_cut(stream))

    async with elsewhere(serve) as setting:
        await house.start_gateway(setting)
        opened = house.open()
        async with await opened.connect("127.0.1.1") as stream:
            await stream.send(b"x")
            await arrived[0].wait()
            opened.door.close()
            assert await is_cut(stream)
        with anyio.fail_after(10):
            while not cuts:
                await anyio.lowlevel.checkpoint()
        async with await house.open().connect("127.0.1.1") as stream:
            await stream.send(b"x")
            assert await is_cut(stream)


# ---------------------------------------------------------------------------------------- the names


def query(name: str) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"


class Resolver(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4) + bytes([93, 184, 216, 34])
        head = data[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
        self.transport.sendto(head + data[12:] + record, addr)


@pytest.fixture
async def resolver() -> AsyncIterator[tuple[str, int]]:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Resolver, local_addr=("127.0.0.1", 0)
    )
    yield transport.get_extra_info("sockname")[:2]
    transport.close()


async def ask(opened: Opened, name: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        asking.connect(opened.names)
        asking.send(query(name))
        with anyio.fail_after(10):
            return await asyncio.get_running_loop().sock_recv(asking, 2_000)


async def test_names_are_answered_and_their_addresses_permitted_first(
    house: House, resolver: tuple[str, int]
) -> None:
    await house.start_gateway(resolvers=lambda: [resolver])
    opened = house.open(egress=parse("api.example.com"))
    assert (await ask(opened, "api.example.com")).endswith(bytes([93, 184, 216, 34]))
    assert house.permits == [(5, "93.184.216.34", 120)]
    assert (await ask(opened, "evil.com"))[3] & 15 == 3


async def test_an_answer_waits_until_the_provisioner_has_permitted(
    house: House, resolver: tuple[str, int]
) -> None:
    await house.start_gateway(resolvers=lambda: [resolver])
    house.doors.confirms_permits = True
    order: list[str] = []

    def permit(number: int, address: str, ttl_s: int) -> None:
        def confirm() -> None:
            order.append("permitted")
            house.doors.permitted(number, address)

        asyncio.get_running_loop().call_later(0.1, confirm)

    house.doors.on_permit = permit
    await ask(house.open(egress=parse("api.example.com")), "api.example.com")
    order.append("told")
    assert order == ["permitted", "told"]


async def test_another_gateway_answers_after_the_first_one_died(
    house: House, resolver: tuple[str, int]
) -> None:
    first = await house.start_gateway(resolvers=lambda: [resolver])
    opened = house.open()
    await ask(opened, "example.com")
    first.cancel()
    while house.doors.passage is not None:
        await anyio.lowlevel.checkpoint()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(ask, opened, "example.com"))
        await house.start_gateway(resolvers=lambda: [resolver])


async def test_who_may_reach_nothing_is_told_at_once_that_nobody_answers(house: House) -> None:
    await house.start_gateway()
    opened = house.open(egress=NONE)
    with pytest.raises(ConnectionRefusedError):
        await ask(opened, "example.com")


async def test_a_door_may_lack_either_socket(house: House) -> None:
    await house.start_gateway()
    caller = Caller("hello", "$LATEST", ROLE, 0, INTERNET)
    house.doors.open(caller, aws=-1, names=-1).close()


# -------------------------------------------------------------------------------------- variables


def test_the_variables_of_services() -> None:
    setting = "dynamodb=http://127.0.0.1:8000/x/ S3=https://s3.example.com events=http://10.0.0.9"
    endpoints = parse_service_endpoints(setting)
    inside = endpoint_variables(endpoints, aws_url="http://127.0.0.1:4566", relayed_port=4566)
    assert inside == {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:4566",
        "AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.1.1:4566/x",
        "AWS_ENDPOINT_URL_S3": "https://s3.example.com",
        "AWS_ENDPOINT_URL_EVENTBRIDGE": "http://127.0.1.2:4566",
    }
    outside = endpoint_variables(endpoints, aws_url="http://127.0.0.1:9", relayed_port=None)
    assert outside["AWS_ENDPOINT_URL_EVENTBRIDGE"] == "http://10.0.0.9"


@pytest.mark.parametrize(
    "setting",
    [
        "dynamodb",
        "dynamodb=ftp://a",
        "s3=http://",
        "=http://a",
        "s3=http://a s3=http://b",
        "s3=http://u:p@a",
        "s3=http://a?b",
        "s3=http://a:99999",
        "a b=http://c",
    ],
)
def test_a_setting_of_services_that_cannot_be_used(setting: str) -> None:
    with pytest.raises(SettingsError):
        parse_service_endpoints(setting)


def test_a_user_may_name_another_endpoint_but_no_other_credentials() -> None:
    version = FunctionVersion(
        function="hello",
        runtime="python3.11",
        handler="a.b",
        code_sha256="0" * 64,
        environment={"AWS_ENDPOINT_URL": "http://mine", "AWS_SESSION_TOKEN": "mine"},
    )
    credentials = ROLES.issue("hello", ROLE)
    found = environment_variables(
        version,
        region="us-east-1",
        log_stream="s",
        task_root="/var/task",
        credentials=credentials,
        endpoints={"AWS_ENDPOINT_URL": "http://127.0.0.1:4566", "AWS_ENDPOINT_URL_S3": "x"},
    )
    assert found["AWS_ENDPOINT_URL"] == "http://mine"
    assert found["AWS_ENDPOINT_URL_S3"] == "x"
    assert found["AWS_SESSION_TOKEN"] == credentials.token
    assert found["AWS_ACCESS_KEY_ID"] == credentials.access_key
    assert found["AWS_SECRET_ACCESS_KEY"] == credentials.secret
