"""Billing: durations become billed milliseconds here, and Readings become an Invoice.

An Invoice is a fold over Readings, in exact numbers: it can be recomputed and compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Literal

MB_MS_PER_GB_S = Decimal(1024 * 1000)


def billed_ms(run_ns: int, init_ns: int = 0) -> int:
    """AWS rounds up to a millisecond, and since August 2025 bills initialisation with the run."""
    return -(-(run_ns + init_ns) // 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one attempt used."""

    request_id: str
    function: str
    version: str
    ended_ms: int  # since the Unix epoch
    memory_mb: int
    billed_ms: int
    init_ms: float | None  # None: the environment was warm
    start: Literal["cold", "warm"]
    status: Literal["", "timeout", "error"]

    @property
    def month(self) -> str:
        """The month that pays for it: "2026-11", in UTC."""
        return _month_of_day(self.ended_ms // 86_400_000)


@lru_cache(maxsize=4)
def _month_of_day(days: int) -> str:
    """Kept, since every invocation asks for it. `days` since the Unix epoch."""
    return datetime.fromtimestamp(days * 86_400, UTC).strftime("%Y-%m")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a function used in a month."""

    requests: int = 0
    mb_ms: int = 0  # memory times billed duration: whole numbers, so that sums stay exact

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.requests + other.requests, self.mb_ms + other.mb_ms)

    @property
    def gb_s(self) -> Decimal:
        return self.mb_ms / MB_MS_PER_GB_S


def usage_of(readings: Iterable[Reading]) -> Usage:
    requests = mb_ms = 0
    for reading in readings:
        requests += 1
        mb_ms += reading.memory_mb * reading.billed_ms
    return Usage(requests, mb_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """Prices in dollars, and what a month has free."""

    per_million_requests: Decimal = Decimal("0.20")
    per_gb_s: Decimal = Decimal("0.0000166667")
    free_requests: int = 1_000_000
    free_gb_s: Decimal = Decimal(400_000)

    def cost(self, usage: Usage) -> Decimal:
        """What AWS would charge for it, the free tier left aside."""
        return usage.requests * self.per_million_requests / 1_000_000 + usage.gb_s * self.per_gb_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One function on an Invoice."""

    function: str
    usage: Usage
    cost: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """A month, function by function; the free tier counts once for all of them."""

    month: str
    lines: tuple[Line, ...]
    usage: Usage
    cost: Decimal  # before the free tier
    due: Decimal  # after it
    free_requests_left: int
    free_gb_s_left: Decimal


def invoice(month: str, usages: Mapping[str, Usage], tariff: Tariff) -> Invoice:
    total = Usage()
    for usage in usages.values():
        total += usage
    requests_due = max(0, total.requests - tariff.free_requests)
    gb_s_due = max(Decimal(0), total.gb_s - tariff.free_gb_s)
    return Invoice(
        month=month,
        lines=tuple(
            Line(function=name, usage=usage, cost=tariff.cost(usage))
            for name, usage in sorted(usages.items())
        ),
        usage=total,
        cost=tariff.cost(total),
        due=requests_due * tariff.per_million_requests / 1_000_000 + gb_s_due * tariff.per_gb_s,
        free_requests_left=max(0, tariff.free_requests - total.requests),
        free_gb_s_left=max(Decimal(0), tariff.free_gb_s - total.gb_s),
    )
