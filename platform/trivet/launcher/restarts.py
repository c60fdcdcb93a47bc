"""Restarts: how long to wait before a part that died is started again."""

from __future__ import annotations

from dataclasses import dataclass

# At once the first time: a single crash costs nobody more than the start. Then doubling, so that
# a part that cannot live does not take the machine, up to what an operator can still watch.
_FIRST_S = 0.05
_LONGEST_S = 5.0

# A part that served, and lived this long, was healthy: its next death starts the count anew. One
# that cannot live ends as it begins, or is started no more often than this; whoever is killed now
# and then, every few seconds even, was well and comes back at once.
HEALTHY_AFTER_S = 1.5


@dataclass(frozen=True, slots=True)
class Restarts:
    """How often a part died without having been healthy in between."""

    count: int = 0

    def after_death(self, lived_s: float) -> Restarts:
        return Restarts(1 if lived_s >= HEALTHY_AFTER_S else self.count + 1)

    @property
    def delay_s(self) -> float:
        if self.count <= 1:
            return 0.0
        doublings = min(self.count - 2, 16)  # beyond it the longest holds anyway
        return float(min(_FIRST_S * 2**doublings, _LONGEST_S))


def spoken(delay_s: float) -> str:
    return f"started again in {delay_s:g} s" if delay_s else "started again at once"
