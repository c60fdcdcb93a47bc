"""Pools: no gap is left in the memory that environments share with their template.

What an environment makes goes where the interpreter has room for it, and the page with that room is
copied, whatever else lies there. Without gaps all of it goes to pages that nothing else lies on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import repeat

# Blocks of each size, a multiple of 16, lie together in pools; a pool begins with what it is.
_POOL_BYTES = 16_384 if sys.version_info >= (3, 10) else 4_096
_HEAD_BYTES = 48
_LARGEST = 512
_LEAST = 256  # in a batch: the list of its first ones takes blocks too, as it grows
_MOST_BATCHES = 16  # where blocks are found in another way, no pool is ever seen to be new

# What makes one block of the two sizes that are too small for bytes.
_SMALL: dict[int, Callable[[], object]] = {16: object, 32: complex}

_kept: list[object] = []


def fill() -> None:
    """Take every free block of every pool in use, for good."""
    for size in range(16, _LARGEST + 1, 16):
        _take(_SMALL.get(size) or partial(bytes, size - sys.getsizeof(b"")), size)


def _take(make: Callable[[], object], size: int) -> None:
    """Until the blocks of a whole pool come one after the other: that one is new."""
    count = (_POOL_BYTES - _HEAD_BYTES) // size
    for _ in repeat(None, _MOST_BATCHES):
        blocks = [make() for _ in repeat(None, max(2 * count, _LEAST))]
        places = [id(block) for block in blocks]
        is_next = bytes(after - before == size for before, after in zip(places, places[1:]))
        del places  # numbers are blocks too
        new = is_next.find(b"\1" * (count - 1))
        _kept.append(blocks[:new] if new >= 0 else blocks)
        if new >= 0:
            return
