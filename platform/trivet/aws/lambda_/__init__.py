"""The Lambda API: functions, their settings, and invoking them."""

from __future__ import annotations

from collections.abc import Mapping

from trivet.aws.services import Operation

from . import account, functions, invoke, tags, unset

OPERATIONS: Mapping[str, Operation] = {
    **account.OPERATIONS,
    **functions.OPERATIONS,
    **invoke.OPERATIONS,
    **tags.OPERATIONS,
    **unset.OPERATIONS,
}
