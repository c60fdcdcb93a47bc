"""What surrounds services and environments, as the kernel tells it from outside."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.conftest import Deployed, Running, descendants

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give others a uid")


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@AS_ROOT
def test_every_service_has_a_uid_of_its_own_and_no_capability(platform: Running) -> None:
    """P14"""
    uids = {}
    for pid in descendants(int(platform.state["pid"])):
        words = command(pid)
        for name in ("trivet.gateway", "trivet.supervisor", "trivet.adapters", ".sock"):
            if name in words:
                uids[pid] = status(pid)["Uid"].split()[0]
                assert int(status(pid)["CapEff"], 16) == 0, words
                assert status(pid)["Groups"] in ("", uids[pid], str(64_100)), words
    assert len(uids) == 7  # two of them stand by
    assert "0" not in uids.values()
    assert len(set(uids.values())) == 4  # both Valkeys share one


@AS_ROOT
def test_an_environment_runs_as_nobody_else_and_can_gain_nothing(
    platform: Running, deploy: Callable[..., Deployed]
) -> None:
    """P15"""
    source = (
        "import os\n"
        "def handler(e, c):\n"
        "    text = open('/proc/self/status').read()\n"
        "    return dict(line.split(':', 1) for line in text.splitlines() if ':' in line)"
    )
    seen = (
        {name: value.strip() for name, value in deploy(source).call().items()},
        {name: value.strip() for name, value in deploy(source).call().items()},
    )
    for environment in seen:
        assert int(environment["Uid"].split()[0]) >= 100_000
        assert environment["Groups"] == ""
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(environment[name], 16) == 0
        assert environment["NoNewPrivs"] == "1"
    assert seen[0]["Uid"] != seen[1]["Uid"]


def test_an_environment_cannot_reach_the_platform_s_files(
    platform: Running, deploy: Callable[..., Deployed]
) -> None:
    function = deploy(
        "def handler(path, c):\n"
        "    try:\n"
        "        open(path).close()\n"
        "    except OSError as error:\n"
        "        return type(error).__name__\n"
        "    return 'read'"
    )
    folder = platform.data
    for path in ("run/platform.json", "aws/config", "durable/appendonlydir", "logs"):
        assert function.call(str(folder / path)) in ("PermissionError", "FileNotFoundError"), path


def test_an_environment_cannot_connect_to_the_lanes(
    platform: Running, deploy: Callable[..., Deployed]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("with one uid for all, only the jail's mounts will hide the sockets")
    function = deploy(
        "import socket\n"
        "def handler(path, c):\n"
        "    try:\n"
        "        socket.socket(socket.AF_UNIX).connect(path)\n"
        "    except OSError as error:\n"
        "        return type(error).__name__\n"
        "    return 'connected'"
    )
    for name in ("express.sock", "durable.sock"):
        path = str(platform.data / "run" / name)
        assert function.call(path) in ("PermissionError", "FileNotFoundError")
