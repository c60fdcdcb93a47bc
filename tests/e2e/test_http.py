"""HTTP triggers: routes made with Trivet's own command and with the stock aws CLI."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from tests.e2e.conftest import Deployed, Running

Deploy = Callable[..., Deployed]

HELLO = """
export const handler = async (event) => {
  const name = event.queryStringParameters?.name || "World";
  return {
    statusCode: 200,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ message: `Hello, ${name}!` })
  };
};
"""
ECHO = (
    "import json\n"
    "def handler(event, context): return {'statusCode': 200, 'body': json.dumps(event)}"
)


def request(
    platform: Running, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, list[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection(urlsplit(platform.http_url).netloc, timeout=40)
    try:
        # A body that is too long is answered, and not read to its end.
        with suppress(BrokenPipeError):
            connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()


def route(platform: Running, function: Deployed, path: str, payload: str = "1.0") -> None:
    """What `trivet trigger http` makes, asked for as it does."""
    api = platform.client("apigatewayv2")
    state = function.client.get_function_configuration(FunctionName=function.name)
    made = api.create_integration(
        ApiId="default",
        IntegrationType="AWS_PROXY",
        IntegrationUri=state["FunctionArn"],
        PayloadFormatVersion=payload,
    )
    target = f"integrations/{made['IntegrationId']}"
    api.create_route(ApiId="default", RouteKey=f"ANY {path}", Target=target)


def test_the_demo_answers_from_the_first_moment(platform: Running) -> None:
    status, _, body = request(platform, "/welcome?name=Alice")
    assert (status, json.loads(body)) == (200, {"message": "Hello, Alice!"})


def test_a_route_made_with_trivet_answers_as_the_tutorial_says(
    platform: Running, deploy: Deploy
) -> None:
    """P3"""
    function = deploy(HELLO, runtime="nodejs20.x")
    platform.trivet("trigger", "http", function.name, "/tutorial")
    status, headers, body = request(platform, "/tutorial?name=Alice")
    assert (status, body) == (200, b'{"message":"Hello, Alice!"}')
    assert ("content-type", "application/json") in [(n.lower(), v) for n, v in headers]


def test_the_event_of_format_1_is_the_tutorial_s(platform: Running, deploy: Deploy) -> None:
    function = deploy(ECHO)
    route(platform, function, "/one")
    event = json.loads(request(platform, "/one?name=Alice&name=Bob")[2])
    assert (event["version"], event["httpMethod"], event["path"]) == ("1.0", "GET", "/one")
    assert event["queryStringParameters"] == {"name": "Bob"}
    assert event["multiValueQueryStringParameters"] == {"name": ["Alice", "Bob"]}
    assert event["body"] is None


def test_the_event_of_format_2_when_asked_for(platform: Running, deploy: Deploy) -> None:
    function = deploy(ECHO)
    platform.trivet("trigger", "http", function.name, "/two/{id}", "--payload", "2.0")
    answer = request(platform, "/two/7?a=1&a=2", "POST", b"x=1", Cookie="c=1; d=2")
    event = json.loads(answer[2])
    assert event["version"] == "2.0"
    assert event["routeKey"] == "ANY /two/{id}"
    assert event["pathParameters"] == {"id": "7"}
    assert event["queryStringParameters"] == {"a": "1,2"}
    assert event["cookies"] == ["c=1", "d=2"]
    assert event["requestContext"]["http"]["method"] == "POST"


def test_an_api_made_with_the_aws_cli_s_quick_create(platform: Running, deploy: Deploy) -> None:
    function = deploy(ECHO)
    arn = function.client.get_function(FunctionName=function.name)["Configuration"]["FunctionArn"]
    made = json.loads(
        platform.aws(
            "apigatewayv2", "create-api", "--name", "quick", "--protocol-type", "HTTP",
            "--target", arn,
        )
    )  # fmt: skip
    by_name = json.loads(request(platform, f"/{function.name}?x=1")[2])
    assert (by_name["version"], by_name["rawPath"]) == ("2.0", f"/{function.name}")
    host = f"{made['ApiId']}.execute-api.us-east-1.amazonaws.com"
    by_host = json.loads(request(platform, "/any/path", Host=host)[2])
    assert by_host["rawPath"] == "/any/path"
    platform.aws("apigatewayv2", "delete-api", "--api-id", made["ApiId"])
    assert request(platform, f"/{function.name}")[0] == 404


def test_binary_bodies_go_in_and_out(platform: Running, deploy: Deploy) -> None:
    function = deploy(
        "def handler(e, c):\n"
        "    return {'statusCode': 201, 'isBase64Encoded': e['isBase64Encoded'],\n"
        "            'headers': {'Content-Type': 'image/png'}, 'body': e['body']}"
    )
    route(platform, function, "/binary")
    sent = bytes(range(256)) * 1000
    status, _, body = request(
        platform, "/binary", "POST", sent, **{"Content-Type": "application/octet-stream"}
    )
    assert (status, body) == (201, sent)


def test_many_values_of_a_header_and_cookies_come_back_apart(
    platform: Running, deploy: Deploy
) -> None:
    one = deploy(
        "def handler(e, c): return {'statusCode': 200, 'body': '', 'multiValueHeaders':"
        " {'X-A': ['1', '2'], 'Set-Cookie': ['a=1', 'b=2']}}"
    )
    route(platform, one, "/multi")
    headers = [(n.lower(), v) for n, v in request(platform, "/multi")[1]]
    assert [v for n, v in headers if n == "x-a"] == ["1", "2"]
    assert [v for n, v in headers if n == "set-cookie"] == ["a=1", "b=2"]
    two = deploy("def handler(e, c): return {'statusCode': 200, 'cookies': ['a=1', 'b=2']}")
    route(platform, two, "/cookies", "2.0")
    headers = [(n.lower(), v) for n, v in request(platform, "/cookies")[1]]
    assert [v for n, v in headers if n == "set-cookie"] == ["a=1", "b=2"]


@pytest.mark.parametrize(
    ("source", "status", "message"),
    [
        ("def handler(e, c): raise ValueError", 500, "Internal Server Error"),
        ("def handler(e, c): __import__('os')._exit(1)", 500, "Internal Server Error"),
        ("def handler(e, c): return 'x' * 7_000_000", 500, "Internal Server Error"),
        ("def handler(e, c): return {'statusCode': 'no'}", 500, "Internal Server Error"),
    ],
)
def test_what_the_function_does_wrong_is_a_500_without_a_word_more(
    platform: Running, deploy: Deploy, source: str, status: int, message: str
) -> None:
    function = deploy(source)
    route(platform, function, f"/{function.name}")
    answered, _, body = request(platform, f"/{function.name}")
    assert (answered, json.loads(body)) == (status, {"message": message})


def test_an_unknown_route_is_not_found(platform: Running) -> None:
    status, _, body = request(platform, "/nowhere")
    assert (status, json.loads(body)) == (404, {"message": "Not Found"})


def test_the_public_listener_has_no_aws_api(platform: Running) -> None:
    for path in ("/2015-03-31/functions", "/health", "/metrics", "/"):
        assert request(platform, path)[0] == 404


def test_a_body_over_ten_megabytes_is_refused(platform: Running, deploy: Deploy) -> None:
    status, _, _ = request(platform, "/welcome", "POST", b"x" * (10 * 1024 * 1024 + 1))
    assert status == 413


def test_a_route_taken_away_is_gone(platform: Running, deploy: Deploy) -> None:
    function = deploy(ECHO)
    platform.trivet("trigger", "http", function.name, "/short-lived", "--method", "GET")
    assert request(platform, "/short-lived")[0] == 200
    assert request(platform, "/short-lived", "POST")[0] == 404
    removed = platform.trivet("trigger", "rm", "GET /short-lived", "--json").stdout
    assert json.loads(removed) == {"removed": "GET /short-lived"}
    assert request(platform, "/short-lived")[0] == 404
