"""Account: its limits, and how much of them is used."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from trivet.aws.services import Caller, Operation, Services
from trivet.core.functions import Function
from trivet.store.blobs import MAX_UNZIPPED_BYTES, MAX_ZIP_BYTES

MAX_CODE_BYTES = 80_530_636_800  # 75 GB
_PAGE = 1_000


async def get_account_settings(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    count = code_bytes = reserved = 0
    async for function in all_functions(services):
        count += 1
        code_bytes += function.code_bytes
        reserved += function.reserved_concurrency or 0
    return {
        "AccountLimit": {
            "TotalCodeSize": MAX_CODE_BYTES,
            "CodeSizeUnzipped": MAX_UNZIPPED_BYTES,
            "CodeSizeZipped": MAX_ZIP_BYTES,
            "ConcurrentExecutions": services.max_concurrency,
            "UnreservedConcurrentExecutions": services.max_concurrency - reserved,
        },
        "AccountUsage": {"TotalCodeSize": code_bytes, "FunctionCount": count},
    }


async def all_functions(services: Services) -> AsyncIterator[Function]:
    """Every function of the account, in the order of their names."""
    after: str | None = None
    while page := await services.functions.list(after, _PAGE):
        for function in page:
            yield function
        after = page[-1].name


OPERATIONS: Mapping[str, Operation] = {"GetAccountSettings": get_account_settings}
