"""Recursion: whether a function that goes round in a loop is stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trivet.aws.services import Caller, Operation, Services
from trivet.core.functions import Function

from .functions import edited, unrevised
from .names import found, named


async def get_function_recursion_config(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    function = await found(services, named(services, params, "GetFunctionRecursionConfig"))
    return {"RecursiveLoop": function.recursive_loop}


async def put_function_recursion_config(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = named(services, params, "PutFunctionRecursionConfig")
    await found(services, wanted)
    chosen = params["RecursiveLoop"]

    def edit(function: Function) -> Function:
        return replace(function, recursive_loop=chosen)

    await edited(services, wanted, {}, edit, unrevised)
    return {"RecursiveLoop": chosen}


OPERATIONS: Mapping[str, Operation] = {
    "GetFunctionRecursionConfig": get_function_recursion_config,
    "PutFunctionRecursionConfig": put_function_recursion_config,
}
