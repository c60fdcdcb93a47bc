"""Urls: the HTTP address of a function, made, shown, changed and taken away."""

from __future__ import annotations

import secrets
import string
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from trivet.aws.services import Caller, Operation, Services
from trivet.core.urls import LABEL, Cors, FunctionUrl
from trivet.errors import Conflict, FunctionNotFound, NotImplementedHere

from .names import Named, named

Edit = Callable[[FunctionUrl | None], FunctionUrl]

_NO_FUNCTION = "Function does not exist"
_NO_URL = "The resource you requested does not exist."

_ID_LETTERS = string.ascii_lowercase + string.digits

_CORS_MEMBERS: Mapping[str, str] = {
    "AllowCredentials": "allow_credentials",
    "AllowHeaders": "allow_headers",
    "AllowMethods": "allow_methods",
    "AllowOrigins": "allow_origins",
    "ExposeHeaders": "expose_headers",
    "MaxAge": "max_age_s",
}


async def create_function_url_config(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = await _owner(services, params, "CreateFunctionUrlConfig", _NO_FUNCTION)
    _refuse_streams(params)
    now_us = time.time_ns() // 1_000

    def edit(before: FunctionUrl | None) -> FunctionUrl:
        if before is not None:
            raise Conflict(
                f"Failed to create function url config for [functionArn = {wanted.arn}]. "
                "Error message:  FunctionUrlConfig exists for this Lambda function"
            )
        return FunctionUrl(
            id="".join(secrets.choice(_ID_LETTERS) for _ in range(32)),
            function=wanted.name,
            auth_type=params["AuthType"],
            created_us=now_us,
            modified_us=now_us,
            cors=_cors(params.get("Cors")),
        )

    return _created(services, await _put(services, wanted, edit))


async def get_function_url_config(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = await _owner(services, params, "GetFunctionUrlConfig", _NO_URL)
    url = services.urls.get(wanted.name)
    if url is None:
        raise FunctionNotFound(_NO_URL)
    return _configuration(services, url)


async def list_function_url_configs(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = await _owner(services, params, "ListFunctionUrlConfigs", _NO_FUNCTION)
    url = services.urls.get(wanted.name)
    return {"FunctionUrlConfigs": [_configuration(services, url)] if url is not None else []}


async def update_function_url_config(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = await _owner(services, params, "UpdateFunctionUrlConfig", _NO_FUNCTION)
    _refuse_streams(params)

    def edit(before: FunctionUrl | None) -> FunctionUrl:
        if before is None:
            raise FunctionNotFound(_NO_URL)
        return replace(
            before,
            auth_type=params.get("AuthType", before.auth_type),
            cors=_cors(params["Cors"]) if "Cors" in params else before.cors,
            modified_us=time.time_ns() // 1_000,
        )

    return _configuration(services, await _put(services, wanted, edit))


async def delete_function_url_config(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = await _owner(services, params, "DeleteFunctionUrlConfig", _NO_URL)
    if not await services.urls.delete(wanted.name):
        raise FunctionNotFound(_NO_URL)
    return {}


async def _owner(services: Services, params: dict[str, Any], operation: str, refusal: str) -> Named:
    """The function whose URL is meant. Aliases could have one too, but here none is."""
    wanted = named(services, params, operation)
    function = await services.functions.get(wanted.name)
    if function is None or wanted.qualifier is not None:
        raise FunctionNotFound(refusal)
    return wanted


async def _put(services: Services, wanted: Named, edit: Edit) -> FunctionUrl:
    url = await services.urls.put(wanted.name, edit)
    if url is None:  # it was deleted meanwhile
        raise FunctionNotFound(_NO_FUNCTION)
    return url


def _refuse_streams(params: Mapping[str, Any]) -> None:
    if params.get("InvokeMode", "BUFFERED") != "BUFFERED":
        raise NotImplementedHere(
            "Trivet does not have this yet: Streamed responses. Leave InvokeMode out, or set it "
            "to BUFFERED."
        )


def _cors(given: Mapping[str, Any] | None) -> Cors | None:
    """What was asked for, or None for nothing: so a client takes the settings away."""
    if not given:
        return None
    members: dict[str, Any] = {
        _CORS_MEMBERS[name]: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
    }
    return Cors(**members)


def _created(services: Services, url: FunctionUrl) -> dict[str, Any]:
    """As the configuration, but nothing was changed yet."""
    answer = _configuration(services, url)
    del answer["LastModifiedTime"]
    return answer


def _configuration(services: Services, url: FunctionUrl) -> dict[str, Any]:
    """The members of FunctionUrlConfig."""
    answer: dict[str, Any] = {
        "FunctionUrl": _address(services, url),
        "FunctionArn": services.place.function_arn(url.function),
        "AuthType": url.auth_type,
        "CreationTime": _written(url.created_us),
        "LastModifiedTime": _written(url.modified_us),
        "InvokeMode": "BUFFERED",
    }
    if url.cors is not None:
        shown = {name: getattr(url.cors, field) for name, field in _CORS_MEMBERS.items()}
        answer["Cors"] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in shown.items()
            if value is not None
        }
    return answer


def _address(services: Services, url: FunctionUrl) -> str:
    # Clients resolve every name under .localhost to this machine, with no DNS.
    port = urlsplit(services.http_url).port
    return f"http://{url.id}.{LABEL}.{services.place.region}.localhost:{port}/"


def _written(instant_us: int) -> str:
    """ "2026-11-23T14:00:00.123456Z": the form in which Lambda writes a URL's instants."""
    instant = datetime.fromtimestamp(instant_us // 1_000_000, UTC)
    return f"{instant:%Y-%m-%dT%H:%M:%S}.{instant_us % 1_000_000:06}Z"


OPERATIONS: Mapping[str, Operation] = {
    "CreateFunctionUrlConfig": create_function_url_config,
    "DeleteFunctionUrlConfig": delete_function_url_config,
    "GetFunctionUrlConfig": get_function_url_config,
    "ListFunctionUrlConfigs": list_function_url_configs,
    "UpdateFunctionUrlConfig": update_function_url_config,
}
