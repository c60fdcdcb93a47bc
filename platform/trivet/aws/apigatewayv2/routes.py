"""Routes: which requests an API answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trivet.aws.services import Caller, Operation, Services
from trivet.core.routes import parse_route_key
from trivet.store.apis import Api, Route

from .absent import refuse_absent
from .refusals import bad_request, conflict, no_integration, no_route
from .targets import changed, existing, new_id, page


async def create_route(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    existing(services, params)
    refuse_absent(params)
    route = Route(
        id=new_id(7),
        key=params["RouteKey"],
        integration_id=_integration_id_of(params.get("Target")),
        operation_name=params.get("OperationName"),
    )
    shape = requests_of(route.key)

    def edit(api: Api) -> Api:
        if route.integration_id is not None and api.integration(route.integration_id) is None:
            raise no_integration(route.integration_id)
        # Keys that differ in the names of their variables meet the same requests.
        if any(requests_of(other.key) == shape for other in api.routes):
            raise conflict(f"Route with key {route.key} already exists for this API")
        return replace(api, routes=(*api.routes, route))

    await changed(services, params, edit)
    return _route(route)


async def get_route(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    route = existing(services, params).route(params["RouteId"])
    if route is None:
        raise no_route(params["RouteId"])
    return _route(route)


async def get_routes(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    return page(map(_route, existing(services, params).routes), params)


async def delete_route(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    route_id = params["RouteId"]

    def edit(api: Api) -> Api:
        if api.route(route_id) is None:
            raise no_route(route_id)
        return replace(api, routes=tuple(r for r in api.routes if r.id != route_id))

    await changed(services, params, edit)
    return {}


def _route(route: Route) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "ApiKeyRequired": False,
        "AuthorizationType": "NONE",
        "RouteId": route.id,
        "RouteKey": route.key,
    }
    if route.integration_id is not None:
        answer["Target"] = f"integrations/{route.integration_id}"
    if route.operation_name is not None:
        answer["OperationName"] = route.operation_name
    if route.is_managed:
        answer["ApiGatewayManaged"] = True
    return answer


def requests_of(key: str) -> object:
    """What requests a route key meets; raises if it is malformed."""
    parsed = parse_route_key(key)
    if parsed is None:
        raise bad_request(
            "The provided route key is not formatted properly for HTTP protocol. "
            'Format should be "<HTTP METHOD> /<RESOURCE PATH>" or "$default"'
        )
    return parsed.shape


def _integration_id_of(target: str | None) -> str | None:
    """The integration that a route's target names."""
    if target is None:
        return None
    kind, slash, integration_id = target.partition("/")
    if kind != "integrations" or not slash:
        raise bad_request("Invalid target: it must be written as integrations/ID")
    return integration_id


OPERATIONS: Mapping[str, Operation] = {
    "CreateRoute": create_route,
    "DeleteRoute": delete_route,
    "GetRoute": get_route,
    "GetRoutes": get_routes,
}
