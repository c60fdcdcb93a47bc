"""Recovery: whatever is killed, callers get an answer, and the platform serves again by itself."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from tests.e2e.conftest import ROLE, Deployed, Running, deployer, descendants, zipped

from trivet.launcher.turns import STANDBY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SERVES_AGAIN_S = 2.0


@pytest.fixture(scope="module")
def mortal(start_platform: Callable[..., Running]) -> Running:
    """A platform that may be harmed."""
    return start_platform()


@pytest.fixture
def deploy(mortal: Running, request: pytest.FixtureRequest) -> Callable[..., Deployed]:
    return deployer(mortal, request)


def processes(running: Running, what: str) -> list[int]:
    """The pids whose command line holds `what`, those left out that only stand by."""
    found = []
    for pid in descendants(int(running.state["pid"])):
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == STANDBY:
                continue
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if what in command:
            found.append(pid)
    return found


def service(running: Running, what: str) -> int:
    """The process itself: of those that match, the one whose parent does not.

    One that was killed a moment ago is waited for.
    """
    ends = time.monotonic() + 10
    while True:
        pids = set(processes(running, what))
        roots = [p for p in pids if parent(p) not in pids]
        if "--kind" in what:  # a zygote that stands by is the younger one
            roots = sorted(roots, key=started)[:1]
        if len(roots) == 1:
            return roots[0]
        assert time.monotonic() < ends, (what, pids)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def started(pid: int) -> int:
    """When, in ticks."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def environments(running: Running) -> set[int]:
    """Those of Python, spares too. They have no command line, unlike the template beside them."""
    zygote = service(running, "--kind python")
    named = set(processes(running, "--kind python"))
    return {pid for pid in descendants(zygote) - named if parent(pid) == zygote}


VICTIMS = {
    "gateway": "trivet.gateway",
    "supervisor": "trivet.supervisor",
    "adapters": "trivet.adapters",
    "zygote of python": "--kind python",
    "zygote of node": "--kind node",
    "express server": "express.sock",
    "durable server": "durable.sock",
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_after_a_kill_it_serves_again_by_itself_and_nothing_is_lost(
    mortal: Running, deploy: Callable[..., Deployed], victim: str
) -> None:
    """P9"""
    function = deploy("def handler(e, c): return e")
    assert function.call(1) == 1
    pid = service(mortal, VICTIMS[victim])
    os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()
    while True:
        try:
            with ThreadPoolExecutor(1) as one:
                assert one.submit(function.call, 2).result(timeout=20) == 2
            break
        except (ClientError, BotoCoreError):
            assert time.monotonic() - killed_at < SERVES_AGAIN_S
    # Nothing is lost: the function, its code, the routes and the keys are all there.
    assert function.client.get_function(FunctionName=function.name)
    assert function.client.get_function(FunctionName="welcome")
    assert json.loads(mortal.trivet("env", "--json").stdout) == mortal.env
    fresh = deploy("def handler(e, c): return e")
    assert fresh.call(3) == 3


@pytest.mark.parametrize("victim", ["supervisor", "express server", "gateway"])
def test_callers_in_flight_get_an_error_and_no_hang(
    mortal: Running, deploy: Callable[..., Deployed], victim: str
) -> None:
    function = deploy(
        "import os, time\ndef handler(e, c):\n    print('running', flush=True)\n    time.sleep(50)",
        Timeout=60,
    )
    with ThreadPoolExecutor(4) as threads:
        calls: list[Future[Any]] = [threads.submit(function.call) for _ in range(4)]
        await_running(mortal, function.name, 4)
        killed_at = time.monotonic()
        os.kill(service(mortal, VICTIMS[victim]), signal.SIGKILL)
        for call in calls:
            with pytest.raises((ClientError, BotoCoreError)):
                call.result(timeout=20)
        assert time.monotonic() - killed_at < 5


def is_running(pid: int) -> bool:
    """A zombie is not: it only waits for whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def await_running(running: Running, function: str, count: int) -> None:
    folder = running.data / "logs" / function
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        if (
            folder.exists()
            and sum(f.read_text().count("running") for f in folder.iterdir()) >= count
        ):
            return
    raise AssertionError(f"{function} did not start {count} times")


def test_an_environment_that_is_killed_is_a_crash_of_the_function(
    mortal: Running, deploy: Callable[..., Deployed]
) -> None:
    function = deploy(
        "import time\ndef handler(e, c):\n    print('running', flush=True)\n    time.sleep(50)",
        Timeout=60,
    )
    before = environments(mortal)
    with ThreadPoolExecutor(1) as one:
        call = one.submit(function.call)
        await_running(mortal, function.name, 1)
        (environment,) = environments(mortal) - before
        os.kill(environment, signal.SIGKILL)
        payload = call.result(timeout=10)
    assert payload["errorType"] == "Runtime.ExitError"
    assert payload["errorMessage"].endswith("signal: killed")


def test_an_environment_outlives_its_zygote(
    mortal: Running, deploy: Callable[..., Deployed]
) -> None:
    function = deploy(
        "import time\n"
        "n = 0\n"
        "def handler(e, c):\n"
        "    global n\n"
        "    n += 1\n"
        "    print('running', flush=True)\n"
        "    time.sleep(e)\n"
        "    return n",
        Timeout=2,
    )
    assert function.call(0) == 1
    with ThreadPoolExecutor(1) as one:
        call = one.submit(function.call, 1)
        await_running(mortal, function.name, 2)
        os.kill(service(mortal, "--kind python"), signal.SIGKILL)
        assert call.result(timeout=10) == 2
    # And the zygote's successor can still end it.
    assert function.call(60)["errorType"] == "Sandbox.Timedout"
    assert function.call(0) == 1


def test_the_listener_refuses_nobody_while_the_gateway_restarts(mortal: Running) -> None:
    where = urlsplit(mortal.http_url)
    assert where.hostname
    assert where.port
    os.kill(service(mortal, VICTIMS["gateway"]), signal.SIGKILL)
    for _ in range(200):
        with socket.create_connection((where.hostname, where.port), timeout=5):
            pass


def test_killing_the_launcher_ends_everything(start_platform: Callable[..., Running]) -> None:
    """P10"""
    running = start_platform()
    function = running.client("lambda")
    assert function.invoke(FunctionName="welcome")["StatusCode"] == 200
    pids = running.pids()
    descriptors = [os.pidfd_open(pid) for pid in pids]
    os.kill(int(running.state["pid"]), signal.SIGKILL)
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    ends = time.monotonic() + 10
    while descriptors:
        for descriptor, _ in poll.poll(max(0.0, ends - time.monotonic()) * 1000):
            poll.unregister(descriptor)
            descriptors.remove(descriptor)
            os.close(descriptor)
        assert time.monotonic() < ends, f"{len(descriptors)} processes live on"
    running.up()
    assert running.client("lambda").invoke(FunctionName="welcome")["StatusCode"] == 200


def test_down_drains_and_leaves_nothing(start_platform: Callable[..., Running]) -> None:
    """P11"""
    running = start_platform()
    client = running.client("lambda", read_timeout=30)
    source = (
        "import time\n"
        "def handler(e, c):\n"
        "    print('running')\n"
        "    time.sleep(1)\n"
        "    return 'done'"
    )
    client.create_function(
        FunctionName="slow",
        Runtime=next(r["name"] for r in running.state["runtimes"] if r["name"] > "python"),
        Handler="app.handler",
        Role=ROLE,
        Timeout=10,
        Code={"ZipFile": zipped({"app.py": source})},
    )
    mounts = Path("/proc/mounts").read_text()
    pids = running.pids()
    with ThreadPoolExecutor(1) as one:
        call = one.submit(client.invoke, FunctionName="slow")
        await_running(running, "slow", 1)
        running.down()
        assert call.result(timeout=10)["Payload"].read() == b'"done"'
    assert not [pid for pid in pids if is_running(pid)]
    left = [str(p.relative_to(running.data)) for p in (running.data / "run").iterdir()]
    assert not [name for name in left if name.endswith((".sock", ".json"))]
    assert Path("/proc/mounts").read_text() == mounts
    assert subprocess.run(["pgrep", "-f", str(running.data)], check=False).returncode == 1
