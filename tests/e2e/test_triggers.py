"""Files and schedules: what happens outside runs a function that had no environment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Deployed, Running, deployer
from tests.e2e.test_recovery import VICTIMS, service

pytestmark = pytest.mark.slow

Deploy = Callable[..., Deployed]

TELLS = "import json\ndef handler(event, context):\n    print('GOT', json.dumps(event))\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the platform's services, which have no privilege, can look into."""
    path = Path(tempfile.mkdtemp(prefix="trivet-inbox-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def got(platform: Running, function: Deployed, count: int) -> list[Any]:
    """The first events that the function was given, once there are so many."""
    deadline = time.monotonic() + 30
    logs = platform.client("logs")
    while True:
        try:
            found = logs.filter_log_events(
                logGroupName=f"/aws/lambda/{function.name}", filterPattern="GOT"
            )["events"]
        except logs.exceptions.ResourceNotFoundException:
            found = []
        if len(found) >= count:
            return [json.loads(line["message"].partition("GOT ")[2]) for line in found]
        assert time.monotonic() < deadline, found


def test_a_dropped_file_runs_a_function_at_zero(
    platform: Running, deploy: Deploy, folder: Path
) -> None:
    function = deploy(TELLS)
    (folder / "before.txt").write_text("there already")
    past = time.time() - 60
    os.utime(folder / "before.txt", (past, past))
    while time.time() * 1000 - (folder / "before.txt").stat().st_ctime_ns / 1e6 < 100:
        os.sched_yield()
    platform.trivet("trigger", "files", function.name, str(folder), "--name", f"{function.name}-f")
    (folder / "a photo.jpg").write_bytes(b"x" * 1024)
    (event,) = got(platform, function, 1)
    record = event["Records"][0]
    assert record["s3"]["bucket"]["name"] == folder.name
    assert record["s3"]["object"]["key"] == "a+photo.jpg"
    assert record["s3"]["object"]["size"] == 1024
    listed = json.loads(platform.trivet("trigger", "list", "--json").stdout)
    assert [t["folder"] for t in listed if t["function"] == function.name] == [str(folder)]
    platform.trivet("trigger", "rm", f"{function.name}-f")
    listed = json.loads(platform.trivet("trigger", "list", "--json").stdout)
    assert [t for t in listed if t["function"] == function.name] == []


def test_a_schedule_runs_a_function_at_zero_once_in_every_slot(
    platform: Running, deploy: Deploy
) -> None:
    function = deploy(TELLS)
    name = f"{function.name}-s"
    platform.trivet("trigger", "schedule", function.name, "rate(1 second)", "--name", name)
    events = got(platform, function, 3)
    platform.trivet("trigger", "rm", name)
    assert {event["source"] for event in events} == {"aws.events"}
    assert {event["detail-type"] for event in events} == {"Scheduled Event"}
    times = [event["time"] for event in events]
    assert len(set(times)) == len(times)
    assert events[0]["resources"] == [f"arn:aws:events:us-east-1:123456789012:rule/{name}"]


def test_what_cannot_be_watched_is_refused_with_the_command_that_mends_it(
    platform: Running, deploy: Deploy, folder: Path
) -> None:
    function = deploy(TELLS)
    refused = platform.trivet("trigger", "schedule", function.name, "rate(1 minutes)", check=False)
    assert "Parameter ScheduleExpression is not valid." in refused.stderr
    assert refused.stderr.endswith("hint: trivet trigger schedule --help\n")
    if os.geteuid() == 0:
        folder.chmod(0o700)
        refused = platform.trivet("trigger", "files", function.name, str(folder), check=False)
        assert refused.returncode == 1
        assert f"chmod o+rx {folder}" in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_adapters_that_are_killed_miss_no_slot_and_no_file_and_repeat_none(
    start_platform: Callable[..., Running], request: pytest.FixtureRequest, folder: Path
) -> None:
    running = start_platform()
    function = deployer(running, request)(TELLS)
    running.trivet("trigger", "schedule", function.name, "rate(1 second)")
    running.trivet("trigger", "files", function.name, str(folder))
    dropped = set()
    for n in range(5):
        for part in range(20):
            name = f"{n}-{part}"
            (folder / name).write_text(name)
            dropped.add(name)
        os.kill(service(running, VICTIMS["adapters"]), signal.SIGKILL)
        got(running, function, len(dropped) // 2)
        await_another(running)
    ends = time.monotonic() + 60
    while True:
        events = got(running, function, len(dropped))
        files = [e["Records"][0]["s3"]["object"]["key"] for e in events if "Records" in e]
        if set(files) == dropped:
            break
        assert time.monotonic() < ends, dropped - set(files)
    assert len(files) == len(dropped)
    slots = sorted(datetime.fromisoformat(e["time"]) for e in events if "time" in e)
    assert len(slots) > 5
    assert slots == [slots[0] + timedelta(seconds=n) for n in range(len(slots))]


def await_another(running: Running) -> None:
    """Wait until the launcher has started the adapters again."""
    ends = time.monotonic() + 30
    while True:
        try:
            service(running, VICTIMS["adapters"])
            return
        except AssertionError:
            if time.monotonic() > ends:
                raise
