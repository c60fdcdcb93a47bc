"""Schedule: which faults strike, in which order. The same seed gives the same schedule."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PAIRED = 0.15  # of the faults, how many strike together with the one before


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is done to one part of the platform."""

    kind: str  # an injector's name
    part: str
    seconds: float = 0.0  # how long it lasts, where it lasts

    def __str__(self) -> str:
        return f"{self.kind} {self.part}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """So many faults of a kind, which last from `shortest_s` to `longest_s`, rather shortly."""

    kind: str
    part: str
    count: int
    shortest_s: float = 0.0
    longest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """Faults that strike together, and how long is waited once all is well again."""

    faults: tuple[Fault, ...]
    rest_s: float


def steps(seed: int, wanted: Sequence[Wanted], *, rest_s: float) -> list[Step]:
    """All that is wanted, shuffled. `rest_s` is the mean.

    As far as that can be, a part is not struck again within two steps: who dies young is started
    again later on purpose.
    """
    dice = random.Random(seed)
    faults = [_fault(dice, each) for each in wanted for _ in range(each.count)]
    dice.shuffle(faults)
    groups = list(_grouped(dice, _spread(faults)))
    return [Step(group, round(dice.uniform(0.5, 1.5) * rest_s, 2)) for group in groups]


def _fault(dice: random.Random, wanted: Wanted) -> Fault:
    span_s = wanted.longest_s - wanted.shortest_s
    # Short ones are more frequent: a long one takes the time of several.
    seconds = wanted.shortest_s + span_s * dice.random() ** 3
    return Fault(wanted.kind, wanted.part, round(seconds, 2))


def _spread(faults: Sequence[Fault]) -> list[Fault]:
    left, found = list(faults), list[Fault]()
    while left:
        recent = {fault.part for fault in found[-2:]}
        place = next((i for i, fault in enumerate(left) if fault.part not in recent), 0)
        found.append(left.pop(place))
    return found


def _grouped(dice: random.Random, faults: Sequence[Fault]) -> Iterator[tuple[Fault, ...]]:
    group: tuple[Fault, ...] = ()
    for fault in faults:
        fits = len(group) == 1 and fault.part != group[0].part
        if fits and dice.random() < PAIRED:
            yield (*group, fault)
            group = ()
            continue
        if group:
            yield group
        group = (fault,)
    if group:
        yield group
