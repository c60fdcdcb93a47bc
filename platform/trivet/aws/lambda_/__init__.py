"""The Lambda API: functions, their settings, and invoking them."""

from __future__ import annotations

from collections.abc import Mapping

from trivet.aws.services import Operation

from . import account, functions, invoke, permissions, tags, unset, urls

OPERATIONS: Mapping[str, Operation] = {
    **account.OPERATIONS,
    **functions.OPERATIONS,
    **invoke.OPERATIONS,
    **permissions.OPERATIONS,
    **tags.OPERATIONS,
    **unset.OPERATIONS,
    **urls.OPERATIONS,
}
