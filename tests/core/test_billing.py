"""The meter with the tutorial's prices."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.core.billing import Reading, Tariff, Usage, billed_ms, invoice, usage_of

TARIFF = Tariff()
GB_S = 1024 * 1000


def reading(memory_mb: int, billed: int, function: str = "f") -> Reading:
    return Reading(
        request_id="r",
        function=function,
        version="$LATEST",
        ended_ms=1_795_000_000_000,
        memory_mb=memory_mb,
        billed_ms=billed,
        init_ms=None,
        start="warm",
        status="",
    )


@pytest.mark.parametrize(
    ("run_ns", "init_ns", "billed"),
    [(0, 0, 0), (1, 0, 1), (1_000_000, 0, 1), (1_000_001, 0, 2), (900_000, 900_000, 2)],
)
def test_billed_time_is_run_and_init_rounded_up_once(
    run_ns: int, init_ns: int, billed: int
) -> None:
    assert billed_ms(run_ns, init_ns) == billed


def test_a_million_requests_cost_twenty_cents() -> None:
    assert TARIFF.cost(Usage(1_000_000, 0)) == Decimal("0.20")


def test_a_gigabyte_second_costs_what_the_tutorial_says() -> None:
    assert TARIFF.cost(Usage(0, GB_S)) == Decimal("0.0000166667")


def test_the_tutorial_s_free_tier_is_free_to_the_last_request_and_gb_s() -> None:
    bill = invoice("2026-11", {"f": Usage(1_000_000, 400_000 * GB_S)}, TARIFF)
    assert bill.due == 0
    assert bill.free_requests_left == 0
    assert bill.free_gb_s_left == 0
    assert bill.cost == Decimal("0.20") + 400_000 * Decimal("0.0000166667")


def test_beyond_the_free_tier_only_the_rest_is_due() -> None:
    usages = {"a": Usage(1_500_000, 300_000 * GB_S), "b": Usage(500_000, 200_000 * GB_S)}
    bill = invoice("2026-11", usages, TARIFF)
    assert bill.due == Decimal("0.20") + 100_000 * Decimal("0.0000166667")
    assert [line.function for line in bill.lines] == ["a", "b"]


def test_one_hello_world_costs_a_fraction_that_is_exact() -> None:
    usage = usage_of([reading(128, 4)])
    assert usage == Usage(1, 512)
    assert TARIFF.cost(usage) == Decimal("0.0000002") + Decimal("0.0005") * Decimal("0.0000166667")


@given(st.lists(st.tuples(st.integers(128, 10_240), st.integers(0, 900_000)), max_size=50))
def test_a_sum_of_parts_is_the_sum_of_the_whole(attempts: list[tuple[int, int]]) -> None:
    readings = [reading(*attempt) for attempt in attempts]
    total = Usage()
    for each in readings:
        total += usage_of([each])
    assert total == usage_of(readings)


def test_the_month_that_pays_is_utc_s() -> None:
    assert reading(128, 1).month == "2026-11"
