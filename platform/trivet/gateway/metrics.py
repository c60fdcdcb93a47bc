"""Metrics: what this gateway counts, and any families as the text that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from trivet.core.measures import Family, Histogram, Labels, Tally, counter, merged

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Publishing(Protocol):
    """The publishing half of a lane."""

    @property
    def published(self) -> int: ...

    @property
    def batches(self) -> int: ...


class GatewayCounters:
    """Called for every invocation: a dictionary look-up and an addition each."""

    def __init__(self) -> None:
        self._calls = Histogram(
            "trivet_call_seconds", "How long callers waited for a synchronous invocation."
        )
        self._throttles = Tally(
            "trivet_throttles_total",
            "counter",
            "Events that were refused since nobody had room for them.",
            "lane",
            "function",
        )

    def answered(self, seconds: float) -> None:
        self._calls.observe(seconds)

    def throttled(self, lane: str, function: str) -> None:
        self._throttles.add(1, lane, function)

    def families(self) -> list[Family]:
        return [self._calls.family(), self._throttles.family()]


def publishing(lanes: Mapping[str, Publishing]) -> list[Family]:
    """What the publishers of this process did, by lane."""
    published = (((("lane", name),), lane.published) for name, lane in lanes.items())
    batches = (((("lane", name),), lane.batches) for name, lane in lanes.items())
    return [
        counter("trivet_published_total", "Events that were put on a lane.", *published),
        counter("trivet_publish_batches_total", "Writes that carried them.", *batches),
    ]


def rendered(families: Iterable[Family]) -> bytes:
    """The families in Prometheus' text format, each of one name in one place."""
    lines: list[str] = []
    for family in merged(list(families)):
        help = family.help.replace("\\", r"\\").replace("\n", r"\n")
        lines.append(f"# HELP {family.name} {help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for sample in family.samples:
            labels = _labels(sample.labels)
            lines.append(f"{family.name}{sample.suffix}{labels} {_number(sample.value)}")
    return "\n".join((*lines, "")).encode()


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
