"""Audits: reads all that is kept of asynchronous events, in the order that misses none of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from trivet.core.audit import Audit, Finding, in_all
from trivet.core.ledger import DELAYED, WAITING, Standing
from trivet.store.bills import BillStore
from trivet.store.ledgers import LedgerStore, Page

_PASSES = 4  # over a function that is at work, before what fails is believed
_MONTHS = 12  # whose bills are compared: older ones may have expired


class Auditor:
    """Checks functions one after the other, in pages between which others are served."""

    def __init__(self, ledgers: LedgerStore, bills: BillStore) -> None:
        self._ledgers = ledgers
        self._bills = bills

    async def findings(self, function: str, unseen: set[str]) -> list[Finding]:
        """I1 to I6 of `function`. Request ids that are met are taken out of `unseen`.

        An event that moves several times within one pass may be missed by it, so that what fails
        while something moves is looked at again. Raises Unavailable.
        """
        passes: list[list[Finding]] = []
        while len(passes) < _PASSES:
            found, is_still = await self._pass(function, unseen)
            passes.append(found)
            if is_still or all(finding.holds for finding in found):
                return found
        return in_all(passes)

    async def _pass(self, function: str, unseen: set[str]) -> tuple[list[Finding], bool]:
        ledgers = self._ledgers
        bills_before = {month: await self._bills.used(function, month) for month in _last_months()}
        before = await ledgers.counts(function)
        audit = Audit(function, before, unseen)
        async for told in ledgers.outbox(function):
            for each in told:
                audit.outgoing(each.origin)
        last = await self._ended(audit, function, "")
        async for page in ledgers.parked(function):
            _in_flight(audit, page, DELAYED)
        async for page in ledgers.on_stream(function):
            _in_flight(audit, page, WAITING)
        async for page in ledgers.parked(function):
            _in_flight(audit, page, DELAYED)
        await self._ended(audit, function, last)
        audit.events_read()
        async for readings in self._bills.readings(function):
            audit.metered(readings)
        since_ms = await self._bills.kept_since(function)
        after = await ledgers.counts(function)
        bills = {
            month: (used, await self._bills.used(function, month))
            for month, used in bills_before.items()
        }
        return audit.findings(after, bills, since_ms), before == after

    async def _ended(self, audit: Audit, function: str, after: str) -> str:
        """Feed the ledger beyond an entry; the id of the last one."""
        async for page in self._ledgers.ended(function, after):
            for record in page:
                if record is None:
                    audit.unreadable()
                else:
                    audit.ended(record)
                    after = record.entry_id
        return after


def _in_flight(audit: Audit, page: Page, standing: Standing) -> None:
    for record in page:
        if record is None:
            audit.unreadable(standing)
        else:
            audit.in_flight(record)


def _last_months() -> Sequence[str]:
    now = datetime.now(UTC)
    count = now.year * 12 + now.month - 1
    return [f"{n // 12}-{n % 12 + 1:02d}" for n in range(count - _MONTHS + 1, count + 1)]
