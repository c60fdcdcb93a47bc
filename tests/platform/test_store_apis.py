"""The store of APIs, and which function a public request meets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from trivet.bus import keys
from trivet.core.invocations import Match
from trivet.errors import Unavailable
from trivet.store.apis import DEFAULT_API, Api, ApiStore, Integration, Route, Stage

pytestmark = pytest.mark.anyio

STAGE = Stage(created_ms=1, updated_ms=1)
LOCAL = "127.0.0.1:8080"


def api(id: str, *route_keys: str, function: str = "hello", **fields: object) -> Api:
    made = Api(
        id=id,
        name=id,
        created_ms=1,
        stage=STAGE,
        integrations=(Integration(id="i", function=function, payload_format="2.0"),),
        routes=tuple(
            Route(id=f"r{n}", key=key, integration_id="i") for n, key in enumerate(route_keys)
        ),
    )
    return replace(made, **fields)  # type: ignore[arg-type]  # any field, by its name


def quick(id: str, function: str, *, created_ms: int = 1) -> Api:
    return api(id, "$default", function=function, quick_function=function, created_ms=created_ms)


@pytest.fixture
async def apis(durable: Redis) -> ApiStore:
    store = ApiStore(durable)
    await store.load()
    await store.ensure_default()
    return store


async def default_route(apis: ApiStore, key: str, function: str) -> None:
    await apis.add_route(
        route_key=key, function=function, payload_format="1.0", route_id=f"id-{function}"
    )


async def test_apis_are_there_for_the_next_gateway(apis: ApiStore, durable: Redis) -> None:
    await apis.create(api("abc", "GET /users/{id}", tags={"a": "b"}, description="d"))
    second = ApiStore(durable)
    assert second.all() == []
    await second.load()
    assert second.all() == apis.all()
    assert second.get("abc") == apis.get("abc")
    assert repr(second) == "<ApiStore 2 APIs>"
    match = second.match("abc.execute-api.localhost:8080", "GET", "/users/7")
    assert match == Match(
        function="hello",
        payload_format="2.0",
        route_key="GET /users/{id}",
        api_id="abc",
        path="/users/7",
        path_parameters={"id": "7"},
    )


async def test_a_host_name_means_that_api_and_no_other(apis: ApiStore) -> None:
    await default_route(apis, "ANY /here", "default")
    await apis.create(api("abc", "GET /there"))
    host = "ABC.execute-api.us-east-1.amazonaws.com"
    assert apis.match(host, "GET", "/there") is not None
    assert apis.match(host, "GET", "/here") is None
    assert apis.match("abc.execute-api", "GET", "/there") is not None
    assert apis.match("xyz.execute-api.localhost", "GET", "/here") is None
    assert apis.match("abc.localhost", "GET", "/here") is not None


async def test_the_platforms_own_api_stands_as_it_is(apis: ApiStore) -> None:
    await default_route(apis, "ANY /hello-world", "hello-world")
    match = apis.match(LOCAL, "POST", "/hello-world")
    assert match is not None
    assert (match.function, match.route_key) == ("hello-world", "ANY /hello-world")
    assert (match.api_id, match.payload_format) == (DEFAULT_API, "1.0")
    for path in ("/", "/hello-world/", "/hello-world/x", "/other", "*", ""):
        assert apis.match(LOCAL, "GET", path) is None


async def test_a_default_route_is_added_once(apis: ApiStore) -> None:
    await default_route(apis, "ANY /x", "one")
    await default_route(apis, "ANY /x", "two")
    default = apis.get(DEFAULT_API)
    assert default is not None
    assert [i.function for i in default.integrations] == ["one"]
    await apis.ensure_default()
    assert apis.get(DEFAULT_API) is default


async def test_a_path_may_name_an_api(apis: ApiStore) -> None:
    await apis.create(api("abc", "GET /", "GET /a/{x}"))
    root, deep = apis.match(LOCAL, "GET", "/_api/abc"), apis.match(LOCAL, "GET", "/_api/abc/a/b")
    assert root is not None
    assert deep is not None
    assert (root.path, deep.path, deep.path_parameters) == ("/", "/a/b", {"x": "b"})
    assert apis.match(LOCAL, "GET", "/_api/abc/other") is None
    assert apis.match(LOCAL, "GET", "/_api/xyz/a/b") is None


async def test_a_quick_created_api_stands_at_its_functions_name(apis: ApiStore) -> None:
    await apis.create(quick("later", "hello-world", created_ms=2))
    await apis.create(quick("first", "hello-world", created_ms=1))
    for path in ("/hello-world", "/hello-world/below"):
        match = apis.match(LOCAL, "GET", path)
        assert match is not None
        assert (match.api_id, match.route_key, match.path) == ("first", "$default", path)
    assert apis.match(LOCAL, "GET", "/hello-worlds") is None
    await apis.delete("first")
    match = apis.match(LOCAL, "GET", "/hello-world")
    assert match is not None
    assert match.api_id == "later"


async def test_own_routes_come_before_quick_ones_and_these_before_own_default(
    apis: ApiStore,
) -> None:
    await apis.create(quick("abc", "hello"))
    await default_route(apis, "$default", "fallback")
    await default_route(apis, "GET /hello", "own")

    def met(method: str, path: str) -> str:
        match = apis.match(LOCAL, method, path)
        assert match is not None
        return match.function

    assert met("GET", "/hello") == "own"
    assert met("POST", "/hello") == "hello"
    assert met("GET", "/elsewhere") == "fallback"


async def test_without_a_stage_or_an_integration_nothing_answers(apis: ApiStore) -> None:
    await apis.create(api("abc", "GET /a", stage=None))
    await apis.create(api("def", "GET /a", integrations=()))
    assert apis.match("abc.execute-api.localhost", "GET", "/a") is None
    assert apis.match("def.execute-api.localhost", "GET", "/a") is None
    await apis.change("abc", lambda before: replace(before, stage=STAGE))
    assert apis.match("abc.execute-api.localhost", "GET", "/a") is not None


async def test_a_change_that_is_refused_changes_nothing(apis: ApiStore) -> None:
    await apis.create(api("abc", "GET /a"))

    def refuse(before: Api) -> Api:
        raise ValueError(before.id)

    with pytest.raises(ValueError, match="abc"):
        await apis.change("abc", refuse)
    assert apis.match("abc.execute-api.localhost", "GET", "/a") is not None
    assert await apis.change("nobody", refuse) is None
    assert await apis.delete("nobody") is False


async def test_a_write_of_unknown_fate_is_read_again(apis: ApiStore, durable: Redis) -> None:
    await durable.config_set("maxmemory", "1")
    try:
        with pytest.raises(Unavailable):
            await apis.create(api("lost", "GET /a"))
    finally:
        await durable.config_set("maxmemory", "0")
    assert apis.get("lost") is None
    # What another wrote meanwhile stands in for a write that did arrive.
    other = ApiStore(durable)
    await other.create(api("arrived", "GET /a"))
    await apis.create(api("next", "GET /a"))
    assert {each.id for each in apis.all()} == {DEFAULT_API, "arrived", "next"}
    assert await durable.hlen(keys.APIS) == 3
