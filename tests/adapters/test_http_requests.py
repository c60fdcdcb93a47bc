"""Events as an AWS HTTP API builds them, against its documented and recorded examples."""

from __future__ import annotations

import base64
import json
import re
import uuid
from typing import Any

import pytest

from trivet import Match
from trivet_adapters.http.identities import Identity, new_identity
from trivet_adapters.http.requests import Request, domain_of, event_payload

IDENTITY = Identity(
    "d5eb2a1c-6f0e-4f5a-9a56-7b0d8f4f3c11",
    "Bdd2ngt5iGYEMIg=",
    "Root=1-64087690-2151375b219d3ba3389ea84e",
)


def request(**changes: Any) -> Request:
    fields: dict[str, Any] = {
        "method": "GET",
        "protocol": "HTTP/1.1",
        "scheme": "http",
        "host": "abc123.execute-api.us-east-1.localhost:8080",
        "port": 8080,
        "source_ip": "192.0.2.1",
        "query": "",
        "headers": [
            ("host", "abc123.execute-api.us-east-1.localhost:8080"),
            ("user-agent", "curl/8.5.0"),
            ("accept", "*/*"),
        ],
        "body": b"",
        "received_ms": 1_678_276_240_455,
        "identity": IDENTITY,
    }
    return Request(**{**fields, **changes})


def match(payload_format: str, **changes: Any) -> Match:
    fields: dict[str, Any] = {
        "function": "hello-world",
        "payload_format": payload_format,
        "route_key": "ANY /hello-world",
        "api_id": "abc123",
        "path": "/hello-world",
        "path_parameters": {},
    }
    return Match(**{**fields, **changes})


def event(request: Request, match: Match) -> dict[str, Any]:
    built: dict[str, Any] = json.loads(event_payload(request, match, "123456789012"))
    return built


def test_a_get_in_format_2_0() -> None:
    assert event(request(query="name=Alice"), match("2.0")) == {
        "version": "2.0",
        "routeKey": "ANY /hello-world",
        "rawPath": "/hello-world",
        "rawQueryString": "name=Alice",
        "headers": {
            "accept": "*/*",
            "content-length": "0",
            "host": "abc123.execute-api.us-east-1.localhost:8080",
            "user-agent": "curl/8.5.0",
            "x-amzn-trace-id": "Root=1-64087690-2151375b219d3ba3389ea84e",
            "x-forwarded-for": "192.0.2.1",
            "x-forwarded-port": "8080",
            "x-forwarded-proto": "http",
        },
        "queryStringParameters": {"name": "Alice"},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abc123",
            "domainName": "abc123.execute-api.us-east-1.localhost",
            "domainPrefix": "abc123",
            "http": {
                "method": "GET",
                "path": "/hello-world",
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "curl/8.5.0",
            },
            "requestId": "Bdd2ngt5iGYEMIg=",
            "routeKey": "ANY /hello-world",
            "stage": "$default",
            "time": "08/Mar/2023:11:50:40 +0000",
            "timeEpoch": 1678276240455,
        },
        "isBase64Encoded": False,
    }


def test_a_get_in_format_1_0_has_the_shape_that_tutorials_show() -> None:
    headers = [("content-type", "application/json"), ("host", "a.b:1"), ("user-agent", "curl/8")]
    assert event(request(query="name=Alice", host="a.b:1", headers=headers), match("1.0")) == {
        "version": "1.0",
        "resource": "/hello-world",
        "path": "/hello-world",
        "httpMethod": "GET",
        "headers": {
            "content-type": "application/json",
            "Content-Length": "0",
            "Host": "a.b:1",
            "User-Agent": "curl/8",
            "X-Amzn-Trace-Id": "Root=1-64087690-2151375b219d3ba3389ea84e",
            "X-Forwarded-For": "192.0.2.1",
            "X-Forwarded-Port": "8080",
            "X-Forwarded-Proto": "http",
        },
        "multiValueHeaders": {
            "content-type": ["application/json"],
            "Content-Length": ["0"],
            "Host": ["a.b:1"],
            "User-Agent": ["curl/8"],
            "X-Amzn-Trace-Id": ["Root=1-64087690-2151375b219d3ba3389ea84e"],
            "X-Forwarded-For": ["192.0.2.1"],
            "X-Forwarded-Port": ["8080"],
            "X-Forwarded-Proto": ["http"],
        },
        "queryStringParameters": {"name": "Alice"},
        "multiValueQueryStringParameters": {"name": ["Alice"]},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abc123",
            "domainName": "a.b",
            "domainPrefix": "a",
            "extendedRequestId": "Bdd2ngt5iGYEMIg=",
            "httpMethod": "GET",
            "identity": {
                "accessKey": None,
                "accountId": None,
                "caller": None,
                "cognitoAmr": None,
                "cognitoAuthenticationProvider": None,
                "cognitoAuthenticationType": None,
                "cognitoIdentityId": None,
                "cognitoIdentityPoolId": None,
                "principalOrgId": None,
                "sourceIp": "192.0.2.1",
                "user": None,
                "userAgent": "curl/8",
                "userArn": None,
            },
            "path": "/hello-world",
            "protocol": "HTTP/1.1",
            "requestId": "Bdd2ngt5iGYEMIg=",
            "requestTime": "08/Mar/2023:11:50:40 +0000",
            "requestTimeEpoch": 1678276240455,
            "resourceId": "ANY /hello-world",
            "resourcePath": "/hello-world",
            "stage": "$default",
        },
        "pathParameters": None,
        "stageVariables": None,
        "body": None,
        "isBase64Encoded": False,
    }


def test_without_parameters_1_0_says_null_and_2_0_says_nothing() -> None:
    one, two = event(request(), match("1.0")), event(request(), match("2.0"))
    for member in ("queryStringParameters", "pathParameters", "stageVariables", "body"):
        assert one[member] is None
        assert member not in two
    assert one["multiValueQueryStringParameters"] is None
    assert "cookies" not in two
    assert two["rawQueryString"] == ""


def test_repeated_query_parameters() -> None:
    asked = request(query="p=1&p=2&q=a%20b+c&none&empty=&p=3,4&%C3%A9=%C3%BC&=x&&")
    two = event(asked, match("2.0"))
    assert two["rawQueryString"] == asked.query
    assert two["queryStringParameters"] == {
        "p": "1,2,3,4",
        "q": "a b c",
        "none": "",
        "empty": "",
        "é": "ü",
        "": "x",
    }
    one = event(asked, match("1.0"))
    assert one["queryStringParameters"]["p"] == "3,4"
    assert one["multiValueQueryStringParameters"]["p"] == ["1", "2", "3,4"]


def test_repeated_headers_and_cookies() -> None:
    asked = request(
        headers=[
            ("x-many", "1"),
            ("x-many", ""),
            ("x-many", "2,3"),
            ("cookie", "a=1; b=2;"),
            ("cookie", "c=3"),
        ]
    )
    two = event(asked, match("2.0"))
    assert two["headers"]["x-many"] == "1,,2,3"
    assert two["cookies"] == ["a=1", "b=2", "c=3"]
    assert "cookie" not in two["headers"]
    one = event(asked, match("1.0"))
    assert one["headers"]["x-many"] == "2,3"
    assert one["multiValueHeaders"]["x-many"] == ["1", "", "2,3"]
    assert one["multiValueHeaders"]["cookie"] == ["a=1; b=2;", "c=3"]
    assert "cookies" not in one


@pytest.mark.parametrize("payload_format", ["1.0", "2.0"])
def test_headers_of_the_connection_and_forged_ones_do_not_reach_the_function(
    payload_format: str,
) -> None:
    asked = request(
        body=b"{}",
        headers=[
            ("connection", "keep-alive, x-secret"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("expect", "100-continue"),
            ("content-length", "999"),
            ("x-forwarded-for", "203.0.113.7"),
            ("x-forwarded-port", "1"),
            ("x-forwarded-proto", "gopher"),
            ("x-amzn-trace-id", "forged"),
        ],
    )
    headers = event(asked, match(payload_format))["headers"]
    assert {name.lower(): value for name, value in headers.items()} == {
        "content-length": "2",
        "x-amzn-trace-id": IDENTITY.trace_id,
        "x-forwarded-for": "203.0.113.7, 192.0.2.1",
        "x-forwarded-port": "8080",
        "x-forwarded-proto": "http",
    }


def test_path_parameters_stages_and_the_default_route() -> None:
    found = match(
        "2.0",
        route_key="GET /users/{id}",
        path="/dev/users/7",
        path_parameters={"id": "7"},
        stage="dev",
    )
    two = event(request(), found)
    assert two["pathParameters"] == {"id": "7"}
    assert two["routeKey"] == two["requestContext"]["routeKey"] == "GET /users/{id}"
    assert two["rawPath"] == two["requestContext"]["http"]["path"] == "/dev/users/7"
    assert two["requestContext"]["stage"] == "dev"
    one = event(request(), match("1.0", route_key="$default", path="/any/thing"))
    assert one["resource"] == one["requestContext"]["resourcePath"] == "$default"
    assert one["requestContext"]["resourceId"] == "$default"
    assert one["path"] == "/any/thing"


@pytest.mark.parametrize("payload_format", ["1.0", "2.0"])
@pytest.mark.parametrize(
    ("content_type", "is_text"),
    [
        ("text/plain", True),
        ("text/csv; charset=utf-8", True),
        ("application/json", True),
        ("Application/JSON;charset=utf-8", True),
        ("application/xml", True),
        ("application/javascript", True),
        ("application/x-www-form-urlencoded", False),
        ("application/vnd.api+json", False),
        ("multipart/form-data; boundary=x", False),
        ("application/octet-stream", False),
        ("image/png", False),
        (None, False),
    ],
)
def test_only_some_types_are_text(
    payload_format: str, content_type: str | None, is_text: bool
) -> None:
    headers = [("content-type", content_type)] if content_type else []
    built = event(request(headers=headers, body="grüße".encode()), match(payload_format))
    assert built["isBase64Encoded"] is not is_text
    text = built["body"] if is_text else base64.b64decode(built["body"]).decode()
    assert text == "grüße"


def test_text_that_is_not_utf_8_is_base64() -> None:
    built = event(request(headers=[("content-type", "text/plain")], body=b"\xff\x00"), match("2.0"))
    assert built["isBase64Encoded"] is True
    assert base64.b64decode(built["body"]) == b"\xff\x00"


def test_identities_look_as_aws_writes_them() -> None:
    identities = [new_identity(1_678_276_240.455, None) for _ in range(200)]
    for identity in identities:
        invocation = uuid.UUID(identity.invocation_id)
        assert invocation.version == 4
        assert invocation.variant == uuid.RFC_4122
        assert str(invocation) == identity.invocation_id
        assert re.fullmatch(r"[A-Za-z0-9+/]{15}=", identity.request_id)
        assert re.fullmatch(r"Root=1-64087690-[0-9a-f]{24}", identity.trace_id)
    assert len({identity.invocation_id for identity in identities}) == 200


def test_a_client_may_bring_its_trace_but_not_anything_for_one() -> None:
    brought = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
    assert new_identity(0, brought).trace_id == brought
    for other in ("garbage", "", "Root=" + "a" * 5000):
        assert new_identity(0, other).trace_id.startswith("Root=1-00000000-")


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("localhost", "localhost"),
        ("127.0.0.1:8080", "127.0.0.1"),
        ("[::1]:8080", "::1"),
        ("[::1]", "::1"),
        ("", ""),
    ],
)
def test_a_host_without_its_port(host: str, domain: str) -> None:
    assert domain_of(host) == domain
