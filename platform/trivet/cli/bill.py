"""trivet bill: what each function used in a month, and what AWS would have charged for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any

import typer

from trivet.cli.door import Door
from trivet.cli.options import Data, Json
from trivet.cli.running import require_running
from trivet.cli.screen import BOLD, DIM, aligned, paint
from trivet.errors import PlatformError
from trivet.settings import read_settings

_MONTH = re.compile(r"\d{4}-(?:0[1-9]|1[0-2])", re.ASCII)
_HEAD = ("function", "requests", "GB-s", "AWS would charge", "free tier left")


def bill(
    month: Annotated[
        str, typer.Option(metavar="YYYY-MM", help="In UTC; else this one.", show_default=False)
    ] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Add it up anew from the Readings, and compare.")
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show what each function used in a month, and its price at AWS."""
    if month and not _MONTH.fullmatch(month):
        raise typer.BadParameter(f"'{month}' is not a month as 2026-11 is", param_hint="'--month'")
    settings = read_settings(flags={"data": data})
    door = Door(settings, require_running(settings))
    wanted: dict[str, Any] = {"Month": month} if month else {}
    with door.answers():
        client = door.client("trivet")
        told = client.get_bill(**wanted)
        if check:
            _compare(told, client.get_bill(Recompute=True, **wanted))
    if as_json:
        print(json.dumps(_record(told)))
        return
    head, *rows, total = table(told)
    print("\n".join((paint(head, DIM), *rows, paint(total, BOLD))))


def _compare(told: Mapping[str, Any], recomputed: Mapping[str, Any]) -> None:
    """Raises PlatformError where the bill is not the sum of the Readings that are kept."""
    sides = [{line["Name"]: line for line in each["Functions"]} for each in (told, recomputed)]
    wrong = sorted(
        name for name in {*sides[0], *sides[1]} if sides[0].get(name) != sides[1].get(name)
    )
    if wrong:
        raise PlatformError(
            f"the bill of {', '.join(wrong)} is not the sum of the Readings that are kept",
            hint="trivet bill --check  # again: an invocation may have ended in between",
        )


def table(told: Mapping[str, Any]) -> list[str]:
    """The lines of a bill, as GetBill answers it."""
    return list(aligned(_columns([_HEAD, *_rows(told)])))


def _rows(told: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    left_gb_s = int(Decimal(told["FreeGbSecondsLeft"]))  # what is left is never rounded up
    free = [f"{told['FreeRequestsLeft']:,} requests", f"{left_gb_s:,} GB-s"]
    for line in told["Functions"]:
        yield (line["Name"], *_amounts(line), free.pop(0) if free else "")
    due = f"→ ${Decimal(told['Due']):,.2f} after free tier"
    yield (told["Month"], *_amounts(told["Total"]), due)


def _amounts(line: Mapping[str, Any]) -> tuple[str, str, str]:
    gb_s, cost = Decimal(line["GbSeconds"]), Decimal(line["Cost"])
    return f"{line['Requests']:,}", f"{gb_s:,.4f}", f"${cost:,.8f}"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The same with the numbers' columns flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        tuple(
            cell.rjust(width) if 0 < place < 4 else cell
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _record(told: Mapping[str, Any]) -> dict[str, Any]:
    """Amounts as decimal strings, all their digits kept: no reader rounds them."""
    return {
        "month": told["Month"],
        "functions": [{"function": line["Name"], **_members(line)} for line in told["Functions"]],
        "total": _members(told["Total"]),
        "due": told["Due"],
        "freeRequestsLeft": told["FreeRequestsLeft"],
        "freeGbSecondsLeft": told["FreeGbSecondsLeft"],
    }


def _members(line: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "requests": line["Requests"],
        "gbSeconds": line["GbSeconds"],
        "cost": line["Cost"],
    }
