"""Integrations: the functions that routes lead to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trivet.aws.services import Caller, Operation, Services
from trivet.store.apis import Api, Integration

from .absent import TIMEOUT_MS, absent, refuse_absent
from .refusals import bad_request, conflict, no_integration
from .targets import changed, existing, function_of, new_id, page


async def create_integration(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    existing(services, params)
    refuse_absent(params)
    if params["IntegrationType"] != "AWS_PROXY":
        raise absent(f"The integration type {params['IntegrationType']}")
    payload_format = params.get("PayloadFormatVersion", "1.0")
    if payload_format not in ("1.0", "2.0"):
        raise bad_request("PayloadFormatVersion must be 1.0 or 2.0")
    if "IntegrationUri" not in params:
        raise bad_request("IntegrationUri is required for an integration with a function")
    integration = Integration(
        id=new_id(7),
        uri=params["IntegrationUri"],
        function=function_of(services, params["IntegrationUri"]),
        payload_format=payload_format,
        description=params.get("Description", ""),
    )
    await changed(
        services,
        params,
        lambda api: replace(api, integrations=(*api.integrations, integration)),
    )
    return _integration(services, integration)


async def get_integration(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    integration = existing(services, params).integration(params["IntegrationId"])
    if integration is None:
        raise no_integration(params["IntegrationId"])
    return _integration(services, integration)


async def get_integrations(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    integrations = existing(services, params).integrations
    return page((_integration(services, each) for each in integrations), params)


async def delete_integration(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    integration_id = params["IntegrationId"]

    def edit(api: Api) -> Api:
        if api.integration(integration_id) is None:
            raise no_integration(integration_id)
        for route in api.routes:
            if route.integration_id == integration_id:
                raise conflict(
                    f"Cannot delete Integration '{integration_id}'. "
                    f"It is referenced by Route '{route.id}'"
                )
        return replace(
            api, integrations=tuple(i for i in api.integrations if i.id != integration_id)
        )

    await changed(services, params, edit)
    return {}


def _integration(services: Services, integration: Integration) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "ConnectionType": "INTERNET",
        "IntegrationId": integration.id,
        "IntegrationMethod": "POST",
        "IntegrationType": "AWS_PROXY",
        "IntegrationUri": integration.uri or services.place.function_arn(integration.function),
        "PayloadFormatVersion": integration.payload_format,
        "TimeoutInMillis": TIMEOUT_MS,
    }
    if integration.description:
        answer["Description"] = integration.description
    if integration.is_managed:
        answer["ApiGatewayManaged"] = True
    return answer


OPERATIONS: Mapping[str, Operation] = {
    "CreateIntegration": create_integration,
    "DeleteIntegration": delete_integration,
    "GetIntegration": get_integration,
    "GetIntegrations": get_integrations,
}
