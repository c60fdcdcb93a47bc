"""Unset: what a function may have beside it at AWS, read here as AWS shows one that has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivet.aws.services import Caller, Operation, Services

from .names import found, named


async def get_function_code_signing_config(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    await found(services, named(services, params, "GetFunctionCodeSigningConfig"))
    return {}


OPERATIONS: Mapping[str, Operation] = {
    "GetFunctionCodeSigningConfig": get_function_code_signing_config,
}
