"""Figures: medians of things measured in turns, and the ratios of each round."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Measurement = Mapping[str, float]
"""Values by names that carry their units."""

# Of these the sum counts: a median would hide them.
SUMMED = ("errors",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the caller chose."""

    rounds: int
    seconds: int  # of one run under load
    environments: int  # of each runtime for idle, at once for burst
    limit: Path | None
    peer: str  # URL; empty: none
    counts: tuple[int, ...] = (1, 2)  # of environments that drain, a case for each
    events: int = 20_000  # to drain
    rate: int = 500  # events published a second
    flushes: str = "always"  # appendfsync of the queues' server
    installs: bool = False  # queues that are missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The first of the things measured, put into proportion to another one of its round."""

    to: str
    of: str  # the value compared
    median: float
    rounds: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One case of one benchmark."""

    bench: str
    case: str
    medians: dict[str, dict[str, float]]  # by what was measured
    ratios: list[Ratio]


def compared(
    bench: str,
    case: str,
    subjects: Mapping[str, Callable[[], Measurement]],
    *,
    of: str,
    rounds: int,
) -> Figure:
    """Measure each subject in turn, and put the value `of` of the first one into proportion."""
    taken: dict[str, list[Measurement]] = {name: [] for name in subjects}
    for number in range(rounds):
        # Who goes first changes, so that a drift in speed favours nobody.
        names = sorted(subjects, reverse=bool(number % 2))
        for name in names:
            taken[name].append(subjects[name]())
        print(f"  {bench}, {case}: round {number + 1}/{rounds}", file=sys.stderr)
    first, *others = subjects
    ratios = []
    for other in others:
        pairs = zip(taken[first], taken[other], strict=True)
        by_round = [round(a[of] / b[of], 3) for a, b in pairs]
        median = round(statistics.median(by_round), 3)
        ratios.append(Ratio(to=other, of=of, median=median, rounds=by_round))
    medians = {name: _medians(runs) for name, runs in taken.items()}
    return Figure(bench=bench, case=case, medians=medians, ratios=ratios)


def _medians(runs: list[Measurement]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key in runs[0]:
        values = [run[key] for run in runs]
        found[key] = sum(values) if key in SUMMED else round(statistics.median(values), 2)
    return found


def shown(figures: list[Figure]) -> str:
    lines: list[str] = []
    for figure in figures:
        lines.append(f"{figure.bench}, {figure.case}")
        for name, medians in figure.medians.items():
            values = "   ".join(f"{key} {value:,.10g}" for key, value in medians.items())
            lines.append(f"    {name:<16} {values}")
        for ratio in figure.ratios:
            rounds = " ".join(f"{value:g}" for value in ratio.rounds)
            lines.append(f"    ratio to {ratio.to}: {ratio.median:g} in {ratio.of} ({rounds})")
    return "\n".join(lines)
