"""Account: its limits, and how much of them is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivet.aws.services import Caller, Operation, Services
from trivet.store.blobs import MAX_UNZIPPED_BYTES, MAX_ZIP_BYTES

MAX_CODE_BYTES = 80_530_636_800  # 75 GB
MAX_CONCURRENCY = 1_000
_PAGE = 1_000


async def get_account_settings(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    count = code_bytes = 0
    after: str | None = None
    while page := await services.functions.list(after, _PAGE):
        count += len(page)
        code_bytes += sum(function.code_bytes for function in page)
        after = page[-1].name
    return {
        "AccountLimit": {
            "TotalCodeSize": MAX_CODE_BYTES,
            "CodeSizeUnzipped": MAX_UNZIPPED_BYTES,
            "CodeSizeZipped": MAX_ZIP_BYTES,
            "ConcurrentExecutions": MAX_CONCURRENCY,
            "UnreservedConcurrentExecutions": MAX_CONCURRENCY,
        },
        "AccountUsage": {"TotalCodeSize": code_bytes, "FunctionCount": count},
    }


OPERATIONS: Mapping[str, Operation] = {"GetAccountSettings": get_account_settings}
