"""Isolation: which level the layers around execution environments add up to, and its words.

L3 is for hostile code; L2 the same without limits on memory, CPU and processes; L1 has no
namespaces, but filters system calls and confines files; L0 is everything below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum

from trivet_worker.wire import (
    ISOLATION_CGROUP,
    ISOLATION_LANDLOCK,
    ISOLATION_MOUNT,
    ISOLATION_NETWORK,
    ISOLATION_PID,
    ISOLATION_SECCOMP,
    ISOLATION_UID,
    ISOLATION_USER,
)


class Level(IntEnum):
    """How far hostile code is contained; a larger one contains more."""

    L0 = 0
    L1 = 1
    L2 = 2
    L3 = 3


# Alternatives in the first place: a uid of its own, or, without root, a user namespace.
_WHO = ISOLATION_UID | ISOLATION_USER
_WALLS = ISOLATION_PID | ISOLATION_MOUNT | ISOLATION_NETWORK | ISOLATION_SECCOMP
_NEEDED = {
    Level.L0: 0,
    Level.L1: ISOLATION_SECCOMP | ISOLATION_LANDLOCK,
    Level.L2: _WHO | _WALLS,
    Level.L3: _WHO | _WALLS | ISOLATION_CGROUP,
}

_IS_MISSING = {
    _WHO: "a uid or user namespace of their own",
    ISOLATION_PID: "a PID namespace",
    ISOLATION_MOUNT: "mounts of their own",
    ISOLATION_NETWORK: "a network of their own",
    ISOLATION_SECCOMP: "a filter of system calls (seccomp)",
    ISOLATION_LANDLOCK: "Landlock",
    ISOLATION_CGROUP: "limits on memory, CPU and processes (cgroups)",
}

_WARNINGS = {
    Level.L0: "not for hostile code",
    Level.L1: "no namespaces: only for code that you half trust",
    Level.L2: "no cgroups: memory, CPU and processes have no bounds",
}
_CUT_OFF = "no egress: functions reach Trivet only"


def level(bits: int) -> Level:
    """The level of environments with these layers; `bits`: wire.ISOLATION_*."""
    return max(each for each in Level if not _lacking(bits, each))


def missing(bits: int, wanted: Level | None = None) -> tuple[str, ...]:
    """What environments lack for `wanted`, by default the next level, in words.

    Without any namespace the next level of L0 is L1; else the gaps of L2 are the ones to close.
    """
    if wanted is None:
        now = level(bits)
        wanted = Level(min(now + 1, Level.L3))
        if now is Level.L0 and bits & (ISOLATION_PID | ISOLATION_MOUNT | ISOLATION_NETWORK):
            wanted = Level.L2
    return tuple(_IS_MISSING[layer] for layer in _lacking(bits, wanted))


def summary(bits: int, *, cgroup_version: int | None = None, is_cut_off: bool = False) -> str:
    """The isolation in one line for people: its level, its layers, and what it is not good for.

    `is_cut_off`: their networks lead nowhere, though somebody asked for more.
    """
    reached = level(bits)
    layers = ", ".join(_layers(bits, cgroup_version)) or "separate processes only"
    notes = [_WARNINGS[reached]] if reached in _WARNINGS else []
    if is_cut_off and bits & ISOLATION_NETWORK:
        notes.append(_CUT_OFF)
    return "; ".join([f"{reached.name}  {layers}", *notes])


def _lacking(bits: int, wanted: Level) -> list[int]:
    needed = _NEEDED[wanted]
    return [layer for layer in _IS_MISSING if needed & layer and not bits & layer]


def _layers(bits: int, cgroup_version: int | None) -> Iterator[str]:
    owned = ["uid"] if bits & ISOLATION_UID else []
    if namespaces := [*_namespaces(bits)]:
        kind = "namespace" if len(namespaces) == 1 else "namespaces"
        owned.append(f"{_joined(namespaces)} {kind}")
    if owned:
        yield f"own {', '.join(owned)}"
    if bits & ISOLATION_SECCOMP:
        yield "seccomp"
    if bits & ISOLATION_LANDLOCK:
        yield "Landlock"
    if bits & ISOLATION_CGROUP:
        yield f"cgroups v{cgroup_version}" if cgroup_version else "cgroups"


def _namespaces(bits: int) -> Iterator[str]:
    if bits & ISOLATION_USER:
        yield "user"
    if bits & ISOLATION_PID:
        yield "PID"
    if bits & ISOLATION_MOUNT:
        yield "mount"
    if bits & ISOLATION_NETWORK:
        yield "network"
    if bits & ISOLATION_MOUNT:  # these two come with the mounts
        yield from ("IPC", "UTS")
    if bits & ISOLATION_CGROUP:
        yield "cgroup"


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
