"""Which level the layers of isolation add up to, what is missing, and how it is said."""

from __future__ import annotations

from itertools import product

import pytest

from trivet.core.isolation import Level, level, missing, summary
from trivet_worker import wire

WALLS = wire.ISOLATION_PID | wire.ISOLATION_MOUNT | wire.ISOLATION_NETWORK | wire.ISOLATION_SECCOMP
ROOTS = WALLS | wire.ISOLATION_UID | wire.ISOLATION_LANDLOCK
FULL = ROOTS | wire.ISOLATION_CGROUP
OTHERS = WALLS | wire.ISOLATION_USER | wire.ISOLATION_LANDLOCK
CONFINED = wire.ISOLATION_SECCOMP | wire.ISOLATION_LANDLOCK

LAYERS = {name: bit for name, bit in vars(wire).items() if name.startswith("ISOLATION_")}


@pytest.mark.parametrize(
    ("bits", "reached"),
    [
        (FULL, Level.L3),
        (FULL & ~wire.ISOLATION_LANDLOCK, Level.L3),
        (OTHERS | wire.ISOLATION_CGROUP, Level.L3),
        (ROOTS, Level.L2),
        (OTHERS, Level.L2),
        (CONFINED, Level.L1),
        (CONFINED | wire.ISOLATION_UID | wire.ISOLATION_CGROUP, Level.L1),
        (FULL & ~wire.ISOLATION_SECCOMP, Level.L0),
        (FULL & ~wire.ISOLATION_NETWORK & ~wire.ISOLATION_LANDLOCK, Level.L0),
        (0, Level.L0),
    ],
)
def test_layers_add_up_to_a_level(bits: int, reached: Level) -> None:
    assert level(bits) is reached


@pytest.mark.parametrize("layer", [wire.ISOLATION_PID, wire.ISOLATION_MOUNT, wire.ISOLATION_UID])
def test_without_one_wall_only_the_confinement_is_left(layer: int) -> None:
    assert level(FULL & ~layer) is Level.L1


def test_a_further_layer_never_lowers_the_level() -> None:
    for bits, layer in product(range(256), LAYERS.values()):
        assert level(bits | layer) >= level(bits)


def test_nothing_is_missing_from_a_level_that_is_reached_and_something_from_the_next() -> None:
    for bits in range(256):
        assert missing(bits, level(bits)) == ()
        assert bool(missing(bits)) == (level(bits) < Level.L3)


def test_what_is_missing_is_said_in_words() -> None:
    assert missing(ROOTS) == ("limits on memory, CPU and processes (cgroups)",)
    assert missing(0) == ("a filter of system calls (seccomp)", "Landlock")
    assert missing(FULL & ~wire.ISOLATION_NETWORK) == ("a network of their own",)
    assert missing(wire.ISOLATION_PID | wire.ISOLATION_UID) == (
        "mounts of their own",
        "a network of their own",
        "a filter of system calls (seccomp)",
    )
    assert len(missing(0, Level.L3)) == 6


def test_the_line_at_boot_names_the_layers() -> None:
    assert summary(FULL, cgroup_version=1) == (
        "L3  own uid, PID, mount, network, IPC, UTS and cgroup namespaces, seccomp, Landlock,"
        " cgroups v1"
    )
    assert summary(OTHERS) == (
        "L2  own user, PID, mount, network, IPC and UTS namespaces, seccomp, Landlock;"
        " no cgroups: memory, CPU and processes have no bounds"
    )
    assert summary(FULL).endswith(", cgroups")


def test_networks_that_lead_nowhere_are_said_where_more_was_asked_for() -> None:
    assert summary(OTHERS, is_cut_off=True).endswith(
        "have no bounds; no egress: functions reach Trivet only"
    )
    assert summary(FULL, is_cut_off=True).endswith(
        ", cgroups; no egress: functions reach Trivet only"
    )
    assert "egress" not in summary(CONFINED, is_cut_off=True)  # the host's own network


def test_the_lowest_level_is_said_loudly() -> None:
    assert summary(0) == "L0  separate processes only; not for hostile code"
    assert summary(wire.ISOLATION_UID | wire.ISOLATION_PID) == (
        "L0  own uid, PID namespace; not for hostile code"
    )
    assert summary(CONFINED).startswith("L1  seccomp, Landlock; no namespaces")
