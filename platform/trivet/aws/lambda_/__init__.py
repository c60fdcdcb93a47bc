"""The Lambda API: functions, their settings, and invoking them."""

from __future__ import annotations

from collections.abc import Mapping

from trivet.aws.services import Operation

from . import (
    account,
    concurrency,
    event_invoke,
    functions,
    invoke,
    permissions,
    recursion,
    tags,
    unset,
    urls,
)

OPERATIONS: Mapping[str, Operation] = {
    **account.OPERATIONS,
    **concurrency.OPERATIONS,
    **event_invoke.OPERATIONS,
    **functions.OPERATIONS,
    **invoke.OPERATIONS,
    **permissions.OPERATIONS,
    **recursion.OPERATIONS,
    **tags.OPERATIONS,
    **unset.OPERATIONS,
    **urls.OPERATIONS,
}
