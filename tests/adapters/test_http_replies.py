"""Results of functions as HTTP responses; nothing a function returns may break the framing."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet_adapters.http.replies import MalformedReply, Response, read_reply

FORMATS = pytest.mark.parametrize("payload_format", ["1.0", "2.0"])


def read(result: Any, payload_format: str = "2.0") -> Response:
    return read_reply(json.dumps(result).encode(), payload_format)


@FORMATS
def test_status_headers_and_body(payload_format: str) -> None:
    response = read(
        {
            "statusCode": 201,
            "headers": {"Content-Type": "application/json", "X-Number": 5, "X-True": True},
            "body": '{"message": "Hello, Alice!"}',
        },
        payload_format,
    )
    assert response == Response(
        201,
        [(b"content-type", b"application/json"), (b"x-number", b"5"), (b"x-true", b"true")],
        b'{"message": "Hello, Alice!"}',
    )


@FORMATS
def test_defaults(payload_format: str) -> None:
    assert read({"statusCode": 204}, payload_format) == Response(204, [], b"")
    assert read({"statusCode": "200", "body": "grüße"}, payload_format) == Response(
        200, [(b"content-type", b"text/plain;charset=UTF-8")], "grüße".encode()
    )
    nothing = {"headers": None, "cookies": None, "multiValueHeaders": None, "body": None}
    assert read({"statusCode": 200, **nothing}, payload_format) == Response(200, [], b"")


@FORMATS
def test_binary_bodies(payload_format: str) -> None:
    body = bytes(range(256))
    result = {
        "statusCode": 200,
        "headers": {"content-type": "image/png"},
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }
    assert read(result, payload_format).body == body


@pytest.mark.parametrize(
    ("result", "body"),
    [
        ({"message": "Hello"}, b'{"message": "Hello"}'),
        ({"body": "x", "headers": {}}, b'{"body": "x", "headers": {}}'),
        ("Hello from Lambda!", b"Hello from Lambda!"),
        ([1, 2], b"[1, 2]"),
        (None, b"null"),
        (7, b"7"),
        (True, b"true"),
    ],
)
def test_a_result_without_status_is_a_body_in_2_0_and_a_fault_in_1_0(
    result: Any, body: bytes
) -> None:
    assert read(result) == Response(200, [(b"content-type", b"application/json")], body)
    with pytest.raises(MalformedReply):
        read(result, "1.0")


def test_cookies_belong_to_2_0_and_several_values_to_1_0() -> None:
    result = {
        "statusCode": 200,
        "headers": {"x-one": "1", "X-Both": "a"},
        "multiValueHeaders": {"x-both": ["a", "b"], "Set-Cookie": ["c=1", "d=2"]},
        "cookies": ["e=1; Path=/", "f=2"],
    }
    assert read(result).headers == [
        (b"x-one", b"1"),
        (b"x-both", b"a"),
        (b"set-cookie", b"e=1; Path=/"),
        (b"set-cookie", b"f=2"),
    ]
    assert read(result, "1.0").headers == [
        (b"x-one", b"1"),
        (b"x-both", b"a"),
        (b"x-both", b"b"),
        (b"set-cookie", b"c=1"),
        (b"set-cookie", b"d=2"),
    ]


@FORMATS
def test_headers_of_the_connection_are_the_servers(payload_format: str) -> None:
    given = {
        "Connection": "close",
        "Content-Length": "3",
        "Keep-Alive": "x",
        "Transfer-Encoding": "chunked",
        "Upgrade": "h2c",
        "Trailer": "x",
        "TE": "x",
        "Proxy-Connection": "x",
        "ApiGw-RequestId": "x",
        "X-Kept": "y",
    }
    assert read({"statusCode": 200, "headers": given}, payload_format).headers == [
        (b"x-kept", b"y")
    ]


@FORMATS
@pytest.mark.parametrize(
    "result",
    [
        {"statusCode": None},
        {"statusCode": True},
        {"statusCode": 200.5},
        {"statusCode": "OK"},
        {"statusCode": "²00"},
        {"statusCode": "-20"},
        {"statusCode": [200]},
        {"statusCode": 99},
        {"statusCode": 100},
        {"statusCode": 101},
        {"statusCode": 600},
        {"statusCode": 10**30},
        {"statusCode": 200, "headers": "x"},
        {"statusCode": 200, "headers": ["x"]},
        {"statusCode": 200, "headers": {"a": ["b"]}},
        {"statusCode": 200, "headers": {"a": {"b": "c"}}},
        {"statusCode": 200, "headers": {"a": "b\r\nSet-Cookie: c=d"}},
        {"statusCode": 200, "headers": {"a": "b\nc"}},
        {"statusCode": 200, "headers": {"a": "b\rc"}},
        {"statusCode": 200, "headers": {"a": "b\x00"}},
        {"statusCode": 200, "headers": {"a": "€"}},
        {"statusCode": 200, "headers": {"a\r\nb": "c"}},
        {"statusCode": 200, "headers": {"a b": "c"}},
        {"statusCode": 200, "headers": {"a:": "c"}},
        {"statusCode": 200, "headers": {"é": "c"}},
        {"statusCode": 200, "headers": {"": "c"}},
        {"statusCode": 200, "body": {"a": 1}},
        {"statusCode": 200, "body": 5},
        {"statusCode": 200, "body": ["x"]},
        {"statusCode": 200, "body": "not base64", "isBase64Encoded": True},
        {"statusCode": 200, "body": "AAA", "isBase64Encoded": True},
        {"statusCode": 200, "body": "é", "isBase64Encoded": True},
        {"statusCode": 200, "body": "AAAA", "isBase64Encoded": "true"},
    ],
)
def test_what_cannot_be_sent_is_malformed(result: Any, payload_format: str) -> None:
    with pytest.raises(MalformedReply):
        read(result, payload_format)


@pytest.mark.parametrize(
    ("member", "value", "payload_format"),
    [
        ("cookies", "a=b", "2.0"),
        ("cookies", [1], "2.0"),
        ("cookies", ["a=b\r\nX: y"], "2.0"),
        ("multiValueHeaders", ["x"], "1.0"),
        ("multiValueHeaders", {"a": "b"}, "1.0"),
        ("multiValueHeaders", {"a": [["b"]]}, "1.0"),
        ("multiValueHeaders", {"a": ["b\r\nX: y"]}, "1.0"),
        ("multiValueHeaders", {"a\n": ["b"]}, "1.0"),
    ],
)
def test_members_of_one_format(member: str, value: Any, payload_format: str) -> None:
    with pytest.raises(MalformedReply):
        read({"statusCode": 200, member: value}, payload_format)


@FORMATS
@pytest.mark.parametrize("payload", [b"", b"{", b"NaN", b'"\\ud800"', b"\xff"])
def test_what_is_not_json_is_malformed(payload: bytes, payload_format: str) -> None:
    with pytest.raises(MalformedReply):
        read_reply(payload, payload_format)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(), SCALARS, max_size=3)
RESULTS = VALUES | st.fixed_dictionaries(
    {"statusCode": st.integers(200, 599) | VALUES},
    optional={
        "headers": st.dictionaries(st.text() | st.just("x"), SCALARS, max_size=4) | VALUES,
        "multiValueHeaders": st.dictionaries(st.text(), st.lists(SCALARS), max_size=3) | VALUES,
        "cookies": st.lists(st.text()) | VALUES,
        "body": VALUES,
        "isBase64Encoded": VALUES,
    },
)


@given(result=RESULTS, payload_format=st.sampled_from(["1.0", "2.0"]))
def test_any_result_is_a_sound_response_or_malformed(result: Any, payload_format: str) -> None:
    try:
        response = read(result, payload_format)
    except MalformedReply:
        return
    assert 200 <= response.status <= 599
    for name, value in response.headers:
        assert re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9a-z]+", name)
        assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value)
