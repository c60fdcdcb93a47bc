"""Endpoints: where the calls that a function makes to AWS services go, service by service."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from trivet.errors import SettingsError

VARIABLE = "AWS_ENDPOINT_URL"

MAX_RELAYED = 250
"""So many addresses 127.0.1.N there are for services that are relayed to."""

# AWS's command line has other names for these than its variables do.
_VARIABLE_NAMES = {
    "cognito_identity": "COGNITO_IDENTITY",
    "cognito_idp": "COGNITO_IDENTITY_PROVIDER",
    "events": "EVENTBRIDGE",
    "logs": "CLOUDWATCH_LOGS",
    "opensearch": "OPENSEARCH",
    "secretsmanager": "SECRETS_MANAGER",
    "stepfunctions": "SFN",
}

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")


@dataclass(frozen=True, slots=True)
class ServiceEndpoint:
    """One service that is served elsewhere."""

    name: str  # as AWS_ENDPOINT_URL_<NAME> has it: "DYNAMODB", "SECRETS_MANAGER"
    url: str
    host: str
    port: int
    path: str  # "" or "/..."
    number: int  # of the address 127.0.1.N that is relayed to it; 0: reached directly, by egress


def parse_service_endpoints(text: str) -> tuple[ServiceEndpoint, ...]:
    """The setting `service_endpoints`: "dynamodb=http://127.0.0.1:8000 s3=https://...".

    Targets that speak http are numbered from 1, in order. Raises SettingsError.
    """
    found: dict[str, ServiceEndpoint] = {}
    relayed = 0
    for part in text.split():
        name, _, url = part.partition("=")
        target = urlsplit(url)
        try:
            host, port = target.hostname, target.port
        except ValueError:
            host = port = None
        if not _NAME.match(name) or target.scheme not in ("http", "https") or not host:
            raise _unusable(part, "it must look like dynamodb=http://127.0.0.1:8000")
        if target.username is not None or target.query or target.fragment:
            raise _unusable(part, "its URL may hold a host, a port and a path, and nothing else")
        plain = name.lower().replace("-", "_")
        variable = _VARIABLE_NAMES.get(plain, plain.upper())
        if variable in found:
            raise _unusable(part, "the service is named twice")
        number = 0
        if target.scheme == "http":
            number = relayed = relayed + 1
        if relayed > MAX_RELAYED:
            raise _unusable(part, f"there may be {MAX_RELAYED} of them at most")
        found[variable] = ServiceEndpoint(
            name=variable,
            url=url,
            host=host,
            port=port or (443 if target.scheme == "https" else 80),
            path=target.path.rstrip("/"),
            number=number,
        )
    return tuple(found.values())


def endpoint_variables(
    endpoints: Sequence[ServiceEndpoint], *, aws_url: str, relayed_port: int | None
) -> dict[str, str]:
    """What a function's SDK is told. `aws_url`: this platform's AWS endpoint, as it sees it.

    `relayed_port`: the port of 127.0.1.N in the function's own network; None: it has none, and
    calls each target itself.
    """
    variables = {VARIABLE: aws_url}
    for each in endpoints:
        url = each.url
        if each.number and relayed_port is not None:
            url = f"http://127.0.1.{each.number}:{relayed_port}{each.path}"
        variables[f"{VARIABLE}_{each.name}"] = url
    return variables


def _unusable(part: str, reason: str) -> SettingsError:
    return SettingsError(f"service_endpoints: '{part}' cannot be used: {reason}")
