"""Counters and histograms, and the text that Prometheus reads."""

from __future__ import annotations

import re

import msgpack

from trivet.core.measures import (
    MOST_SERIES,
    Histogram,
    Tally,
    counter,
    family_from_record,
    family_to_record,
    gauge,
    labelled,
    merged,
)
from trivet.gateway.metrics import rendered

# One line of the text format, as its specification has it.
_SAMPLE = re.compile(
    r"([a-zA-Z_:][\w:]*)(?:\{((?:\w+=\"(?:[^\"\\\n]|\\[\\n\"])*\",?)*)\})? "
    r"(-?[\d.e+-]+|\+Inf|NaN)\Z"
)
_LABEL = re.compile(r'(\w+)="((?:[^"\\\n]|\\[\\n"])*)"')


def parsed(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for line in text.decode().splitlines():
        if line.startswith("#"):
            assert re.match(r"# (HELP|TYPE) [a-z_]+ \S", line), line
            continue
        match = _SAMPLE.match(line)
        assert match, line
        labels = frozenset((m[1], m[2]) for m in _LABEL.finditer(match[2] or ""))
        assert (match[1], labels) not in found, line
        found[match[1], labels] = float(match[3])
    return found


def test_a_tally_counts_by_its_labels() -> None:
    tally = Tally("calls_total", "counter", "Calls.", "lane", "function")
    tally.add(1, "express", "a")
    tally.add(2, "express", "a")
    tally.add(1, "durable", "b")
    assert parsed(rendered([tally.family()])) == {
        ("calls_total", frozenset({("lane", "express"), ("function", "a")})): 3,
        ("calls_total", frozenset({("lane", "durable"), ("function", "b")})): 1,
    }


def test_series_beyond_the_limit_are_counted_together() -> None:
    tally = Tally("calls_total", "counter", "Calls.", "function")
    for number in range(MOST_SERIES + 50):
        tally.add(1, f"f{number}")
    tally.add(1, "f0")
    values = {sample.labels: sample.value for sample in tally.family().samples}
    assert len(values) == MOST_SERIES + 1
    assert values[(("function", ""),)] == 50
    assert values[(("function", "f0"),)] == 2
    assert sum(values.values()) == MOST_SERIES + 51


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    histogram = Histogram("took_seconds", "It took.", "lane", bounds_s=(0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(seconds, "express")
    lane = ("lane", "express")
    assert parsed(rendered([histogram.family()])) == {
        ("took_seconds_bucket", frozenset({lane, ("le", "0.1")})): 2,
        ("took_seconds_bucket", frozenset({lane, ("le", "1.0")})): 3,
        ("took_seconds_bucket", frozenset({lane, ("le", "+Inf")})): 4,
        ("took_seconds_sum", frozenset({lane})): 7.65,
        ("took_seconds_count", frozenset({lane})): 4,
    }


def test_families_travel_as_plain_values() -> None:
    histogram = Histogram("took_seconds", "It took.", "lane")
    histogram.observe(0.3, "express")
    families = [histogram.family(), gauge("size", "Size.", ((("state", "idle"),), 3.0))]
    packed = msgpack.packb([family_to_record(family) for family in families])
    assert [family_from_record(record) for record in msgpack.unpackb(packed)] == families


def test_the_families_of_many_nodes_are_one_with_a_label_each() -> None:
    one = labelled(counter("calls_total", "Calls.", ((), 1)), ("node", "a"))
    other = labelled(counter("calls_total", "Calls.", ((), 2)), ("node", "b"))
    (family,) = merged([one, other])
    assert [(s.labels, s.value) for s in family.samples] == [
        ((("node", "a"),), 1),
        ((("node", "b"),), 2),
    ]
    assert rendered([one, other]).count(b"# TYPE calls_total counter\n") == 1


def test_no_text_can_break_out_of_its_line() -> None:
    nasty = 'a"b\\c\nd'
    family = gauge("size", "One\nline \\ only.", ((("name", nasty),), 1.5))
    lines = rendered([family]).decode().splitlines()
    assert lines == [
        r"# HELP size One\nline \\ only.",
        "# TYPE size gauge",
        r'size{name="a\"b\\c\nd"} 1.5',
    ]
