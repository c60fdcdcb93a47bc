"""Trivet's own API: what AWS has no operation for, in the same form as AWS's services."""

from __future__ import annotations

from collections.abc import Mapping

from trivet.aws.services import Operation

from . import bills, events, ledger, triggers

OPERATIONS: Mapping[str, Operation] = {
    **bills.OPERATIONS,
    **events.OPERATIONS,
    **ledger.OPERATIONS,
    **triggers.OPERATIONS,
}
