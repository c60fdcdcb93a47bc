"""What an operation of the AWS API may use, and the one form that every operation has.

An operation gets its parameters parsed and checked against AWS's model, under the names of the
input shape, and returns the members of the output shape. What it refuses it raises as a
TrivetError; nothing in it knows about HTTP, except that a member the model places in the status
code sets the status.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from trivet.core.arns import Place
from trivet.core.billing import Tariff
from trivet.core.roles import Session
from trivet.ports import Platform, Publisher

if TYPE_CHECKING:
    from trivet.store.apis import ApiStore
    from trivet.store.bills import BillStore
    from trivet.store.blobs import Blobs
    from trivet.store.functions import FunctionStore
    from trivet.store.ledgers import LedgerStore
    from trivet.store.logs import LogReader
    from trivet.store.triggers import TriggerStore
    from trivet.store.urls import UrlStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts of the platform behind the door; one for the whole gateway."""

    place: Place
    platform: Platform
    publisher: Publisher
    functions: FunctionStore
    blobs: Blobs
    apis: ApiStore
    urls: UrlStore
    logs: LogReader
    bills: BillStore
    ledgers: LedgerStore
    tariff: Tariff = field(default_factory=Tariff)
    triggers: TriggerStore
    runtimes: frozenset[str]  # names this machine can run: "python3.11", "nodejs20.x"
    max_concurrency: int = 1000  # of the account
    http_url: str  # base of the public HTTP triggers
    changed: Callable[[str], Awaitable[None]]  # tells supervisors that a function changed or went
    # Held from the look at what others have reserved to the write.
    reserving: anyio.Lock = field(default_factory=anyio.Lock)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and the id under which this request appears in answers and logs."""

    access_key: str
    request_id: str
    session: Session | None = None  # the function that calls; None: a key of the account
    trace: str = ""  # X-Amzn-Trace-Id, as sent


Operation = Callable[[Services, dict[str, Any], Caller], Awaitable[dict[str, Any]]]
