"""Standbys and rolling restarts, with a real launcher and stand-ins for its parts."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from typing import Any

import pytest
from tests.platform.launched import DEADLINE_S, GOOD, Launched, has_ended

from trivet.launcher import orders

pytestmark = pytest.mark.slow

STANDING: dict[str, str] = dict.fromkeys(("gateway", "supervisor", "adapters"), "standing by")


@pytest.fixture
def launched() -> Iterator[Launched]:
    launched = Launched()
    try:
        yield launched
    finally:
        launched.close()


def asked(launched: Launched, order: bytes) -> list[dict[str, Any]]:
    """All that the launcher says to this order."""
    told: list[dict[str, Any]] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as launcher:
        launcher.connect(str(launched.run / orders.SOCKET))
        launcher.send(order)
        while launched.until_readable(launcher):
            message = launcher.recv(orders.MAX_ANSWER_BYTES)
            if not message:
                break
            told.append(json.loads(message))
    return told


def restarted(launched: Launched, part: str) -> list[str]:
    """Restart it; what was, in this order. The launcher must have been content."""
    *steps, last = asked(launched, bytes([orders.PARTS.index(part)]))
    assert last == {"ended": True, "error": ""}
    return [step["part"] for step in steps if step["state"] == "restarted"]


def happened(launched: Launched, *events: str) -> list[tuple[str, int]]:
    """Those events of services, in order, with the pids of who reported them."""
    launched.count("", "")
    return [
        (f"{e['name']} {e['event']}", e["pid"])
        for e in launched.events
        if f"{e['name']} {e['event']}" in events
    ]


def test_a_standby_takes_the_place_of_one_that_was_killed(launched: Launched) -> None:
    launched.up(STANDING)
    first = launched.event_of("gateway", "started")["pid"]
    while launched.count("gateway", "stands by") < 2:
        launched.wait()
    standby = launched.event_of("gateway", "stands by")["pid"]
    assert standby != first
    assert launched.count("gateway", "started") == 1
    os.kill(first, signal.SIGKILL)
    assert launched.successor("gateway", first) == standby
    while launched.count("gateway", "stands by") < 3:  # and it has one itself
        launched.wait()
    os.kill(standby, signal.SIGKILL)  # so soon again, which would else be a reason to wait
    launched.successor("gateway", standby)
    told = [line for line in launched.said().splitlines() if line.startswith("! gateway")]
    assert told == ["! gateway ended (signal 9), started again at once"] * 2


def test_a_standby_that_is_killed_harms_nobody(launched: Launched) -> None:
    launched.up(STANDING)
    while launched.count("gateway", "stands by") < 2:
        launched.wait()
    standby = launched.event_of("gateway", "stands by")["pid"]
    os.kill(standby, signal.SIGKILL)
    assert has_ended(standby)
    first = launched.event_of("gateway", "started")["pid"]
    os.kill(first, signal.SIGKILL)
    assert launched.successor("gateway", first) != standby


def zygotes_of(launched: Launched) -> list[int]:
    """The pid of the one that serves, and of the one that stands by."""
    while launched.count("zygote", "started") < 2:
        launched.wait()
    return [pid for _, pid in happened(launched, "zygote started")]


def test_a_zygote_that_stands_by_takes_over_and_environments_live_on(launched: Launched) -> None:
    process = launched.up({**GOOD, "zygote": "standing by"})
    environment = launched.event_of("environment", "started")["pid"]
    first, second = zygotes_of(launched)
    os.kill(first, signal.SIGKILL)
    while launched.count("supervisor", "zygote") < 2:
        launched.wait()
    os.kill(environment, 0)
    os.kill(launched.event_of("supervisor", "started")["pid"], signal.SIGKILL)
    assert has_ended(second)  # so that is the one that served
    assert has_ended(environment)
    process.send_signal(signal.SIGTERM)
    assert launched.ended(process) == 0


@pytest.mark.parametrize(("behaviour", "is_kept"), [("standing by", True), ("mute", False)])
def test_a_zygote_that_is_not_ready_to_take_over_goes_with_the_supervisor(
    launched: Launched, behaviour: str, is_kept: bool
) -> None:
    """Cgroups are cleared then, while it tries what works."""
    launched.up({**GOOD, "zygote": behaviour})
    first, second = zygotes_of(launched)
    supervisor = launched.event_of("supervisor", "started")["pid"]
    os.kill(supervisor, signal.SIGKILL)
    assert has_ended(first)
    launched.successor("supervisor", supervisor)
    while launched.count("supervisor", "zygote") < 2:
        launched.wait()
    if is_kept:
        os.kill(second, 0)
    else:
        assert has_ended(second)


def test_a_new_gateway_serves_before_the_old_one_is_asked_to_leave(launched: Launched) -> None:
    process = launched.up(STANDING)
    old = launched.event_of("gateway", "started")["pid"]
    assert restarted(launched, "gateway") == ["gateway"]
    (_, _), (started, new), (left, who) = happened(
        launched, "gateway started", "gateway asked to leave"
    )
    assert (started, left, who) == ("gateway started", "gateway asked to leave", old)
    assert new != old
    assert has_ended(old)
    # The supervisor and the new one know each other.
    supervisor = launched.event_of("supervisor", "started")["pid"]
    while (supervisor, f"gateway {new}") not in {
        (e["pid"], e["text"]) for e in launched.events if e["event"] == "heard"
    }:
        launched.wait()
    process.send_signal(signal.SIGTERM)
    assert launched.ended(process) == 0
    assert not [line for line in launched.said().splitlines() if line.startswith("!")]


def test_a_new_supervisor_starts_when_the_old_one_has_ended_and_with_it_a_zygote(
    launched: Launched,
) -> None:
    launched.up(STANDING)
    old = launched.event_of("supervisor", "started")["pid"]
    environment = launched.event_of("environment", "started")["pid"]
    assert restarted(launched, "supervisor") == ["supervisor"]
    new = launched.successor("supervisor", old)
    assert has_ended(old)
    assert has_ended(environment)
    while launched.event_of("supervisor", "zygote")["pid"] != new:
        launched.wait()
    assert happened(launched, "supervisor started", "supervisor asked to end") == [
        ("supervisor started", old),
        ("supervisor asked to end", old),
        ("supervisor started", new),
    ]
    assert launched.count("zygote", "started") == 2
    assert not [line for line in launched.said().splitlines() if line.startswith("!")]


def test_environments_live_on_when_their_zygote_is_restarted(launched: Launched) -> None:
    process = launched.up(STANDING)
    zygote = launched.event_of("zygote", "started")["pid"]
    environment = launched.event_of("environment", "started")["pid"]
    names = restarted(launched, "zygotes")
    assert [name.partition(" ")[0] for name in names] == ["zygote"]
    assert has_ended(zygote)
    os.kill(environment, 0)
    assert launched.count("supervisor", "started") == 1
    process.send_signal(signal.SIGTERM)
    assert launched.ended(process) == 0


def test_all_parts_are_restarted_one_after_another(launched: Launched) -> None:
    launched.up(STANDING)
    assert restarted(launched, orders.ALL) == ["gateway", "supervisor", "adapters"]
    for name in ("gateway", "supervisor", "adapters"):
        assert launched.count(name, "started") == 2


def test_a_gateway_whose_successor_does_not_start_serves_on(launched: Launched) -> None:
    process = launched.up({**STANDING, "gateway": "heirless"})
    old = launched.event_of("gateway", "started")["pid"]
    *_, last = asked(launched, bytes([orders.PARTS.index(orders.ALL)]))
    assert last["error"].startswith(
        "a new gateway did not become ready, so the old one serves on; it said: "
    )
    os.kill(old, 0)
    assert launched.count("gateway", "asked to leave") == 0
    assert launched.count("supervisor", "started") == 1
    process.send_signal(signal.SIGTERM)
    assert launched.ended(process) == 0


@pytest.mark.parametrize("order", [b"\xff", b"\x01\x01", b""])
def test_whoever_says_anything_else_is_not_listened_to(launched: Launched, order: bytes) -> None:
    launched.up(STANDING)
    assert asked(launched, order) == []
    assert launched.count("gateway", "started") == 1
    assert restarted(launched, "gateway") == ["gateway"]


def test_only_the_launchers_own_user_may_give_orders(launched: Launched) -> None:
    launched.up(STANDING)
    status = (launched.run / orders.SOCKET).stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (os.geteuid(), 0o600)


def test_a_second_restart_is_refused_while_one_is_under_way(launched: Launched) -> None:
    launched.up(STANDING)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
        first.connect(str(launched.run / orders.SOCKET))
        first.send(bytes([0]))
        first.settimeout(DEADLINE_S)
        assert json.loads(first.recv(8192))["state"] == "restarting"
        (refused,) = asked(launched, bytes([0]))
    assert refused == {"ended": True, "error": "another restart is under way"}
    # Who asked has left; what was begun is done all the same.
    while launched.count("adapters", "started") < 2:
        launched.wait()
