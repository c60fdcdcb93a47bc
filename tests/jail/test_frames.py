"""Forged frames: the supervisor's own reader of a channel on which a hostile handler writes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from tests.jail import jails
from tests.jail.jails import Jail, Spec
from tests.workers import driver

from trivet.core.lifecycle import Signal
from trivet.supervisor.environments import Environment
from trivet_worker import wire

_SPEC = Spec("python", os.geteuid() != 0)
in_a_jail = pytest.mark.parametrize("jail", [_SPEC], indirect=True, ids=str)

_REFUSED = (
    "another_attempt",
    "an_earlier_attempt",
    "initialised_again",
    "an_unknown_kind",
    "a_command",
    "a_giant",
    "one_too_large",
    "no_body",
    "half_a_usage",
)


@dataclass
class Body:
    """What the reader sends goes to a real environment, and its end is that one's end."""

    inside: driver.Environment
    number: int = 1
    is_refused: bool = False

    def send(self, data: bytes) -> None:
        self.inside.channel.sendall(data)

    deliver = send

    def throttle(self) -> None:
        return

    def peak_kib(self) -> int | None:
        return None

    def kill(self) -> None:
        self.inside.zygote.command(wire.KILL, self.inside.number)


class NeverCold:
    """No frost: nothing is frozen here."""

    def rested(self, environment: Environment) -> None:
        return

    def woken(self, environment: Environment) -> None:
        return


@dataclass
class Owner:
    """Notes what it is told, and ends whom it cannot believe."""

    answers: list[bytes] = field(default_factory=list)
    broken: int = 0

    def initialised(self, environment: Environment) -> None:
        return

    def answered(self, environment: Environment, is_error: bool, payload: bytes) -> None:
        self.answers.append(payload)
        environment.move(Signal.ANSWERED)

    def broke_protocol(self, environment: Environment) -> None:
        self.broken += 1
        environment.kill()

    def lost(self, environment: Environment) -> None:
        return


def _converse(jail: Jail, frame: str) -> Owner:
    """One event, and all that comes back until the handler has ended or was ended."""
    inside = jail.zygote.spawn(jail.code, uid=jail.uid if jails.needs_uid(jail.zygote) else 0)
    owner = Owner()
    order = {
        "handler": "frames.handler",
        "task_root": jail.world.task_root,
        "environment": {},
        "function": {
            "name": "f",
            "version": "1",
            "memory_mb": 128,
            "log_group": "g",
            "log_stream": "s",
        },
    }
    try:
        unused = cast(Any, None)
        init = json.dumps(order).encode()
        reader = Environment(
            cast(Any, owner), unused, cast(Any, Body(inside)), unused, init, NeverCold()
        )
        reader.embodied()
        reader.received(inside.channel.recv(65_536))
        head = driver.event_body(b"")
        reader.invoke(head, json.dumps({"frame": frame}).encode())
        # The handler's own answer may come together with the forged one.
        while not owner.broken and b'"mine"' not in owner.answers:
            data = inside.channel.recv(65_536)
            if not data:
                break
            reader.received(data)
        if owner.broken:
            assert driver.has_ended(inside.pidfd)
        return owner
    finally:
        jails.end(inside)


@in_a_jail
@pytest.mark.parametrize("frame", _REFUSED)
def test_a_forged_frame_ends_who_wrote_it(jail: Jail, frame: str) -> None:
    owner = _converse(jail, frame)
    assert (owner.answers, owner.broken) == ([], 1)


@in_a_jail
def test_a_second_answer_ends_who_wrote_it(jail: Jail) -> None:
    """The first is as good as the handler's own: it may answer for itself, and only once."""
    owner = _converse(jail, "answered_twice")
    assert (owner.answers, owner.broken) == ([b'"forged"'], 1)
