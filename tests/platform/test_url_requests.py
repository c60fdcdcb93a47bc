"""Requests to function URLs: the real adapter over the real stores, keys and policies."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread
import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from tests.platform.conftest import ACCESS_KEY, SECRET, Call
from tests.platform.test_lambda_operations import create

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
)
from trivet.aws.services import Services
from trivet.gateway.listener import serve
from trivet_adapters.http import application

pytestmark = pytest.mark.anyio

ACCOUNT = "123456789012"
NO_POLICY = {
    "Message": "Forbidden. For troubleshooting Function URL authorization issues, see: "
    "https://docs.aws.amazon.com/lambda/latest/dg/urls-auth.html"
}
TOO_LARGE = "Request must be smaller than 6291456 bytes for the InvokeFunction operation"
PUBLIC: tuple[dict[str, Any], ...] = (
    {
        "StatementId": "use-url",
        "Action": "lambda:InvokeFunctionUrl",
        "FunctionUrlAuthType": "NONE",
    },
    {
        "StatementId": "via-url",
        "Action": "lambda:InvokeFunction",
        "InvokedViaFunctionUrl": True,
    },
)


@dataclass
class Running:
    """The platform behind the adapter; its functions answer with `result`, or with the event."""

    services: Services
    result: Any = None
    raises: TrivetError | None = None
    function_error: str | None = None
    region: str = "us-east-1"
    account: str = ACCOUNT
    events: list[Event] = field(default_factory=list)

    def match(self, host: str, method: str, path: str) -> Match | None:
        return self.services.urls.match(host, path)

    async def authorize(self, url: FunctionUrl, request: Presented) -> Signer | None:
        return await self.services.platform.authorize(url, request)

    async def invoke(self, event: Event) -> Reply:
        self.events.append(event)
        if self.raises is not None:
            raise self.raises
        payload = event.payload if self.result is None else json.dumps(self.result).encode()
        return Reply(request_id=event.id, payload=payload, function_error=self.function_error)


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def cors(self) -> dict[str, str]:
        return {
            name.lower().removeprefix("access-control-"): value
            for name, value in self.headers
            if name.lower().startswith("access-control-")
        }


@dataclass
class Url:
    """A client of one function URL."""

    id: str
    port: int
    platform: Running

    @property
    def host(self) -> str:
        return f"{self.id}.lambda-url.us-east-1.localhost:{self.port}"

    async def ask(
        self,
        method: str = "GET",
        path: str = "/",
        body: bytes = b"",
        signed: Mapping[str, str] | None = None,
        *,
        host: str = "",
        **headers: str,
    ) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named["Host"] = host or self.host
        return await anyio.to_thread.run_sync(
            self._ask, method, path, body, {**named, **(signed or {})}
        )

    def _ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            client.request(method, path, body, dict(headers))
            response = client.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            client.close()

    def signed(
        self, method: str, path: str, body: bytes = b"", *, service: str = "lambda", **more: str
    ) -> dict[str, str]:
        """The headers that botocore signs a request with."""
        request = AWSRequest(method, f"http://{self.host}{path}", data=body, headers=more)
        SigV4Auth(Credentials(ACCESS_KEY, SECRET), service, "us-east-1").add_auth(request)
        return dict(request.headers.items())


@asynccontextmanager
async def serving(services: Services, call: Call, **settings: Any) -> AsyncIterator[Url]:
    """A function with a URL. Unless told otherwise, anybody may use it."""
    await create(call)
    statements = settings.pop("statements", PUBLIC)
    await call(
        "lambda",
        "create_function_url_config",
        **{"FunctionName": "hello", "AuthType": "NONE", **settings},
    )
    for statement in statements:
        permission = {"FunctionName": "hello", "Principal": "*", **statement}
        await call("lambda", "add_permission", **permission)
    made = services.urls.get("hello")
    assert made is not None
    platform = Running(services)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: serve(application(platform), sock=listener, stop=stop))
        yield Url(made.id, port, platform)
        stop.set()


# -------------------------------------------------------------------------- public


async def test_a_public_url_needs_both_statements(services: Services, call: Call) -> None:
    for statements in ((), PUBLIC[:1], PUBLIC[1:]):
        async with serving(services, call, statements=statements) as url:
            answer = await url.ask()
            assert (answer.status, json.loads(answer.body)) == (403, NO_POLICY)
            assert answer.header("x-amzn-errortype") == "AccessDeniedException"
            assert url.platform.events == []
        await call("lambda", "delete_function", FunctionName="hello")
    async with serving(services, call) as url:
        assert (await url.ask()).status == 200
        await call("lambda", "remove_permission", FunctionName="hello", StatementId="use-url")
        assert (await url.ask()).status == 403


async def test_a_statement_for_some_is_not_one_for_all(services: Services, call: Call) -> None:
    for_me = [{**statement, "Principal": ACCOUNT} for statement in PUBLIC]
    async with serving(services, call, statements=for_me) as url:
        assert (await url.ask()).status == 403


async def test_the_event_of_a_public_request(services: Services, call: Call) -> None:
    async with serving(services, call) as url:
        path = "/a%20b/c?name=Alice&name=Bob&x=%26"
        answer = await url.ask("POST", path, b"a=1", Cookie="c=1; d=2", Content_Type="text/plain")
        event = json.loads(answer.body)
        context = event["requestContext"]
        assert event["version"] == "2.0"
        assert event["routeKey"] == "$default"
        assert event["rawPath"] == "/a b/c"
        assert event["rawQueryString"] == "name=Alice&name=Bob&x=%26"
        assert event["queryStringParameters"] == {"name": "Alice,Bob", "x": "&"}
        assert event["cookies"] == ["c=1", "d=2"]
        assert (event["body"], event["isBase64Encoded"]) == ("a=1", False)
        assert event["headers"]["host"] == url.host
        assert "pathParameters" not in event
        assert "authorizer" not in context
        assert context["accountId"] == "anonymous"
        assert context["apiId"] == context["domainPrefix"] == url.id
        assert context["domainName"] == url.host.partition(":")[0]
        assert context["http"]["method"] == "POST"
        assert context["http"]["path"] == "/a b/c"
        assert context["stage"] == context["routeKey"] == "$default"
        assert answer.header("x-amzn-requestid") == context["requestId"]
        assert url.platform.events[0].id == context["requestId"]
        assert url.platform.events[0].source == "url"
        assert answer.header("x-amzn-trace-id") == event["headers"]["x-amzn-trace-id"]
        assert answer.header("apigw-requestid") is None


async def test_the_path_names_a_url_too(services: Services, call: Call) -> None:
    async with serving(services, call) as url:
        answer = await url.ask(path=f"/_url/{url.id}/deep/er?x=1", host="127.0.0.1")
        event = json.loads(answer.body)
        assert event["rawPath"] == "/deep/er"
        assert event["requestContext"]["domainPrefix"] == url.id


async def test_a_url_that_is_not_there(services: Services, call: Call) -> None:
    async with serving(services, call) as url:
        host = f"{'0' * 32}.lambda-url.us-east-1.localhost"
        answer = await url.ask(host=host)
        assert (answer.status, answer.body) == (403, b'{"Message":null}')
        assert answer.header("x-amzn-errortype") == "AccessDeniedException"
        assert (await url.ask(path=f"/_url/{'0' * 32}/", host="127.0.0.1")).status == 404
        await call("lambda", "delete_function_url_config", FunctionName="hello")
        assert (await url.ask()).body == b'{"Message":null}'
        assert url.platform.events == []


# -------------------------------------------------------------------------- results


@pytest.mark.parametrize(
    ("result", "body"),
    [
        ("hello", b"hello"),
        (7, b"7"),
        (True, b"true"),
        ([1, "a"], b'[1, "a"]'),
        ({"a": 1}, b'{"a": 1}'),
        ({"statusCode": 200, "headers": {"content-type": "application/json"}}, b""),
    ],
)
async def test_results_without_a_status(
    services: Services, call: Call, result: Any, body: bytes
) -> None:
    async with serving(services, call) as url:
        url.platform.result = result
        answer = await url.ask()
        assert (answer.status, answer.body) == (200, body)
        assert answer.header("content-type") == "application/json"


async def test_results_with_a_status(services: Services, call: Call) -> None:
    async with serving(services, call) as url:
        url.platform.result = {
            "statusCode": 201,
            "headers": {"X-Own": "1", "X-Amzn-RequestId": "mine", "Content-Type": "image/png"},
            "cookies": ["a=1", "b=2"],
            "body": "AAH/",
            "isBase64Encoded": True,
        }
        answer = await url.ask()
        assert (answer.status, answer.body) == (201, b"\x00\x01\xff")
        assert answer.header("x-own") == "1"
        assert [v for n, v in answer.headers if n == "set-cookie"] == ["a=1", "b=2"]
        ids = [value for name, value in answer.headers if name == "x-amzn-requestid"]
        assert ids == [url.platform.events[0].id]


async def test_what_the_function_does_wrong_is_a_502(services: Services, call: Call) -> None:
    async with serving(services, call) as url:
        url.platform.function_error = "Unhandled"
        answer = await url.ask()
        assert (answer.status, answer.body) == (502, b"Internal Server Error")
        url.platform.function_error = None
        url.platform.result = {"statusCode": "no"}
        answer = await url.ask()
        assert (answer.status, answer.body) == (502, b"Internal Server Error")


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (Throttled("Rate Exceeded."), 429, "Rate Exceeded."),
        (
            RequestTooLarge("too large"),
            413,
            TOO_LARGE,
        ),
        (FunctionNotFound("it was deleted"), 403, None),
        (PlatformError("the supervisor is away"), 503, "Service Unavailable"),
    ],
)
async def test_what_the_platform_cannot_do(
    services: Services, call: Call, raised: TrivetError, status: int, message: str | None
) -> None:
    async with serving(services, call) as url:
        url.platform.raises = raised
        answer = await url.ask()
        assert (answer.status, json.loads(answer.body)) == (status, {"Message": message})
        assert answer.header("x-amzn-errortype") is not None
        assert (answer.header("retry-after") is not None) == (status == 429)


async def test_a_request_has_six_megabytes(services: Services, call: Call) -> None:
    async with serving(services, call) as url:
        url.platform.result = "fine"
        assert (await url.ask("POST", "/", b"x" * 6_291_456)).status == 200
        answer = await url.ask("POST", "/", b"x" * 6_291_457)
        assert (answer.status, json.loads(answer.body)) == (
            413,
            {"Message": TOO_LARGE},
        )
        assert answer.header("x-amzn-errortype") == "RequestEntityTooLargeException"
        assert len(url.platform.events) == 1


# -------------------------------------------------------------------------- signed

IAM: dict[str, Any] = {"AuthType": "AWS_IAM", "statements": ()}


async def test_a_key_of_the_account_needs_no_statement(services: Services, call: Call) -> None:
    async with serving(services, call, **IAM) as url:
        path = "/a%20b?b=2&a=1&a=%2F"
        answer = await url.ask("POST", path, b"{}", url.signed("POST", path, b"{}"))
        assert answer.status == 200
        context = json.loads(answer.body)["requestContext"]
        assert context["accountId"] == ACCOUNT
        assert context["authorizer"] == {
            "iam": {
                "accessKey": ACCESS_KEY,
                "accountId": ACCOUNT,
                "callerId": ACCESS_KEY,
                "cognitoIdentity": None,
                "principalOrgId": None,
                "userArn": f"arn:aws:iam::{ACCOUNT}:user/trivet",
                "userId": ACCESS_KEY,
            }
        }


async def test_a_signature_holds_for_the_path_too(services: Services, call: Call) -> None:
    async with serving(services, call, **IAM) as url:
        path = f"/_url/{url.id}/x"
        assert (await url.ask("GET", path, b"", url.signed("GET", path))).status == 200
        big = b"x" * 1_500_000
        assert (await url.ask("PUT", "/", big, url.signed("PUT", "/", big))).status == 200


async def test_a_presigned_url_is_let_in(services: Services, call: Call) -> None:
    async with serving(services, call, **IAM) as url:
        request = AWSRequest("GET", f"http://{url.host}/x?a=1")
        signer = SigV4QueryAuth(Credentials(ACCESS_KEY, SECRET), "lambda", "us-east-1", 60)
        signer.add_auth(request)
        path = str(request.url).partition(str(url.port))[2]
        assert (await url.ask("GET", path)).status == 200


async def test_a_request_without_a_signature(services: Services, call: Call) -> None:
    # Not even statements for everybody let it in.
    async with serving(services, call, AuthType="AWS_IAM") as url:
        answer = await url.ask()
        assert (answer.status, json.loads(answer.body)) == (403, {"Message": "Forbidden"})
        assert answer.header("x-amzn-errortype") == "AccessDeniedException"


async def test_a_request_that_is_not_what_was_signed(services: Services, call: Call) -> None:
    async with serving(services, call, **IAM) as url:
        good = url.signed("POST", "/x", b"{}")
        for method, path, body, headers in (
            ("PUT", "/x", b"{}", good),
            ("POST", "/y", b"{}", good),
            ("POST", "/x?a=1", b"{}", good),
            ("POST", "/x", b"[]", good),
            ("POST", "/x", b"{}", {**good, "X-Amz-Date": "20200101T000000Z"}),
            ("POST", "/x", b"{}", url.signed("POST", "/x", b"{}", service="execute-api")),
        ):
            answer = await url.ask(method, path, body, headers)
            assert answer.status == 403, (method, path)
            assert answer.header("x-amzn-errortype") == "InvalidSignatureException"
            assert json.loads(answer.body)["Message"]
        answer = await url.ask("POST", "/x", b"{}", Authorization="Bearer token")
        assert (answer.status, answer.header("x-amzn-errortype")) == (
            400,
            "IncompleteSignatureException",
        )
        assert url.platform.events == []


async def test_a_stranger_s_key(services: Services, call: Call) -> None:
    async with serving(services, call, **IAM) as url:
        signed = url.signed("GET", "/")
        forged = re.sub("AKIA[A-Z]+", "AKIAZZZZZZZZZZZZZZZZ", signed["Authorization"])
        answer = await url.ask("GET", "/", b"", {**signed, "Authorization": forged})
        assert (answer.status, answer.header("x-amzn-errortype")) == (
            403,
            "UnrecognizedClientException",
        )


# -------------------------------------------------------------------------- browsers

SITE = "https://example.com"
ALL = {"AllowOrigins": ["*"], "AllowMethods": ["*"], "AllowHeaders": ["*"], "MaxAge": 60}
ONE: dict[str, Any] = {
    "AllowOrigins": [SITE, "https://example.org"],
    "AllowMethods": ["GET", "PUT"],
    "AllowHeaders": ["content-type", "x-own"],
    "ExposeHeaders": ["date", "x-own"],
    "AllowCredentials": True,
    "MaxAge": 0,
}


async def preflight(url: Url, origin: str, **headers: str) -> Answer:
    asked = {"Origin": origin, "Access-Control-Request-Method": "PUT", **headers}
    answer = await url.ask("OPTIONS", "/x", b"", asked)
    assert (answer.status, answer.body) == (200, b"")
    assert url.platform.events == []
    return answer


async def test_a_preflight_is_answered_without_the_function(services: Services, call: Call) -> None:
    async with serving(services, call, Cors=ALL, **IAM) as url:
        assert (await preflight(url, SITE)).cors == {
            "allow-origin": "*",
            "allow-methods": "*",
            "allow-headers": "*",
            "max-age": "60",
        }


async def test_a_preflight_for_some_sites(services: Services, call: Call) -> None:
    async with serving(services, call, Cors=ONE) as url:
        answer = await preflight(url, SITE)
        assert answer.header("vary") == "Origin"
        assert answer.cors == {
            "allow-origin": SITE,
            "allow-credentials": "true",
            "allow-methods": "GET,PUT",
            "allow-headers": "content-type,x-own",
            "expose-headers": "date,x-own",
            "max-age": "0",
        }
        assert (await preflight(url, "https://evil.example")).cors == {}
        assert (await preflight(url, "null")).cors == {}


async def test_a_star_with_credentials_names_no_origin(services: Services, call: Call) -> None:
    async with serving(services, call, Cors={**ALL, "AllowCredentials": True}) as url:
        answer = await preflight(url, SITE, **{"Access-Control-Request-Headers": "x-a,x-b"})
        assert answer.cors == {
            "allow-origin": "*",
            "allow-credentials": "true",
            "allow-methods": "PUT",
            "allow-headers": "x-a,x-b",
            "max-age": "60",
        }


async def test_responses_are_readable_for_the_sites_allowed(services: Services, call: Call) -> None:
    async with serving(services, call, Cors=ONE) as url:
        expected = {
            "allow-origin": SITE,
            "allow-credentials": "true",
            "expose-headers": "date,x-own",
        }
        assert (await url.ask(Origin=SITE)).cors == expected
        assert (await url.ask(Origin="https://evil.example")).cors == {}
        assert (await url.ask()).cors == {}
        url.platform.function_error = "Unhandled"
        failed = await url.ask(Origin=SITE)
        assert (failed.status, failed.cors) == (502, expected)


async def test_options_that_are_no_preflight_reach_the_function(
    services: Services, call: Call
) -> None:
    async with serving(services, call, Cors=ALL) as url:
        answer = await url.ask("OPTIONS", "/", Origin=SITE)
        assert json.loads(answer.body)["requestContext"]["http"]["method"] == "OPTIONS"
        await call("lambda", "update_function_url_config", FunctionName="hello", Cors={})
        answer = await url.ask("OPTIONS", "/", Origin=SITE, Access_Control_Request_Method="PUT")
        assert json.loads(answer.body)["requestContext"]["http"]["method"] == "OPTIONS"
        assert answer.cors == {}
