"""Concurrency: how many invocations of a function may run at once, of those the account has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trivet.aws.services import Caller, Operation, Services
from trivet.core.arns import LATEST
from trivet.core.functions import Function
from trivet.errors import CallerError

from .account import all_functions
from .functions import edited, unrevised
from .names import Named, found, named

MIN_UNRESERVED = 100
"""What all functions without a reservation keep for themselves."""


async def put_function_concurrency(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted, _ = await _whole_function(services, params, "PutFunctionConcurrency")
    reserved: int = params["ReservedConcurrentExecutions"]
    async with services.reserving:
        await _check_left(services, wanted.name, reserved)
        await _reserve(services, wanted, reserved)
    return {"ReservedConcurrentExecutions": reserved}


async def get_function_concurrency(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    _, function = await _whole_function(services, params, "GetFunctionConcurrency")
    if function.reserved_concurrency is None:
        return {}
    return {"ReservedConcurrentExecutions": function.reserved_concurrency}


async def delete_function_concurrency(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted, _ = await _whole_function(services, params, "DeleteFunctionConcurrency")
    await _reserve(services, wanted, None)
    return {}


async def _whole_function(
    services: Services, params: dict[str, Any], operation: str
) -> tuple[Named, Function]:
    wanted = named(services, params, operation)
    if wanted.qualifier is not None:
        raise CallerError(
            "This operation is permitted on Lambda functions only. Aliases and versions do not "
            "support this operation. Please specify either a function name or an unqualified "
            "function ARN."
        )
    # AWS names the version here, though the caller may not.
    return wanted, await found(services, replace(wanted, qualifier=LATEST))


async def _check_left(services: Services, name: str, reserved: int) -> None:
    """Raise if the functions without a reservation would have too little left."""
    others = 0
    async for function in all_functions(services):
        if function.name != name:
            others += function.reserved_concurrency or 0
    if reserved and services.max_concurrency - others - reserved < MIN_UNRESERVED:
        raise CallerError(
            "Specified ReservedConcurrentExecutions for function decreases account's "
            "UnreservedConcurrentExecution below its minimum value of "
            f"[{MIN_UNRESERVED}]."
        )


async def _reserve(services: Services, wanted: Named, reserved: int | None) -> None:
    def edit(function: Function) -> Function:
        return replace(function, reserved_concurrency=reserved)

    await edited(services, wanted, {}, edit, unrevised)


OPERATIONS: Mapping[str, Operation] = {
    "DeleteFunctionConcurrency": delete_function_concurrency,
    "GetFunctionConcurrency": get_function_concurrency,
    "PutFunctionConcurrency": put_function_concurrency,
}
