"""Bills: what a month's Readings would cost at AWS's prices."""

from __future__ import annotations

import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from trivet.aws.services import Caller, Operation, Services
from trivet.core.billing import Usage, invoice


async def get_bill(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    month = params.get("Month") or time.strftime("%Y-%m", time.gmtime())
    bills = services.bills
    used = await (bills.recomputed(month) if params.get("Recompute") else bills.month(month))
    bill = invoice(month, used, services.tariff)
    return {
        "Month": bill.month,
        "Functions": [
            {"Name": line.function, **_amounts(line.usage, line.cost)} for line in bill.lines
        ],
        "Total": _amounts(bill.usage, bill.cost),
        "Due": _text(bill.due),
        "FreeRequestsLeft": bill.free_requests_left,
        "FreeGbSecondsLeft": _text(bill.free_gb_s_left),
    }


def _amounts(usage: Usage, cost: Decimal) -> dict[str, Any]:
    return {"Requests": usage.requests, "GbSeconds": _text(usage.gb_s), "Cost": _text(cost)}


def _text(amount: Decimal) -> str:
    """All digits of it, and no exponent."""
    return format(amount.normalize(), "f") if amount else "0"


OPERATIONS: Mapping[str, Operation] = {"GetBill": get_bill}
