"""Measures: counters, gauges and histograms as plain values, which processes hand to each other.

What a platform counts may not grow with what is deployed on it: a family keeps a bounded number of
series, and what comes beyond them is counted together under empty labels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["counter", "gauge", "histogram"]

MOST_SERIES = 1_000  # of one family

# From a warm call of less than a millisecond to the longest timeout.
DURATION_BOUNDS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0),
)

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One number. `suffix` tells the parts of a histogram apart: "_bucket", "_sum", "_count"."""

    labels: Labels
    value: float
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """Everything measured under one name."""

    name: str
    kind: Kind
    help: str
    samples: tuple[Sample, ...]


class Tally:
    """A counter or a gauge, by the values of its labels."""

    def __init__(self, name: str, kind: Literal["counter", "gauge"], help: str, *labels: str):
        self._head = (name, kind, help)
        self._labels = labels
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def __repr__(self) -> str:
        return f"<Tally {self._head[0]} {len(self._values)} series>"

    def add(self, amount: float, *labels: str) -> None:
        key = labels
        if key not in self._values and len(self._values) >= MOST_SERIES:
            key = ("",) * len(labels)
        self._values[key] = self._values.get(key, 0.0) + amount

    def family(self) -> Family:
        pairs = [(_paired(self._labels, key), value) for key, value in self._values.items()]
        return Family(*self._head, tuple(Sample(labels, value) for labels, value in pairs))


class Histogram:
    """How long something took, by the values of its labels."""

    def __init__(
        self, name: str, help: str, *labels: str, bounds_s: Sequence[float] = DURATION_BOUNDS_S
    ):
        self._head = (name, help)
        self._labels = labels
        self._bounds_s = tuple(bounds_s)
        # For each series: how many fell into each bucket, the last without a bound; their sum.
        self._counts: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}

    def __repr__(self) -> str:
        return f"<Histogram {self._head[0]} {len(self._counts)} series>"

    def observe(self, seconds: float, *labels: str) -> None:
        found = self._counts.get(labels)
        if found is None:
            key = labels if len(self._counts) < MOST_SERIES else ("",) * len(labels)
            found = self._counts.setdefault(key, ([0] * (len(self._bounds_s) + 1), [0.0]))
        counts, total = found
        counts[bisect_left(self._bounds_s, seconds)] += 1
        total[0] += seconds

    def family(self) -> Family:
        name, help = self._head
        samples: list[Sample] = []
        for key, (counts, total) in self._counts.items():
            labels = _paired(self._labels, key)
            below = 0
            for bound, count in zip((*self._bounds_s, "+Inf"), counts, strict=True):
                below += count
                samples.append(Sample((*labels, ("le", str(bound))), below, "_bucket"))
            samples.append(Sample(labels, total[0], "_sum"))
            samples.append(Sample(labels, below, "_count"))
        return Family(name, "histogram", help, tuple(samples))


def gauge(name: str, help: str, *samples: tuple[Labels, float]) -> Family:
    """A family of values that were looked up just now."""
    return Family(name, "gauge", help, tuple(Sample(labels, value) for labels, value in samples))


def counter(name: str, help: str, *samples: tuple[Labels, float]) -> Family:
    """A family of counts that another part keeps."""
    return Family(name, "counter", help, tuple(Sample(labels, value) for labels, value in samples))


def labelled(family: Family, *labels: tuple[str, str]) -> Family:
    """`family` with further labels in front of those of each sample."""
    samples = (Sample((*labels, *s.labels), s.value, s.suffix) for s in family.samples)
    return Family(family.name, family.kind, family.help, tuple(samples))


def merged(families: Sequence[Family]) -> list[Family]:
    """The families with one of each name, which holds the samples of all."""
    by_name: dict[str, Family] = {}
    for family in families:
        found = by_name.get(family.name)
        samples = family.samples if found is None else (*found.samples, *family.samples)
        by_name[family.name] = Family(family.name, family.kind, family.help, samples)
    return list(by_name.values())


def family_to_record(family: Family) -> list[Any]:
    """Plain values for msgpack; the inverse of `family_from_record`."""
    samples = [[sample.labels, sample.value, sample.suffix] for sample in family.samples]
    return [family.name, family.kind, family.help, samples]


def family_from_record(record: Sequence[Any]) -> Family:
    name, kind, help, samples = record
    return Family(
        name,
        kind,
        help,
        tuple(
            Sample(tuple((str(n), str(v)) for n, v in labels), float(value), str(suffix))
            for labels, value, suffix in samples
        ),
    )


def _paired(names: Sequence[str], values: Sequence[str]) -> Labels:
    return tuple(zip(names, values, strict=True))
