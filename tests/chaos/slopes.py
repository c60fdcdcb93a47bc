"""Slopes: whether what was seen again and again stays what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """How much a figure may grow: so much of itself in an hour, or in the time it was watched
    by no more than noise."""

    share_per_hour: float
    noise: float  # in its own unit


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line through (time, value) that outliers do not bend: the median of the slopes of
    pairs that lie half of the points apart. Needs two points."""
    half = max(1, len(points) // 2)
    pairs = zip(points, points[half:], strict=False)
    return median((y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in pairs)


def growth(points: Sequence[tuple[float, float]], allowed: Allowed) -> tuple[float, float, bool]:
    """Growth over the second half of `points` (times in seconds): in an hour, as a share of its
    median; over the half itself, in its unit; and whether that is allowed."""
    later = points[len(points) // 2 :]
    per_s = slope(later)
    middle = median(value for _, value in later)
    grown = per_s * (later[-1][0] - later[0][0])
    share = per_s * 3_600 / middle if middle else 0.0
    return share, grown, share <= allowed.share_per_hour or grown <= allowed.noise
