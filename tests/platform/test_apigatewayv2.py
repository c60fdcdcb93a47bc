"""The API Gateway v2 API as the real client sees it, and the routes that it makes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.platform.conftest import Call, zip_of

from trivet.aws.services import Services

pytestmark = pytest.mark.anyio

FUNCTION = "arn:aws:lambda:us-east-1:123456789012:function:hello-world"
INVOCATION = (
    "arn:aws:apigateway:us-east-1:lambda:path/2015-03-31/functions/" + FUNCTION + "/invocations"
)
ABSENT = (501, "NotImplementedException")


async def create_function(call: Call) -> None:
    await call(
        "lambda",
        "create_function",
        FunctionName="hello-world",
        Runtime="python3.11",
        Role="arn:aws:iam::123456789012:role/any",
        Handler="app.handler",
        Code={"ZipFile": zip_of(app="")},
    )


async def gateway(call: Call, operation: str, **settings: Any) -> Any:
    answer = await call("apigatewayv2", operation, **settings)
    return {k: v for k, v in answer.items() if k != "ResponseMetadata"}


async def refused(call: Call, operation: str, **settings: Any) -> tuple[int, str, str]:
    with pytest.raises(ClientError) as error:
        await call("apigatewayv2", operation, **settings)
    response: Any = error.value.response
    status = response["ResponseMetadata"]["HTTPStatusCode"]
    return status, response["Error"]["Code"], response["Error"]["Message"]


async def new_api(call: Call, **settings: Any) -> str:
    api = await gateway(call, "create_api", Name="api", ProtocolType="HTTP", **settings)
    api_id: str = api["ApiId"]
    return api_id


async def new_integration(call: Call, api_id: str, **settings: Any) -> str:
    given = {
        "IntegrationType": "AWS_PROXY",
        "IntegrationUri": FUNCTION,
        "PayloadFormatVersion": "2.0",
        **settings,
    }
    integration = await gateway(call, "create_integration", ApiId=api_id, **given)
    integration_id: str = integration["IntegrationId"]
    return integration_id


async def test_quick_create_makes_all_of_it(call: Call, services: Services) -> None:
    await create_function(call)
    api = await gateway(
        call, "create_api", Name="quick", ProtocolType="HTTP", Target=FUNCTION, Tags={"a": "b"}
    )
    api_id = api["ApiId"]
    assert re.fullmatch(r"[a-z0-9]{10}", api_id)
    assert api["ApiEndpoint"] == f"http://{api_id}.execute-api.localhost:8080"
    assert (api["Name"], api["ProtocolType"], api["Tags"]) == ("quick", "HTTP", {"a": "b"})
    assert api["RouteSelectionExpression"] == "$request.method $request.path"
    assert await gateway(call, "get_api", ApiId=api_id) == api

    (integration,) = (await gateway(call, "get_integrations", ApiId=api_id))["Items"]
    assert integration["IntegrationUri"] == FUNCTION
    assert integration["PayloadFormatVersion"] == "2.0"
    assert integration["ApiGatewayManaged"]
    (route,) = (await gateway(call, "get_routes", ApiId=api_id))["Items"]
    assert route["RouteKey"] == "$default"
    assert route["Target"] == f"integrations/{integration['IntegrationId']}"
    (stage,) = (await gateway(call, "get_stages", ApiId=api_id))["Items"]
    assert (stage["StageName"], stage["AutoDeploy"]) == ("$default", True)

    match = services.platform.match("127.0.0.1:8080", "GET", "/hello-world")
    assert match is not None
    assert (match.function, match.payload_format, match.path) == (
        "hello-world",
        "2.0",
        "/hello-world",
    )


@pytest.mark.parametrize("key", ["GET /users/{id}", "$default"])
async def test_quick_create_with_the_invocation_arn_and_a_key(
    call: Call, services: Services, key: str
) -> None:
    await create_function(call)
    api_id = await new_api(call, Target=INVOCATION, RouteKey=key)
    match = services.platform.match(f"{api_id}.execute-api.localhost", "GET", "/users/1")
    assert match is not None
    assert (match.function, match.route_key) == ("hello-world", key)


async def test_built_step_by_step(call: Call, services: Services) -> None:
    api_id = await new_api(
        call,
        RouteSelectionExpression="$request.method $request.path",
        ApiKeySelectionExpression="$request.header.x-api-key",
        DisableExecuteApiEndpoint=False,
    )
    integration_id = await new_integration(
        call,
        api_id,
        IntegrationUri=INVOCATION,
        PayloadFormatVersion="1.0",
        ConnectionType="INTERNET",
        IntegrationMethod="POST",
        TimeoutInMillis=30_000,
    )
    route = await gateway(
        call,
        "create_route",
        ApiId=api_id,
        RouteKey="ANY /p/{proxy+}",
        Target=f"integrations/{integration_id}",
        AuthorizationType="NONE",
    )
    host = f"{api_id}.execute-api.localhost:8080"
    assert services.platform.match(host, "GET", "/p/a") is None
    stage = await gateway(call, "create_stage", ApiId=api_id, StageName="$default", AutoDeploy=True)
    assert stage["StageName"] == "$default"
    assert await gateway(call, "get_stage", ApiId=api_id, StageName="$default") == stage
    match = services.platform.match(host, "GET", "/p/a/b")
    assert match is not None
    assert (match.payload_format, match.path_parameters) == ("1.0", {"proxy": "a/b"})

    read = await gateway(call, "get_route", ApiId=api_id, RouteId=route["RouteId"])
    assert read == route
    read = await gateway(call, "get_integration", ApiId=api_id, IntegrationId=integration_id)
    assert read["IntegrationUri"] == INVOCATION
    assert read["TimeoutInMillis"] == 30_000

    await gateway(call, "delete_route", ApiId=api_id, RouteId=route["RouteId"])
    assert services.platform.match(host, "GET", "/p/a") is None
    await gateway(call, "delete_integration", ApiId=api_id, IntegrationId=integration_id)
    await gateway(call, "delete_stage", ApiId=api_id, StageName="$default")
    await gateway(call, "delete_api", ApiId=api_id)
    assert (await refused(call, "get_api", ApiId=api_id))[0] == 404


async def test_the_platforms_own_api_takes_routes(call: Call, services: Services) -> None:
    integration_id = await new_integration(call, "default", PayloadFormatVersion="1.0")
    await gateway(
        call,
        "create_route",
        ApiId="default",
        RouteKey="ANY /hello-world",
        Target=f"integrations/{integration_id}",
    )
    assert services.platform.match("localhost:8080", "GET", "/hello-world") is not None
    assert (await refused(call, "delete_api", ApiId="default"))[:2] == (400, "BadRequestException")


async def test_renamed(call: Call) -> None:
    api_id = await new_api(call, Description="before")
    updated = await gateway(call, "update_api", ApiId=api_id, Name="new", Description="after")
    assert (updated["Name"], updated["Description"]) == ("new", "after")
    assert await gateway(call, "get_api", ApiId=api_id) == updated


async def test_lists_come_in_pages(call: Call) -> None:
    ids = [await new_api(call) for _ in range(3)]
    first = await gateway(call, "get_apis", MaxResults="2")
    rest = await gateway(call, "get_apis", MaxResults="2", NextToken=first["NextToken"])
    found = [api["ApiId"] for api in first["Items"] + rest["Items"]]
    assert sorted(found) == sorted(["default", *ids])
    assert "NextToken" not in rest
    assert (await refused(call, "get_apis", MaxResults="many"))[:2] == (400, "BadRequestException")
    assert (await refused(call, "get_apis", NextToken="9" * 5_000))[0] == 400


async def test_what_is_not_found(call: Call) -> None:
    assert await refused(call, "get_api", ApiId="nothere") == (
        404,
        "NotFoundException",
        "Invalid API identifier specified 123456789012:nothere",
    )
    api_id = await new_api(call)
    for operation, settings in (
        ("get_route", {"RouteId": "x"}),
        ("delete_route", {"RouteId": "x"}),
        ("get_integration", {"IntegrationId": "x"}),
        ("delete_integration", {"IntegrationId": "x"}),
        ("get_stage", {"StageName": "$default"}),
        ("delete_stage", {"StageName": "$default"}),
        ("create_route", {"RouteKey": "GET /", "Target": "integrations/x"}),
    ):
        answer = await refused(call, operation, ApiId=api_id, **settings)
        assert answer[:2] == (404, "NotFoundException")
        assert (await refused(call, operation, ApiId="x", **settings))[0] == 404


async def test_a_route_key_is_taken_once(call: Call) -> None:
    api_id = await new_api(call)
    await gateway(call, "create_route", ApiId=api_id, RouteKey="GET /users/{id}")
    for key in ("GET /users/{id}", "GET /users/{name}"):
        assert await refused(call, "create_route", ApiId=api_id, RouteKey=key) == (
            409,
            "ConflictException",
            f"Route with key {key} already exists for this API",
        )


async def test_an_integration_in_use_stays(call: Call) -> None:
    await create_function(call)
    api_id = await new_api(call, Target=FUNCTION)
    (integration,) = (await gateway(call, "get_integrations", ApiId=api_id))["Items"]
    assert (
        await refused(
            call,
            "delete_integration",
            ApiId=api_id,
            IntegrationId=integration["IntegrationId"],
        )
    )[:2] == (409, "ConflictException")
    assert (
        await refused(call, "create_stage", ApiId=api_id, StageName="$default", AutoDeploy=True)
    )[:2] == (409, "ConflictException")


@pytest.mark.parametrize("key", ["users", "get /", "GET users", "GET /{a+}/b", ""])
async def test_a_malformed_route_key(call: Call, key: str) -> None:
    api_id = await new_api(call)
    status, kind, text = await refused(call, "create_route", ApiId=api_id, RouteKey=key)
    assert (status, kind) == (400, "BadRequestException")
    assert text.startswith("The provided route key is not formatted properly")


@pytest.mark.parametrize(
    "target",
    [
        "hello-world",
        "https://example.com",
        FUNCTION.replace("us-east-1", "eu-west-1"),
        FUNCTION.replace("123456789012", "999999999999"),
        INVOCATION.replace("apigateway:us-east-1", "apigateway:eu-west-1"),
    ],
)
async def test_a_target_that_is_no_function_here(call: Call, target: str) -> None:
    await create_function(call)
    settings = {"Name": "api", "ProtocolType": "HTTP", "Target": target}
    assert (await refused(call, "create_api", **settings))[:2] == (400, "BadRequestException")


async def test_a_target_that_does_not_exist(call: Call) -> None:
    settings = {"Name": "api", "ProtocolType": "HTTP", "Target": FUNCTION}
    assert await refused(call, "create_api", **settings) == (
        404,
        "NotFoundException",
        f"Function not found: {FUNCTION}",
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"ProtocolType": "WEBSOCKET", "RouteSelectionExpression": "$request.body.action"},
        {"CorsConfiguration": {"AllowOrigins": ["*"]}},
        {"DisableExecuteApiEndpoint": True},
        {"CredentialsArn": "arn:aws:iam::123456789012:role/r"},
    ],
)
async def test_apis_that_are_not_here(call: Call, settings: dict[str, Any]) -> None:
    given = {"Name": "api", "ProtocolType": "HTTP", **settings}
    assert (await refused(call, "create_api", **given))[:2] == ABSENT


@pytest.mark.parametrize(
    ("operation", "settings"),
    [
        ("create_integration", {"IntegrationType": "HTTP_PROXY", "IntegrationUri": "https://a.b"}),
        ("create_integration", {"TimeoutInMillis": 1_000}),
        ("create_integration", {"ConnectionType": "VPC_LINK", "ConnectionId": "x"}),
        ("create_integration", {"RequestParameters": {"a": "b"}}),
        ("create_integration", {"IntegrationUri": f"{FUNCTION}:prod"}),
        ("create_route", {"AuthorizationType": "JWT", "AuthorizerId": "x"}),
        ("create_route", {"ApiKeyRequired": True}),
        ("create_stage", {"StageName": "prod", "AutoDeploy": True}),
        ("create_stage", {"StageName": "$default"}),
        ("create_stage", {"DefaultRouteSettings": {"ThrottlingBurstLimit": 1}}),
        ("update_api", {"Target": FUNCTION}),
    ],
)
async def test_what_is_not_here_is_refused_in_words(
    call: Call, operation: str, settings: dict[str, Any]
) -> None:
    api_id = await new_api(call)
    required: dict[str, dict[str, Any]] = {
        "create_integration": {"IntegrationType": "AWS_PROXY", "IntegrationUri": FUNCTION},
        "create_route": {"RouteKey": "GET /"},
        "create_stage": {"StageName": "$default", "AutoDeploy": "DefaultRoute" in str(settings)},
        "update_api": {},
    }
    given = {"ApiId": api_id, **required[operation], **settings}
    assert (await refused(call, operation, **given))[:2] == ABSENT
