"""How often an event has already passed through a function."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trivet.core.lineage import extended, is_trace, passes


def test_each_pass_is_counted_for_its_function() -> None:
    trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=0"
    assert passes(trace, "a") == 0
    for count in range(1, 20):
        trace = extended(trace, "a")
        assert passes(trace, "a") == count
    trace = extended(trace, "b")
    assert (passes(trace, "a"), passes(trace, "b")) == (19, 1)
    assert trace.startswith("Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=0;Lineage=")


def test_a_lineage_stays_short() -> None:
    trace = ""
    for n in range(200):
        trace = extended(trace, f"function-{n}")
    assert len(trace) < 500
    assert passes(trace, "function-199") == 1


@given(st.text(max_size=2_000), st.text(min_size=1, max_size=64))
def test_whatever_a_caller_writes_is_read_without_an_error(trace: str, function: str) -> None:
    before = passes(trace, function)
    if is_trace(trace):
        assert passes(extended(trace, function), function) == before + 1
