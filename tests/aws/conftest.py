"""A door on a loopback port, with a small table of operations behind it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import boto3
import pytest
import uvicorn
from botocore.config import Config

from trivet import AsyncClient, Client
from trivet.aws import logs, sts
from trivet.aws.door import Door
from trivet.aws.services import Operation, Services
from trivet.aws.sigv4 import Verifier
from trivet.core.arns import Place
from trivet.store.logs import LogReader

ACCESS_KEY, SECRET = "AKIDTEST", "secret/with+signs"

Opener = Callable[[Mapping[str, Mapping[str, Operation]]], AbstractContextManager[str]]
"""Serves these operations; gives the URL."""


@pytest.fixture
def services(tmp_path: Path) -> Services:
    """Only the parts that the operations here use."""

    async def changed(name: str) -> None:
        raise AssertionError(name)

    absent = cast(Any, None)
    return Services(
        place=Place("us-east-1", "123456789012"),
        platform=absent,
        publisher=absent,
        bills=absent,
        ledgers=absent,
        triggers=absent,
        functions=absent,
        blobs=absent,
        apis=absent,
        urls=absent,
        logs=LogReader(tmp_path / "logs"),
        runtimes=frozenset(),
        http_url="http://127.0.0.1:8080",
        changed=changed,
    )


@pytest.fixture(scope="module")
def leaving() -> Iterator[ExitStack]:
    """Servers that were asked to end: one looks ten times a second, and no test waits for that."""
    with ExitStack() as leaving:
        yield leaving


@pytest.fixture
def open_door(services: Services, leaving: ExitStack) -> Opener:
    @contextmanager
    def opened(tables: Mapping[str, Mapping[str, Operation]]) -> Iterator[str]:
        verifier = Verifier({ACCESS_KEY: SECRET}.get, "us-east-1")
        door = cast(Any, Door(services, verifier, tables))
        config = uvicorn.Config(
            door, http="httptools", ws="none", lifespan="off", loop="uvloop", log_config=None
        )
        server = uvicorn.Server(config)
        listener = leaving.enter_context(socket.create_server(("127.0.0.1", 0)))
        # Connections wait in the listener until the server takes them.
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        leaving.callback(thread.join)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True

    return opened


@pytest.fixture
def url(open_door: Opener) -> Iterator[str]:
    """A door with STS and Logs as they are."""
    with open_door({"sts": sts.OPERATIONS, "logs": logs.OPERATIONS}) as url:
        yield url


def client(service: str, url: str, *, secret: str = SECRET, **settings: Any) -> Any:
    """The real client of a service."""
    return boto3.client(
        service,
        endpoint_url=url,
        region_name=settings.pop("region_name", "us-east-1"),
        aws_access_key_id=settings.pop("access_key", ACCESS_KEY),
        aws_secret_access_key=secret,
        config=Config(retries={"max_attempts": 0}, parameter_validation=False),
        **settings,
    )


Speak = Callable[..., Any]
"""speak(url, "invoke", ...) does it with a client of the kind that is tested."""


def blocking(url: str, name: str, *arguments: Any, **options: Any) -> Any:
    with Client(url, access_key=ACCESS_KEY, secret=SECRET) as client:
        result = getattr(client, name)(*arguments, **options)
        return list(result) if name == "logs" else result


def asynchronous(url: str, name: str, *arguments: Any, **options: Any) -> Any:
    async def do() -> Any:
        async with AsyncClient(url, access_key=ACCESS_KEY, secret=SECRET) as client:
            result = getattr(client, name)(*arguments, **options)
            return [line async for line in result] if name == "logs" else await result

    return anyio.run(do)


@pytest.fixture(params=[blocking, asynchronous])
def speak(request: pytest.FixtureRequest) -> Speak:
    found: Speak = request.param
    return found
