"""APIs: create, read, change and delete them; quick create makes one from a function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from trivet.aws.services import Caller, Operation, Services
from trivet.core.routes import DEFAULT
from trivet.errors import NotImplementedHere
from trivet.store.apis import DEFAULT_API, Api, Integration, Route, Stage

from .absent import API_KEY_SELECTION, ROUTE_SELECTION, absent, refuse_absent
from .refusals import bad_request, no_api, not_found
from .routes import requests_of
from .targets import changed, existing, function_of, instant_ms, new_id, page


async def create_api(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    if params["ProtocolType"] != "HTTP":
        raise NotImplementedHere("Trivet does not have WebSocket APIs yet. Use ProtocolType HTTP.")
    refuse_absent(params)
    target, key = params.get("Target"), params.get("RouteKey")
    if key is not None and target is None:
        raise bad_request("Quick create needs both a RouteKey and a Target")
    now_ms = instant_ms()
    api = Api(
        id=new_id(),
        name=params["Name"],
        created_ms=now_ms,
        description=params.get("Description"),
        version=params.get("Version"),
        tags=params.get("Tags", {}),
    )
    if target is not None:
        function = function_of(services, target)
        if await services.functions.get(function) is None:
            arn = services.place.function_arn(function)
            raise not_found(f"Function not found: {arn}")
        api = _quick_created(api, target, function, key or DEFAULT)
    await services.apis.create(api)
    return _api(services, api)


async def get_api(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    return _api(services, existing(services, params))


async def get_apis(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    return page((_api(services, api) for api in services.apis.all()), params)


async def update_api(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    refuse_absent(params)
    for member in ("Target", "RouteKey"):
        if member in params:
            raise absent(f"Changing the {member} of an API")
    fields = {"Name": "name", "Description": "description", "Version": "version"}
    changes = {field: params[member] for member, field in fields.items() if member in params}
    return _api(services, await changed(services, params, lambda api: replace(api, **changes)))


async def delete_api(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    if params["ApiId"] == DEFAULT_API:
        raise bad_request("The default API belongs to the platform. Delete its routes instead.")
    if not await services.apis.delete(params["ApiId"]):
        raise no_api(services.place, params["ApiId"])
    return {}


def _quick_created(api: Api, target: str, function: str, key: str) -> Api:
    """The whole of an API from a function: what the console's "Add trigger" makes."""
    requests_of(key)
    integration = Integration(
        id=new_id(7), uri=target, function=function, payload_format="2.0", is_managed=True
    )
    route = Route(id=new_id(7), key=key, integration_id=integration.id, is_managed=True)
    return replace(
        api,
        quick_function=function,
        integrations=(integration,),
        routes=(route,),
        stage=Stage(created_ms=api.created_ms, updated_ms=api.created_ms, is_managed=True),
    )


def _api(services: Services, api: Api) -> dict[str, Any]:
    port = urlsplit(services.http_url).port
    host = f"{api.id}.execute-api.localhost"
    return {
        "ApiEndpoint": f"http://{host}:{port}" if port else f"http://{host}",
        "ApiId": api.id,
        "ApiKeySelectionExpression": API_KEY_SELECTION,
        "CreatedDate": api.created_ms // 1000,
        "Description": api.description,
        "DisableExecuteApiEndpoint": False,
        "IpAddressType": "ipv4",
        "Name": api.name,
        "ProtocolType": "HTTP",
        "RouteSelectionExpression": ROUTE_SELECTION,
        "Tags": dict(api.tags),
        "Version": api.version,
    }


OPERATIONS: Mapping[str, Operation] = {
    "CreateApi": create_api,
    "DeleteApi": delete_api,
    "GetApi": get_api,
    "GetApis": get_apis,
    "UpdateApi": update_api,
}
