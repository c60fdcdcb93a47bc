"""What `trivet doctor` says of the isolation of functions, and the command for each gap."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.platform.test_cli import Shell, served, shell

from trivet.cli import jail_checks
from trivet.cli.checks import Finding
from trivet.launcher import hierarchies
from trivet.launcher.hierarchies import Survey
from trivet.settings import Settings
from trivet_worker import wire

__all__ = ["served", "shell"]  # fixtures

# Alone, since they look for what is left on the whole machine.
pytestmark = pytest.mark.slow
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may try it")


def only(findings: Iterator[Finding]) -> Finding:
    (found,) = findings
    return found


@as_root
def test_networks_and_scratch_are_tried_and_leave_nothing(tmp_path: Path) -> None:
    devices = sorted(os.listdir("/sys/class/net"))
    settings = Settings(data=str(tmp_path / "not" / "yet"))
    assert only(jail_checks.networks(settings)).state == "ok"
    tried = only(jail_checks.scratch(settings))
    assert (tried.state, tried.fix) in {("ok", ""), ("warning", tried.fix)}
    assert list(tmp_path.iterdir()) == []
    assert sorted(os.listdir("/sys/class/net")) == devices


@as_root
def test_scratch_on_a_disk_in_memory_is_told(tmp_path: Path) -> None:
    """/dev/shm is one: what is written there would be charged to nobody."""
    tried = only(jail_checks.scratch(Settings(data="/dev/shm/trivet")))
    assert tried.state == "warning"
    assert tried.text.startswith("/tmp of functions is in memory: ")
    assert "modprobe loop" in tried.fix
    assert only(jail_checks.scratch(Settings(scratch="memory"))).state == "ok"


def test_a_namespace_that_is_refused_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = {"user": "", "mount": "", "a mount in it": "Permission denied"}
    monkeypatch.setattr(jail_checks, "_tried", lambda *_: json.dumps(refused))
    found = only(jail_checks.namespaces(Settings()))
    assert (found.state, bool(found.fix)) == ("warning", True)
    assert found.text.endswith("for lack of a mount in it: Permission denied")


def test_the_switch_that_closes_user_namespaces_is_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ubuntu has it since 24.04."""
    name = "kernel.apparmor_restrict_unprivileged_userns"
    (tmp_path / name).write_text("1\n")
    monkeypatch.setattr(jail_checks, "_switch", lambda switch: tmp_path / switch)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = only(jail_checks.user_namespaces(Settings()))
    assert (found.state, found.text) == ("warning", f"closed by {name}")
    assert found.fix == f"sudo sysctl -w {name}=0"


def test_no_cgroups_and_cgroups_without_controllers_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(hierarchies, "survey", lambda: Survey(reason="nothing is mounted"))
    found = only(jail_checks.cgroups(Settings()))
    assert (found.state, found.text.partition(":")[0]) == ("warning", "nothing is mounted")
    (tmp_path / "cgroup.controllers").write_text("cpu io\n")
    places = dict.fromkeys(("memory", "cpu", "pids", "freezer"), tmp_path)
    monkeypatch.setattr(hierarchies, "survey", lambda: Survey(2, places, places))
    found = only(jail_checks.cgroups(Settings()))
    assert (found.state, found.text.partition(":")[0]) == ("warning", "v2 without memory, pids")
    assert "Delegate=yes" in found.fix


def test_a_firewall_that_drops_what_is_forwarded_is_told_with_the_rules_that_open_it() -> None:
    chain = {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward"}
    told = {"nftables": [{"metainfo": {}}, {"chain": {**chain, "policy": "drop"}}]}
    ((name, fix),) = jail_checks.dropping_in_nft(told)
    assert name == "nftables chain ip filter FORWARD"
    assert fix.startswith("sudo nft insert rule ip filter FORWARD iifname '\"tv*\"' accept; ")
    assert not [
        *jail_checks.dropping_in_nft({"nftables": [{"chain": {**chain, "policy": "accept"}}]})
    ]
    assert not [*jail_checks.dropping_in_nft({})]
    ((name, fix),) = jail_checks.dropping_in_iptables(
        "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n"
    )
    assert fix.endswith("sudo iptables -I FORWARD -o tv+ -j ACCEPT")
    assert not [*jail_checks.dropping_in_iptables("-P FORWARD ACCEPT\n")]


CONFINED = wire.ISOLATION_SECCOMP | wire.ISOLATION_LANDLOCK


@pytest.mark.parametrize(("minimum", "state"), [("L0", "warning"), ("L2", "problem")])
def test_the_level_of_a_running_platform_is_judged_by_the_least_that_is_wanted(
    served: Shell, minimum: str, state: str
) -> None:
    file = served.data / "run" / "platform.json"
    details: dict[str, Any] = json.loads(file.read_text())
    file.write_text(json.dumps({**details, "isolation": "L1  x", "isolation_bits": CONFINED}))
    found = only(jail_checks.isolation(Settings(data=str(served.data), isolation_minimum=minimum)))
    assert found.state == state
    assert found.text.startswith("L1  x. For L2 functions lack a uid or user namespace")
    file.write_text(json.dumps({**details, "isolation": "L3  x", "isolation_bits": 255}))
    assert only(jail_checks.isolation(Settings(data=str(served.data)))).state == "ok"


def test_what_only_root_has_is_not_promised_to_others(
    served: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is root sent to a data folder that it would refuse."""
    file = served.data / "run" / "platform.json"
    details: dict[str, Any] = json.loads(file.read_text())
    bits = 255 & ~wire.ISOLATION_CGROUP
    file.write_text(json.dumps({**details, "isolation": "L2  x", "isolation_bits": bits}))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = only(jail_checks.isolation(Settings(data=str(served.data))))
    assert (found.state, found.text.startswith("L2  x. For L3")) == ("warning", True)
    assert re.search(r"down; sudo .* up --data /var/lib/trivet$", found.fix)
    assert only(jail_checks.scratch(Settings())).fix.endswith(" --data /var/lib/trivet")


def test_every_check_answers(tmp_path: Path) -> None:
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = jail_checks.OF_THE_JAIL
    findings = [f for check in checks for f in check(Settings(data=str(tmp_path)))]
    assert all(bool(each.fix) == (each.state != "ok") for each in findings)
    assert {"seccomp", "landlock"} <= {each.subject for each in findings}
