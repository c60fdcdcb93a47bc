"""Event invoke: what becomes of a function's asynchronous events, and who is told how they ended.

A member that is not set is not shown either, and AWS's default stands for it: two retries, six
hours, nobody is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from trivet.aws.services import Caller, Operation, Services
from trivet.core.arns import LATEST
from trivet.core.destinations import NotServed, parse_destination
from trivet.core.functions import Function
from trivet.errors import CallerError, FunctionNotFound

from .absent import absent
from .functions import edited, unrevised
from .names import Named, named

# Members of the function's record.
_NUMBERS: Mapping[str, str] = {
    "MaximumRetryAttempts": "retries",
    "MaximumEventAgeInSeconds": "age_s",
}
_DESTINATIONS: Mapping[str, str] = {"OnSuccess": "on_success", "OnFailure": "on_failure"}

_NO_FUNCTION = "The function doesn't exist."


async def put_function_event_invoke_config(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted, asked = await _asked(services, params, "PutFunctionEventInvokeConfig")
    return await _kept(services, wanted, lambda function: asked)


async def update_function_event_invoke_config(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted, asked = await _asked(services, params, "UpdateFunctionEventInvokeConfig")
    return await _kept(services, wanted, lambda function: {**_set(wanted, function), **asked})


async def get_function_event_invoke_config(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = _named(services, params, "GetFunctionEventInvokeConfig")
    function = await _function(services, wanted, _unset(wanted))
    _set(wanted, function)
    return _configuration(services, function)


async def delete_function_event_invoke_config(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = _named(services, params, "DeleteFunctionEventInvokeConfig")
    await _function(services, wanted, _unset(wanted))

    def edit(function: Function) -> Function:
        _set(wanted, function)
        return replace(function, event_invoke={})

    await edited(services, wanted, {}, edit, unrevised)
    return {}


async def list_function_event_invoke_configs(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = _named(services, params, "ListFunctionEventInvokeConfigs")
    function = await _function(services, wanted, FunctionNotFound(_NO_FUNCTION))
    # Versions and aliases could have one each, but here is only $LATEST: there is no second page.
    found = [_configuration(services, function)] if function.event_invoke else []
    return {"FunctionEventInvokeConfigs": found}


def _named(services: Services, params: dict[str, Any], operation: str) -> Named:
    """What is meant: a function without a qualifier is its $LATEST."""
    wanted = named(services, params, operation)
    return wanted if wanted.qualifier else replace(wanted, qualifier=LATEST)


async def _function(services: Services, wanted: Named, refusal: FunctionNotFound) -> Function:
    function = await services.functions.get(wanted.name)
    if function is None or wanted.qualifier != LATEST:
        raise refusal
    return function


def _unset(wanted: Named) -> FunctionNotFound:
    return FunctionNotFound(f"The function {wanted.arn} doesn't have an EventInvokeConfig")


def _set(wanted: Named, function: Function) -> Mapping[str, Any]:
    """What is set. Raises FunctionNotFound if nothing is."""
    if not function.event_invoke:
        raise _unset(wanted)
    return function.event_invoke


async def _asked(
    services: Services, params: dict[str, Any], operation: str
) -> tuple[Named, dict[str, Any]]:
    """The function, and the members of its record that the request names."""
    wanted = _named(services, params, operation)
    if not any(name in params for name in (*_NUMBERS, "DestinationConfig")):
        raise CallerError("You must specify at least one of error handling or destination setting.")
    await _function(services, wanted, FunctionNotFound(_NO_FUNCTION))
    asked = {member: params[name] for name, member in _NUMBERS.items() if name in params}
    destinations: Mapping[str, Any] = params.get("DestinationConfig", {})
    for name, member in _DESTINATIONS.items():
        if name in destinations:
            arn = destinations[name].get("Destination", "")
            await _check_destination(services, wanted, arn, f"DestinationConfig.{name}")
            asked[member] = arn
    return wanted, asked


async def _check_destination(services: Services, wanted: Named, arn: str, member: str) -> None:
    """Raise if records of this function cannot be sent there. An empty ARN asks for nothing."""
    if not arn:
        return
    invalid = CallerError(f"The destination ARN {arn} is invalid.")
    try:
        destination = parse_destination(arn, services.place)
    except NotServed as error:
        raise absent(str(error), member) from None
    except ValueError:
        raise invalid from None
    if destination.kind == "function":
        if destination.name == wanted.name:
            raise CallerError("You can't specify the function as a destination for itself.")
        if await services.functions.get(destination.name) is None:
            raise invalid


async def _kept(
    services: Services, wanted: Named, members: Callable[[Function], Mapping[str, Any]]
) -> dict[str, Any]:
    """Keep `members` of the function as it is then, and show them."""
    now_ms = time.time_ns() // 1_000_000

    def edit(function: Function) -> Function:
        kept = {name: value for name, value in members(function).items() if value != ""}
        return replace(function, event_invoke={**kept, "modified_ms": now_ms})

    return _configuration(services, await edited(services, wanted, {}, edit, unrevised))


def _configuration(services: Services, function: Function) -> dict[str, Any]:
    """The members of FunctionEventInvokeConfig."""
    kept = function.event_invoke
    targets = {name: kept.get(member) for name, member in _DESTINATIONS.items()}
    return {
        "FunctionArn": services.place.function_arn(function.name, LATEST),
        "LastModified": kept["modified_ms"] / 1_000,
        **{name: kept[member] for name, member in _NUMBERS.items() if member in kept},
        "DestinationConfig": {
            name: {"Destination": arn} if arn else {} for name, arn in targets.items()
        },
    }


OPERATIONS: Mapping[str, Operation] = {
    "DeleteFunctionEventInvokeConfig": delete_function_event_invoke_config,
    "GetFunctionEventInvokeConfig": get_function_event_invoke_config,
    "ListFunctionEventInvokeConfigs": list_function_event_invoke_configs,
    "PutFunctionEventInvokeConfig": put_function_event_invoke_config,
    "UpdateFunctionEventInvokeConfig": update_function_event_invoke_config,
}
