"""Ordinary code keeps working in a jail: what the standard libraries of Python and Node can do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from tests.jail import jails
from tests.jail.jails import Jail, Spec
from tests.workers import driver

from trivet_worker import wire

# What answers with whether each of several things works, all of which must.
_ALL = None

_PYTHON: dict[str, Any] = {
    "threads": 55,
    "subprocesses": ["one", "two", "-15"],
    "asynchronous": "HELLO child",
    "http_on_localhost": "page",
    "multiprocessing_pipe": True,
    "multiprocessing_queue": errno.ENOENT,  # no shared memory, as on AWS
    "database": ["DELETE", "WAL"],
    "temporary_files": "text",
    "tmp_is_shared_by_children": "said",
    "programs_of_ones_own": "mine",
    "time_zones": ["2026-07-01T14:00:00+02:00", "UTC"],
    "machine": _ALL,
    "about_oneself": _ALL,
    "devices": _ALL,
    "input_by_path": "",
    "extensions": _ALL,
    "memory_maps": True,
    "polls_and_timers": _ALL,
    "sockets_of_ones_own": _ALL,
    "priorities": _ALL,
    "processes_of_ones_own": _ALL,
}

_NODE: dict[str, Any] = {
    "workerThreads": 168,
    "childProcesses": [42, "one", "42"],
    "cryptography": [True, 32, 36],
    "nameOfLocalhost": "127.0.0.1",
    "httpOnLocalhost": "page",
    "files": ["text", "zipped"],
    "watching": "rename",
}


def _specs(kind: str) -> pytest.MarkDecorator:
    users = (False, True) if os.geteuid() == 0 else (True,)
    specs = [Spec(kind, as_user) for as_user in users]
    return pytest.mark.parametrize("jail", specs, indirect=True, ids=str)


def _check(answer: Any, expected: Any) -> None:
    if expected is _ALL:
        assert answer == dict.fromkeys(answer, True)
    else:
        assert answer == expected


@_specs("python")
@pytest.mark.parametrize("name", _PYTHON)
def test_python_can(jail: Jail, name: str) -> None:
    _check(jail.call("harmless", name), _PYTHON[name])


@_specs("python")
def test_python_finds_certificates(jail: Jail) -> None:
    assert jail.call("harmless", "certificates") > 0


@_specs("python")
def test_python_finds_localhost(jail: Jail) -> None:
    assert "127.0.0.1" in jail.call("harmless", "names_of_localhost")


@_specs("python")
def test_python_knows_who_it_is(jail: Jail) -> None:
    name, same = jail.call("harmless", "who_am_i")
    assert name == same
    assert name


@_specs("node")
def test_node_knows_who_it_is(jail: Jail) -> None:
    assert jail.call("harmless", "whoAmI")


@_specs("python")
def test_the_log_can_be_opened_by_its_path(jail: Jail) -> None:
    environment = jail.spawn(jail.uid, "index.call")
    try:
        if os.geteuid() == 0 and not jails.needs_uid(jail.zygote):
            # As if its own user had made the pipe, who is the only one there then.
            os.fchown(environment.log_fd, driver.NOBODY, driver.NOBODY)
        arguments: dict[str, Any] = {}
        order = {"module": "harmless", "attack": "standard_streams_by_path"}
        answer = environment.invoke({**order, "arguments": arguments})
        assert answer.kind == wire.RESULT, answer.body.decode()
        assert environment.log() == "by path\n"
    finally:
        jails.end(environment)


@_specs("node")
@pytest.mark.parametrize("name", _NODE)
def test_node_can(jail: Jail, name: str) -> None:
    _check(jail.call("harmless", name), _NODE[name])


@_specs("node")
def test_node_knows_its_machine(jail: Jail) -> None:
    machine: Mapping[str, Any] = jail.call("harmless", "machine")
    assert machine == dict.fromkeys(machine, True)


@pytest.mark.slow
@pytest.mark.timeout(300)
@_specs("python")
def test_numpy_computes(jail: Jail) -> None:
    """Real numpy, installed beside the code as one deploys it."""
    code = jails.write_code()
    install = [sys.executable, "-m", "pip", "install", "-q", "--only-binary", ":all:"]
    try:
        subprocess.run([*install, "--target", str(code), "numpy"], check=True)
        order = {"module": "harmless", "attack": "numbers", "arguments": {}}
        environment = jails.spawn(jail.zygote, code, jail.uid, "index.call", tmp_mb=64)
        try:
            answer = environment.invoke(order, remaining_ms=60_000)
            assert answer.kind == wire.RESULT, answer.body.decode()
            assert answer.json == [200.0, 8.0]
        finally:
            jails.end(environment)
    finally:
        driver.remove_code(code)
