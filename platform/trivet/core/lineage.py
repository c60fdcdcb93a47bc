"""Lineage: how often an event has already passed through a function, as its trace header tells.

A function's SDK sends the trace of its invocation along with every call it makes. What comes back
to the same function for the sixteenth time goes round in a loop, and AWS stops it there.
"""

from __future__ import annotations

import zlib

MOST_PASSES = 16
TERMINATE, ALLOW = "Terminate", "Allow"

_FIELD = "Lineage="
_LONGEST = 1_024  # of a trace header that is read
_MOST_FUNCTIONS = 20  # in one lineage; beyond it the oldest is forgotten


def is_trace(header: str) -> bool:
    """Whether it may travel on as the trace of an event."""
    return "=" in header and len(header) <= _LONGEST and header.isascii() and header.isprintable()


def passes(trace: str, function: str) -> int:
    """How often the event of this trace was given to `function`, this time included."""
    return _counts(trace).get(_mark(function), 0)


def extended(trace: str, function: str) -> str:
    """The trace of an event that is given to `function` now."""
    counts = _counts(trace)
    count = counts.pop(_mark(function), 0)
    counts[_mark(function)] = count + 1
    kept = list(counts.items())[-_MOST_FUNCTIONS:]
    others = [part for part in _parts(trace) if not part.startswith(_FIELD)]
    lineage = "|".join(f"{mark}:{count}" for mark, count in kept)
    return ";".join((*others, f"{_FIELD}{lineage}"))


def _mark(function: str) -> str:
    return f"{zlib.crc32(function.encode()):08x}"


def _parts(trace: str) -> list[str]:
    return [part for part in trace[:_LONGEST].split(";") if part]


def _counts(trace: str) -> dict[str, int]:
    """By mark. A lineage that nobody of ours wrote counts nothing."""
    for part in _parts(trace):
        if part.startswith(_FIELD):
            pairs = [entry.partition(":") for entry in part[len(_FIELD) :].split("|")]
            return {mark: int(count) for mark, _, count in pairs if _is_count(count)}
    return {}


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 6
