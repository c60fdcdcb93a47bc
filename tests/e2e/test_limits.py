"""Limits: memory, files, processes and CPU of a function, and what is told of who goes beyond."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Deployed, Running, deployer, descendants
from tests.platform.caged import survey_v1

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="without root there are no cgroups")

Deploy = Callable[..., Deployed]

MB = 2**20


def report(answer: dict[str, Any]) -> str:
    return base64.b64decode(answer["LogResult"]).decode().splitlines()[-1]


def most_memory_mb(answer: dict[str, Any]) -> int:
    found = re.search(r"Max Memory Used: (\d+) MB", report(answer))
    assert found is not None
    return int(found[1])


# -------------------------------------------------------------------------------------- memory

FILLS_MEMORY = """
count = 0

def handler(megabytes, context):
    global count
    count += 1
    held = b"x" * (megabytes << 20)
    return [count, len(held) >> 20]
"""


def test_too_much_memory_ends_the_function_as_aws_tells_it(deploy: Deploy) -> None:
    function, neighbour = deploy(FILLS_MEMORY), deploy(FILLS_MEMORY)
    assert neighbour.call(50) == [1, 50]
    assert function.call(1) == [1, 1]
    answer = function.invoke(200, LogType="Tail")
    request_id = answer["ResponseMetadata"]["RequestId"]
    assert answer["FunctionError"] == "Unhandled"
    assert json.loads(answer["Payload"]) == {
        "errorType": "Runtime.ExitError",
        "errorMessage": f"RequestId: {request_id} Error: Runtime exited with error: signal: killed",
    }
    assert report(answer).endswith("\tStatus: error\tError Type: Runtime.OutOfMemory")
    assert most_memory_mb(answer) == 128
    assert function.call(1) == [1, 1]  # in another environment
    assert neighbour.call(50) == [2, 50]  # in the same one as before


def test_the_memory_that_is_told_is_the_memory_that_was_used(deploy: Deploy) -> None:
    function = deploy(FILLS_MEMORY, MemorySize=512)
    small = most_memory_mb(function.invoke(1, LogType="Tail"))
    large = most_memory_mb(function.invoke(200, LogType="Tail"))
    assert 195 <= large - small <= 210  # what the large one needed besides, the small one did too
    assert small < 60


# --------------------------------------------------------------------------------------- files

FILLS_FILES = """
import errno

def handler(megabytes, context):
    block, written = bytes(1 << 20), 0
    try:
        with open("/tmp/large", "wb", buffering=0) as file:
            while written < megabytes << 20:
                written += file.write(block)
    except OSError as error:
        return [written >> 20, errno.errorcode[error.errno]]
    return [written >> 20, None]
"""

RESERVES_FILES = """
import errno, os

def handler(megabytes, context):
    descriptor = os.open("/tmp/large", os.O_CREAT | os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, megabytes << 20)
    except OSError as error:
        return errno.errorcode[error.errno]
    finally:
        os.close(descriptor)
        os.unlink("/tmp/large")
"""


def test_a_small_function_may_fill_its_files(deploy: Deploy) -> None:
    """They are no memory of its, though they hold four times as much."""
    function = deploy(FILLS_FILES, Timeout=50)
    answer = function.invoke(600, LogType="Tail")
    megabytes, error = json.loads(answer["Payload"])
    assert error == "ENOSPC"
    assert 480 <= megabytes <= 512
    assert most_memory_mb(answer) < 64


def test_more_files_are_to_be_had_by_the_megabyte(deploy: Deploy) -> None:
    function = deploy(RESERVES_FILES, EphemeralStorage={"Size": 1024}, Timeout=20)
    assert [function.call(megabytes) for megabytes in (1000, 1040)] == [None, "ENOSPC"]
    usual = deploy(RESERVES_FILES, Timeout=20)
    assert [usual.call(megabytes) for megabytes in (500, 520)] == [None, "ENOSPC"]


# ----------------------------------------------------------------------------------- processes

# A few more than it may have, and no more than that. They do nothing, and end with it.
FORKS = """
import os, signal

def handler(most, context):
    if not most:
        return os.getuid()
    children = []
    try:
        while len(children) < most:
            pid = os.fork()
            if pid == 0:
                signal.pause()
                os._exit(0)
            children.append(pid)
    except BlockingIOError:
        pass
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)
    return len(children)
"""

MOST_PROCESSES = 1024


@pytest.mark.slow
def test_processes_are_bounded(platform: Running, deploy: Deploy) -> None:
    function = deploy(FORKS, MemorySize=1024, Timeout=50)
    uid = function.call(0)
    # Nothing is tried that nothing would stop.
    assert _limit_of_processes(platform, uid) == MOST_PROCESSES
    made = function.call(MOST_PROCESSES + 16)
    assert MOST_PROCESSES - 8 <= made < MOST_PROCESSES
    assert function.call(0) == uid  # it is none the worse for it


def _limit_of_processes(platform: Running, uid: int) -> int:
    top = survey_v1().tops["pids"]
    for pid in descendants(int(platform.state["pid"])):
        if Path(f"/proc/{pid}").stat().st_uid == uid:
            for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                if "pids" in controllers.split(","):
                    return int(Path(f"{top}{path}/pids.max").read_text())
    raise LookupError(uid)


# ----------------------------------------------------------------------------------------- CPU

BURNS = """
import time

def burn(seconds):
    began_s, until_s = time.monotonic(), time.process_time() + seconds
    while time.process_time() < until_s:
        pass
    return time.monotonic() - began_s

initialised_s = burn(0.2)

def handler(event, context):
    return [initialised_s, burn(0.2)]
"""


@pytest.mark.slow
def test_with_a_quota_a_small_function_gets_a_small_part_of_a_cpu(
    start_platform: Callable[..., Running], request: pytest.FixtureRequest
) -> None:
    """And while it initialises as much as there is, as on AWS."""
    function = deployer(start_platform(TRIVET_CPU="quota"), request)(BURNS, Timeout=20)
    initialised_s, handled_s = function.call()
    # 128 MB are 7 % of a CPU: 200 ms take 2.8 s, less what it saved while it did nothing.
    assert handled_s > 1.5
    assert initialised_s < handled_s / 2


def test_without_a_quota_nothing_holds_a_function_up(deploy: Deploy) -> None:
    _, handled_s = deploy(BURNS, Timeout=20).call()
    assert handled_s < 1.5
