"""Recorder: notes in shared memory which line of a module followed which, and survives any jail.

Environments are forked, lose their files and their power, and end without a farewell: what they
did can be told only through memory that they share from the start. Each byte stands for one arc
of one module, from a line to a line; line 0 stands for the way in and out of a function. Run by a
zygote before anything else, so it needs nothing but the standard library.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

LINES = 512  # of the longest module


def size_of(paths: Sequence[str]) -> int:
    """Of the memory that is needed for modules, in bytes."""
    return len(paths) * LINES * LINES


def record(descriptor: int, paths: Sequence[str]) -> None:
    """From here on note the arcs of these files in the memory that `descriptor` refers to."""
    memory = mmap.mmap(descriptor, size_of(paths))
    places = {path: number * LINES * LINES for number, path in enumerate(paths)}

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        place = places.get(frame.f_code.co_filename)
        return None if place is None else _follower(memory, place)

    sys.settrace(enter)


def _follower(memory: mmap.mmap, place: int) -> Any:
    last = 0

    def follow(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal last
        if event == "line":
            memory[place + last * LINES + frame.f_lineno] = 1
            last = frame.f_lineno
        elif event == "return":
            memory[place + last * LINES] = 1
        elif event == "exception":
            last = 0  # where it leads is no decision of this line
        return follow

    return follow
