"""The HTTP adapter on a real listener, with a real client and a platform of a few lines."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import anyio
import anyio.to_thread
import pytest

from trivet import (
    Event,
    FunctionNotFound,
    FunctionUrl,
    Match,
    PlatformError,
    Presented,
    Reply,
    RequestTooLarge,
    Signer,
    Throttled,
    TrivetError,
    Unavailable,
)
from trivet.gateway.listener import serve
from trivet_adapters.http import application

pytestmark = pytest.mark.anyio

Handler = Callable[[dict[str, Any]], Any]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


def hello(event: dict[str, Any]) -> Any:
    name = (event.get("queryStringParameters") or {}).get("name", "World")
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "application/json"},
        "body": json.dumps({"message": f"Hello, {name}!"}),
    }


def always(result: Any) -> Handler:
    return lambda event: result


@dataclass
class FewFunctions:
    """A platform whose functions are Python functions; one Route, /fn and below."""

    handler: Handler = hello
    payload_format: str = "2.0"
    raises: TrivetError | None = None
    function_error: str | None = None
    is_stuck: bool = False
    region: str = "us-east-1"
    account: str = "123456789012"
    events: list[Event] = field(default_factory=list)
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def match(self, host: str, method: str, path: str) -> Match | None:
        self.asked.append((host, method, path))
        if not path.startswith("/fn"):
            return None
        return Match(
            function="hello",
            payload_format=self.payload_format,
            route_key="ANY /fn/{proxy+}",
            api_id="api1",
            path=path,
            path_parameters={"proxy": path.removeprefix("/fn/")},
        )

    async def authorize(self, url: FunctionUrl, request: Presented) -> Signer | None:
        raise AssertionError(url)  # no Match here has one

    async def invoke(self, event: Event) -> Reply:
        self.events.append(event)
        if self.is_stuck:
            await anyio.sleep_forever()
        if self.raises is not None:
            raise self.raises
        result = json.dumps(self.handler(json.loads(event.payload))).encode()
        return Reply(request_id=event.id, payload=result, function_error=self.function_error)


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


@dataclass
class Site:
    port: int

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        return await anyio.to_thread.run_sync(self._ask, method, path, body, headers or {})

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Answer:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            client.request(method, path, body, headers)
            response = client.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            client.close()


@asynccontextmanager
async def serving(
    platform: FewFunctions, *, longest_integration_s: float = 30.0
) -> AsyncIterator[Site]:
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    app = application(platform, longest_integration_s=longest_integration_s)
    stop = anyio.Event()

    async def run() -> None:
        await serve(app, sock=sock, stop=stop)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield Site(port)
        stop.set()


@pytest.mark.parametrize("payload_format", ["1.0", "2.0"])
async def test_hello_alice(payload_format: str) -> None:
    platform = FewFunctions(payload_format=payload_format)
    async with serving(platform) as site:
        answer = await site.ask("GET", "/fn/hello-world?name=Alice")
        assert answer.status == 200
        assert json.loads(answer.body) == {"message": "Hello, Alice!"}
        assert answer.header("content-type") == "application/json"
        assert answer.header("content-length") == str(len(answer.body))
        [event] = platform.events
        assert (event.function, event.source) == ("hello", "http")
        payload = json.loads(event.payload)
        context = payload["requestContext"]
        assert answer.header("apigw-requestid") == context["requestId"]
        assert context["domainName"] == "127.0.0.1"
        assert event.trace_id in payload["headers"].values()
        assert payload["version"] == payload_format


async def test_the_platform_is_asked_with_a_bare_host_and_a_decoded_path() -> None:
    platform = FewFunctions()
    async with serving(platform) as site:
        await site.ask("PATCH", "/fn/%C3%A9%20a?x=%20", headers={"Host": "API1.Example:80"})
        assert platform.asked == [("api1.example", "PATCH", "/fn/é a")]


async def test_the_client_is_named_to_the_function() -> None:
    platform = FewFunctions()
    async with serving(platform) as site:
        await site.ask("GET", "/fn", headers={"X-Forwarded-For": "203.0.113.9"})
        payload = json.loads(platform.events[0].payload)
        assert payload["requestContext"]["http"]["sourceIp"] == "127.0.0.1"
        assert payload["headers"]["x-forwarded-for"] == "203.0.113.9, 127.0.0.1"
        assert payload["headers"]["x-forwarded-port"] == str(site.port)


async def test_bodies_go_both_ways_whole() -> None:
    def echo(event: dict[str, Any]) -> Any:
        return {
            "statusCode": 200,
            "headers": {"content-type": event["headers"]["content-type"]},
            "body": event["body"],
            "isBase64Encoded": event["isBase64Encoded"],
        }

    binary = bytes(range(256)) * 4000
    async with serving(FewFunctions(handler=echo)) as site:
        for kind, body in (("image/png", binary), ("text/plain", "grüße\n".encode() * 50_000)):
            answer = await site.ask("POST", "/fn", body, {"Content-Type": kind})
            assert (answer.status, answer.body) == (200, body)


async def test_cookies_and_several_values_reach_the_client() -> None:
    result = {
        "statusCode": 200,
        "cookies": ["a=1; Path=/", "b=2"],
        "multiValueHeaders": {"Set-Cookie": ["a=1; Path=/", "b=2"]},
    }
    for payload_format in ("1.0", "2.0"):
        platform = FewFunctions(handler=always(result), payload_format=payload_format)
        async with serving(platform) as site:
            answer = await site.ask("GET", "/fn")
            cookies = [value for name, value in answer.headers if name == "set-cookie"]
            assert cookies == ["a=1; Path=/", "b=2"]


async def test_an_unknown_route_is_not_found_and_runs_nothing() -> None:
    platform = FewFunctions()
    async with serving(platform) as site:
        for method in ("GET", "POST"):
            answer = await site.ask(method, "/other", b"abc")
            assert (answer.status, answer.body) == (404, b'{"message":"Not Found"}')
            assert answer.header("content-type") == "application/json"
            assert answer.header("apigw-requestid")
        assert platform.events == []


async def test_a_head_and_a_204_have_no_body() -> None:
    async with serving(FewFunctions()) as site:
        whole = await site.ask("GET", "/fn")
        answer = await site.ask("HEAD", "/fn")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.header("content-length") == str(len(whole.body))
    for status in (204, 304):
        result = {"statusCode": status, "body": "never"}
        platform = FewFunctions(handler=always(result))
        async with serving(platform) as site:
            answer = await site.ask("GET", "/fn")
            assert (answer.status, answer.body) == (status, b"")
            assert answer.header("content-length") is None
            assert answer.header("transfer-encoding") is None


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (Throttled("no room"), 429, "Too Many Requests"),
        (FunctionNotFound("gone"), 500, "Internal Server Error"),
        (TrivetError("other"), 500, "Internal Server Error"),
        (RequestTooLarge("6 MB"), 413, "Request Entity Too Large"),
        (PlatformError("broken"), 503, "Service Unavailable"),
        (Unavailable("away"), 503, "Service Unavailable"),
    ],
)
async def test_failures_are_told_in_the_words_of_api_gateway(
    error: TrivetError, status: int, message: str
) -> None:
    async with serving(FewFunctions(raises=error)) as site:
        answer = await site.ask("GET", "/fn")
        assert answer.status == status
        assert json.loads(answer.body) == {"message": message}
        assert answer.header("retry-after") == ("1" if status == 429 else None)
        assert answer.header("apigw-requestid")


async def test_a_function_error_and_a_malformed_result_are_the_same_500() -> None:
    for platform in (
        FewFunctions(function_error="Unhandled"),
        FewFunctions(handler=always({"statusCode": 200, "headers": {"a": "b\r\nc: d"}})),
        FewFunctions(handler=always("no status"), payload_format="1.0"),
    ):
        async with serving(platform) as site:
            answer = await site.ask("GET", "/fn")
            assert (answer.status, answer.body) == (500, b'{"message":"Internal Server Error"}')


async def test_a_body_over_10_mb_is_refused_however_it_is_sent() -> None:
    platform = FewFunctions()
    body = b"a" * (10 * 1024 * 1024 + 1)
    async with serving(platform) as site:
        announced = await site.ask("POST", "/fn", body)
        assert announced.status == 413
        assert json.loads(announced.body) == {"message": "Request Entity Too Large"}
        chunk = b"%x\r\n%b\r\n" % (1_000_000, b"a" * 1_000_000)
        stream = await anyio.connect_tcp("127.0.0.1", site.port)
        async with stream:
            await stream.send(
                b"POST /fn HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 12
            )
            assert b" 413 " in await stream.receive()
        assert platform.events == []


async def test_a_body_of_10_mb_reaches_the_platform() -> None:
    platform = FewFunctions(handler=always({"statusCode": 200}))
    async with serving(platform) as site:
        body = b"a" * (10 * 1024 * 1024)
        assert (await site.ask("POST", "/fn", body, {"Content-Type": "text/plain"})).status == 200
        assert json.loads(platform.events[0].payload)["body"] == body.decode()


async def test_an_integration_that_takes_too_long_is_unavailable() -> None:
    async with serving(FewFunctions(is_stuck=True), longest_integration_s=0.05) as site:
        answer = await site.ask("GET", "/fn")
        assert (answer.status, answer.body) == (503, b'{"message":"Service Unavailable"}')


async def test_a_client_that_leaves_within_the_body_runs_nothing() -> None:
    platform = FewFunctions()
    async with serving(platform) as site:
        stream = await anyio.connect_tcp("127.0.0.1", site.port)
        async with stream:
            await stream.send(b"POST /fn HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        assert (await site.ask("GET", "/other")).status == 404
        assert platform.events == []


async def test_the_adapter_is_found_by_its_entry_point() -> None:
    [point] = entry_points(group="trivet.adapters", name="http")
    assert point.load() is application
