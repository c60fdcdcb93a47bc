"""What environments share: nothing that one can change or use up reaches another, or the host."""

from __future__ import annotations

import os
import subprocess

import pytest
from tests.jail.jails import Attack, Host, Jail, Spec, fresh_uid, needs_root, needs_uid

from trivet_worker.wire import ISOLATION_SECCOMP

_SPECS = [Spec("python", as_user) for as_user in ((False, True) if os.geteuid() == 0 else (True,))]
both = pytest.mark.parametrize("jail", _SPECS, indirect=True, ids=str)


@both
def test_standard_input_is_ones_own(jail: Jail) -> None:
    assert jail.call("shared", "mark_input") == "marked"
    assert jail.call("shared", "is_input_marked") is False


_EVENTS = Attack(
    "take_events", "shared", "take_events", ISOLATION_SECCOMP, given=lambda world: {"count": 64}
)


@both
def test_the_machines_events_are_not_taken(jail: Jail) -> None:
    answer = jail.attempt(_EVENTS)
    assert not answer["escaped"], answer


@needs_root
@pytest.mark.parametrize("jail", [Spec(without=ISOLATION_SECCOMP)], indirect=True, ids=str)
def test_without_the_filter_they_are(jail: Jail) -> None:
    assert jail.attempt(_EVENTS)["escaped"]


# -------------------------------------------------------------- programs that change who one is


@both
def test_a_program_runs_as_who_runs_it(jail: Jail) -> None:
    """The function's code holds a set-user-id program of root's."""
    program = {"program": f"{jail.world.task_root}/id"}
    attack = Attack("run", "identity", "run_as_owner", 0, given=lambda world: program)
    answer = jail.attempt(attack)
    assert not answer["escaped"]
    if needs_uid(jail.zygote):
        assert f"ran as {jail.uid}" in answer["message"]


@pytest.mark.parametrize(
    "jail",
    [Spec("node", as_user) for as_user in ((False, True) if os.geteuid() == 0 else (True,))],
    indirect=True,
    ids=str,
)
def test_a_program_of_node_does_so_too(jail: Jail) -> None:
    program = {"program": "/var/task/id"}
    attack = Attack("run", "hostile", "runAsOwner", 0, given=lambda world: program, kind="node")
    assert not jail.attempt(attack)["escaped"]


@needs_root
def test_elsewhere_it_runs_as_its_owner(host: Host) -> None:
    uid = fresh_uid()
    run = subprocess.run([host.tool, "-u"], capture_output=True, user=uid, group=uid, check=True)
    assert run.stdout == b"0\n"
