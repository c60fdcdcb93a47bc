"""Absent: members of API Gateway's shapes that would change what happens, and are not here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivet.errors import NotImplementedHere

API_KEY_SELECTION = "$request.header.x-api-key"
ROUTE_SELECTION = "$request.method $request.path"
TIMEOUT_MS = 30_000  # AWS's own, and its default

_HARMLESS: Mapping[str, Any] = {
    "ApiKeyRequired": False,
    "AuthorizationType": "NONE",
    "ConnectionType": "INTERNET",
    "ApiKeySelectionExpression": API_KEY_SELECTION,
    "DisableExecuteApiEndpoint": False,
    "DisableSchemaValidation": False,
    "IntegrationMethod": "POST",
    "IpAddressType": "ipv4",
    "PassthroughBehavior": "WHEN_NO_MATCH",
    "RouteSelectionExpression": ROUTE_SELECTION,
    "TimeoutInMillis": TIMEOUT_MS,
}

# Members that would change what happens to a request, or who may make it.
_ABSENT = frozenset(
    {
        *("AccessLogSettings", "AuthorizationScopes", "AuthorizerId", "DefaultRouteSettings"),
        *("ClientCertificateId", "ConnectionId", "ContentHandlingStrategy", "CorsConfiguration"),
        *("CredentialsArn", "DeploymentId", "IntegrationSubtype", "ModelSelectionExpression"),
        *("RequestModels", "RequestParameters", "RequestTemplates", "ResponseParameters"),
        *("RouteResponseSelectionExpression", "RouteSettings", "StageVariables"),
        *("TemplateSelectionExpression", "TlsConfig"),
        *_HARMLESS,
    }
)


def refuse_absent(params: Mapping[str, Any]) -> None:
    """Raise for the first member that asks for what is not here."""
    for member, value in params.items():
        if member in _ABSENT and not _asks_for_nothing(member, value):
            raise absent(member)


def _asks_for_nothing(member: str, value: Any) -> bool:
    if isinstance(value, dict):
        return not any(value.values())
    return not value or value == _HARMLESS.get(member)


def absent(what: str) -> NotImplementedHere:
    return NotImplementedHere(f"Trivet does not have this yet: {what}.")
