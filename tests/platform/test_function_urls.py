"""Function URLs as the real client sees them, and what a gateway keeps of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from redis.asyncio import Redis
from tests.platform.conftest import Call
from tests.platform.test_lambda_operations import ARN, create, plain, refused

from trivet.aws.services import Services
from trivet.core.urls import FunctionUrl
from trivet.store.urls import UrlStore

pytestmark = pytest.mark.anyio

NOT_THERE = (404, "ResourceNotFoundException", "The resource you requested does not exist.")
NO_FUNCTION = (404, "ResourceNotFoundException", "Function does not exist")
CORS = {
    "AllowCredentials": True,
    "AllowHeaders": ["content-type"],
    "AllowMethods": ["GET", "POST"],
    "AllowOrigins": ["https://example.com"],
    "ExposeHeaders": ["date"],
    "MaxAge": 0,
}


async def create_url(call: Call, **settings: Any) -> Any:
    given = {"FunctionName": "hello", "AuthType": "NONE", **settings}
    return await call("lambda", "create_function_url_config", **given)


async def url_of(call: Call) -> Any:
    return await call("lambda", "get_function_url_config", FunctionName="hello")


def id_of(config: Any) -> str:
    found = re.fullmatch(
        r"http://([a-z0-9]{32})\.lambda-url\.us-east-1\.localhost:8080/", config["FunctionUrl"]
    )
    assert found is not None, config["FunctionUrl"]
    return found[1]


async def test_a_url_is_made_shown_changed_and_taken_away(call: Call) -> None:
    await create(call)
    made = await create_url(call, AuthType="AWS_IAM", Cors=CORS)
    assert made["ResponseMetadata"]["HTTPStatusCode"] == 201
    id_of(made)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", made["CreationTime"])
    assert plain(made, "CreationTime", "FunctionUrl") == {
        "FunctionArn": ARN,
        "AuthType": "AWS_IAM",
        "Cors": CORS,
        "InvokeMode": "BUFFERED",
    }
    expected = {**plain(made), "LastModifiedTime": made["CreationTime"]}
    assert plain(await url_of(call)) == expected
    listed = await call("lambda", "list_function_url_configs", FunctionName="hello")
    assert plain(listed) == {"FunctionUrlConfigs": [expected]}

    changed = await call("lambda", "update_function_url_config", FunctionName=ARN, AuthType="NONE")
    assert plain(changed, "LastModifiedTime") == {**plain(made), "AuthType": "NONE"}
    assert changed["LastModifiedTime"] > made["CreationTime"]
    changed = await call("lambda", "update_function_url_config", FunctionName="hello", Cors={})
    assert "Cors" not in changed
    assert id_of(changed) == id_of(made)

    gone = await call("lambda", "delete_function_url_config", FunctionName="hello")
    assert gone["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert await refused(call, "get_function_url_config", FunctionName="hello") == NOT_THERE
    listed = await call("lambda", "list_function_url_configs", FunctionName="hello")
    assert listed["FunctionUrlConfigs"] == []


async def test_a_function_has_one_url(call: Call) -> None:
    await create(call)
    made = await create_url(call)
    assert await refused(
        call, "create_function_url_config", FunctionName="hello", AuthType="NONE"
    ) == (
        409,
        "ResourceConflictException",
        f"Failed to create function url config for [functionArn = {ARN}]. Error message:  "
        "FunctionUrlConfig exists for this Lambda function",
    )
    assert id_of(await url_of(call)) == id_of(made)


async def test_nothing_is_made_for_what_is_not_there(call: Call) -> None:
    for operation, settings, expected in (
        ("create_function_url_config", {"AuthType": "NONE"}, NO_FUNCTION),
        ("get_function_url_config", {}, NOT_THERE),
        ("list_function_url_configs", {}, NO_FUNCTION),
        ("update_function_url_config", {}, NO_FUNCTION),
        ("delete_function_url_config", {}, NOT_THERE),
    ):
        assert await refused(call, operation, FunctionName="hello", **settings) == expected
    await create(call)
    for operation, settings, expected in (
        ("create_function_url_config", {"AuthType": "NONE", "Qualifier": "live"}, NO_FUNCTION),
        ("get_function_url_config", {}, NOT_THERE),
        ("update_function_url_config", {}, NOT_THERE),
        ("delete_function_url_config", {}, NOT_THERE),
    ):
        assert await refused(call, operation, FunctionName="hello", **settings) == expected


async def test_streams_are_refused_in_words(call: Call) -> None:
    await create(call)
    status, kind, text = await refused(
        call,
        "create_function_url_config",
        FunctionName="hello",
        AuthType="NONE",
        InvokeMode="RESPONSE_STREAM",
    )
    assert (status, kind) == (501, "NotImplementedException")
    assert "Streamed responses" in text
    assert await refused(call, "get_function_url_config", FunctionName="hello") == NOT_THERE


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"AuthType": "OPEN"}, "at 'authType' failed to satisfy constraint"),
        ({"Cors": {"AllowMethods": ["OPTIONS"]}}, "at 'cors.allowMethods' failed to satisfy"),
        ({"Cors": {"MaxAge": 86_401}}, "at 'cors.maxAge' failed to satisfy constraint"),
        ({"Qualifier": "$LATEST"}, "at 'qualifier' failed to satisfy constraint"),
        ({"Qualifier": "1"}, "at 'qualifier' failed to satisfy constraint"),
    ],
)
async def test_settings_that_cannot_be(call: Call, settings: dict[str, Any], text: str) -> None:
    await create(call)
    given = {"FunctionName": "hello", "AuthType": "NONE", **settings}
    status, kind, said = await refused(call, "create_function_url_config", **given)
    assert (status, kind) == (400, "ValidationException")
    assert text in said


async def test_a_url_ends_with_its_function(call: Call, services: Services, durable: Redis) -> None:
    await create(call)
    before = id_of(await create_url(call))
    assert services.urls.match(f"{before}.lambda-url.us-east-1.localhost", "/") is not None
    await call("lambda", "delete_function", FunctionName="hello")
    assert services.urls.match(f"{before}.lambda-url.us-east-1.localhost", "/") is None
    await create(call)
    assert await refused(call, "get_function_url_config", FunctionName="hello") == NOT_THERE
    assert await restarted(durable) == "<UrlStore 0 URLs>"


# -------------------------------------------------------------------------- the store


async def restarted(durable: Redis) -> str:
    store = UrlStore(durable)
    await store.load()
    return repr(store)


async def test_urls_are_there_after_a_restart(
    call: Call, services: Services, durable: Redis
) -> None:
    await create(call)
    await create_url(call, Cors=CORS)
    again = UrlStore(durable)
    assert again.get("hello") is None
    await again.load()
    assert again.get("hello") == services.urls.get("hello") is not None


async def test_a_function_named_without_a_url_has_none(
    call: Call, services: Services, durable: Redis
) -> None:
    def make(before: FunctionUrl | None) -> FunctionUrl:
        assert before is None
        return FunctionUrl(
            id="a" * 32, function="ghost", auth_type="NONE", created_us=0, modified_us=0
        )

    assert await services.urls.put("ghost", make) is None
    assert services.urls.get("ghost") is None
    assert await restarted(durable) == "<UrlStore 0 URLs>"


async def test_a_url_is_reached_by_host_or_by_path(call: Call, services: Services) -> None:
    await create(call)
    url_id = id_of(await create_url(call))
    for host, path, seen in (
        (f"{url_id}.lambda-url.us-east-1.localhost", "/a/b", "/a/b"),
        (f"{url_id}.lambda-url.eu-west-1.example.com", "/", "/"),
        ("127.0.0.1", f"/_url/{url_id}/a/b", "/a/b"),
        ("127.0.0.1", f"/_url/{url_id}", "/"),
    ):
        match = services.urls.match(host, path)
        assert match is not None
        assert (match.function, match.path, match.api_id) == ("hello", seen, url_id)
        assert match.route_key == "$default"
        assert match.url == services.urls.get("hello")
    for host, path in (
        (f"{url_id}.lambda-url", "/"),
        (f"{url_id}.execute-api.us-east-1.localhost", "/"),
        (f"x.{url_id}.lambda-url.us-east-1.localhost", "/"),
        ("127.0.0.1", f"/_url/{url_id}x/"),
        ("127.0.0.1", f"/_urls/{url_id}/"),
        (f"{'b' * 32}.lambda-url.us-east-1.localhost", f"/_url/{url_id}/"),
    ):
        assert services.urls.match(host, path) is None
