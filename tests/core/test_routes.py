"""Routes: what is a route key, and which of several a request meets."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.core.routes import RouteTable, parse_route_key


def table(*keys: str) -> RouteTable[str]:
    parsed = [parse_route_key(key) for key in keys]
    return RouteTable((key, key.text) for key in parsed if key is not None)


@pytest.mark.parametrize(
    "text",
    [
        "$default",
        "GET /",
        "GET /users/{id}",
        "ANY /p/{proxy+}",
        "POST /a/{x}/b/{y+}",
        "DELETE /.well-known/a~b_c-d",
    ],
)
def test_route_keys_that_aws_accepts(text: str) -> None:
    key = parse_route_key(text)
    assert key is not None
    assert key.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GET",
        "GET users",
        "get /users",
        "FETCH /users",
        "GET  /users",
        "GET /users/{id",
        "GET /users/{}",
        "GET /users/a{id}",
        "GET /{proxy+}/more",
        "GET /{a}/{a}",
        "GET /a b",
        "GET /a?b=c",
        "GET /a\x00",
        "$connect",
        " $default",
    ],
)
def test_route_keys_that_are_malformed(text: str) -> None:
    assert parse_route_key(text) is None


ROUTES = table(
    "GET /pets/dog/1",
    "GET /pets/dog/{id}",
    "GET /pets/{proxy+}",
    "ANY /{proxy+}",
    "$default",
)


@pytest.mark.parametrize(
    ("method", "path", "expected", "parameters"),
    [
        ("GET", "/pets/dog/1", "GET /pets/dog/1", {}),
        ("GET", "/pets/dog/2", "GET /pets/dog/{id}", {"id": "2"}),
        ("GET", "/pets/cat/1", "GET /pets/{proxy+}", {"proxy": "cat/1"}),
        ("POST", "/test/5", "ANY /{proxy+}", {"proxy": "test/5"}),
        ("POST", "/pets/dog/1", "ANY /{proxy+}", {"proxy": "pets/dog/1"}),
        ("GET", "/", "$default", {}),
        ("GET", "/pets", "ANY /{proxy+}", {"proxy": "pets"}),
        ("GET", "/pets/", "ANY /{proxy+}", {"proxy": "pets/"}),
        ("GET", "/pets/dog/", "GET /pets/{proxy+}", {"proxy": "dog/"}),
    ],
)
def test_precedence(method: str, path: str, expected: str, parameters: dict[str, str]) -> None:
    found = ROUTES.match(method, path)
    assert found is not None
    assert (found.target, found.parameters) == (expected, parameters)


def test_a_methods_own_route_comes_before_any() -> None:
    routes = table("ANY /users/{id}", "GET /users/{name}")
    get, put = routes.match("GET", "/users/7"), routes.match("PUT", "/users/7")
    assert get is not None
    assert put is not None
    assert (get.target, get.parameters) == ("GET /users/{name}", {"name": "7"})
    assert (put.target, put.parameters) == ("ANY /users/{id}", {"id": "7"})


def test_a_full_match_of_any_comes_before_a_greedy_one_of_the_method() -> None:
    found = table("GET /{proxy+}", "ANY /a/{b}").match("GET", "/a/1")
    assert found is not None
    assert found.target == "ANY /a/{b}"


def test_a_dead_end_is_left_again() -> None:
    found = table("GET /a/{x}/c", "POST /a/b/c", "GET /a/b/d").match("GET", "/a/b/c")
    assert found is not None
    assert found.target == "GET /a/{x}/c"


@pytest.mark.parametrize("path", ["/nothing", "/users", "/users/", "/users/1/2", "users/1", ""])
def test_only_configured_routes_match(path: str) -> None:
    assert table("GET /users/{id}").match("GET", path) is None


def test_shape_ignores_the_names_of_variables() -> None:
    first, second = parse_route_key("GET /a/{x}"), parse_route_key("GET /a/{y}")
    greedy, written = parse_route_key("GET /a/{x+}"), parse_route_key("GET /a/")
    assert first is not None
    assert second is not None
    assert greedy is not None
    assert written is not None
    assert first.shape == second.shape
    assert len({first.shape, greedy.shape, written.shape}) == 3


SEGMENT = st.sampled_from(["a", "b", "", "{x}", "{y+}"])
PATHS = st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=4)


@given(st.lists(st.tuples(st.sampled_from(["GET", "ANY"]), st.lists(SEGMENT, max_size=3))), PATHS)
def test_the_tree_agrees_with_trying_every_route(
    routes: list[tuple[str, list[str]]], segments: list[str]
) -> None:
    keys = [f"{method} /" + "/".join(parts) for method, parts in routes]
    path = "/" + "/".join(segments)
    meeting = []
    for key in keys:
        if parse_route_key(key) is None:
            continue
        pattern = key.split(" ")[1].replace("{x}", "[^/]+").replace("{y+}", ".+")
        if re.fullmatch(pattern, path):
            meeting.append(key)
    found = table(*keys).match("GET", path)
    assert (found is not None) == bool(meeting)
    if found is not None:
        assert found.target in meeting
        if any("+" not in key for key in meeting):
            assert "+" not in found.target
