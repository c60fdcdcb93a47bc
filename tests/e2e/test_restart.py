"""Rolling restarts and redeploys under load: no call fails, each runs wholly old or new code."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.e2e.conftest import ROLE, Running, descendants, zipped

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CALLERS = 8
CALLS_PER_S = 200
PYTHON = f"python3.{sys.version_info.minor}"

# Two files of the package and a variable: they are of one deployment, or of two.
HANDLER = """
import os
import part

NUMBER = {number}


def handler(event, context):
    beside = open(os.path.join(os.path.dirname(__file__), "number.txt")).read()
    return [NUMBER, part.NUMBER, int(beside), int(os.environ["NUMBER"])]
"""


def package(number: int) -> bytes:
    return zipped(
        {
            "app.py": HANDLER.format(number=number),
            "part.py": f"NUMBER = {number}\n",
            "number.txt": str(number),
        }
    )


@dataclass
class Traffic:
    """What the callers saw."""

    answers: list[tuple[float, Any]] = field(default_factory=list)  # when asked, what came
    failures: list[str] = field(default_factory=list)
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def wait(self, count: int) -> None:
        """Until so many more calls have ended."""
        for _ in range(count):
            assert self.ended.acquire(timeout=60)


@contextmanager
def traffic(caller: Callable[[], AbstractContextManager[Callable[[], Any]]]) -> Iterator[Traffic]:
    """Callers at a steady rate, each with a connection of its own."""
    seen, stop = Traffic(), threading.Event()
    pause_s = CALLERS / CALLS_PER_S

    def run() -> None:
        due = time.monotonic()
        with caller() as ask:
            while not stop.wait(max(0.0, due - time.monotonic())):
                asked = time.monotonic()
                try:
                    seen.answers.append((asked, ask()))
                except Exception as error:
                    seen.failures.append(f"{type(error).__name__}: {error}")
                seen.ended.release()
                due = max(due + pause_s, time.monotonic() - 1.0)

    callers = [threading.Thread(target=run) for _ in range(CALLERS)]
    for thread in callers:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in callers:
            thread.join()


@pytest.fixture(scope="module")
def mortal(start_platform: Callable[..., Running]) -> Running:
    """A platform whose parts come and go."""
    return start_platform()


@contextmanager
def kept_connection(running: Running) -> Iterator[Callable[[], int]]:
    """Calls of the welcome function over one connection, for as long as the server keeps it."""
    where = urlsplit(running.http_url)
    assert where.hostname
    connection = http.client.HTTPConnection(where.hostname, where.port or 80, timeout=60)

    def ask() -> int:
        connection.request("GET", "/welcome?name=Alice")
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise AssertionError(f"{answer.status} {body!r}")
        return answer.status

    try:
        yield ask
    finally:
        connection.close()


def parts(running: Running) -> dict[str, int]:
    """Pids of the processes that serve, by the name that they go by."""
    found = {}
    for pid in descendants(int(running.state["pid"])):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        if name in ("gateway", "supervisor", "adapters"):
            found[name] = pid
    return found


def test_no_call_fails_while_every_part_is_restarted(mortal: Running) -> None:
    before = parts(mortal)
    with traffic(lambda: kept_connection(mortal)) as seen:
        for _ in range(2):
            told = json.loads(mortal.trivet("restart", "--json").stdout)
            names = [each["part"] for each in told["restarted"]]
            assert names == ["gateway", "supervisor", "adapters"]
        mortal.trivet("restart", "zygotes")
        told = json.loads(mortal.trivet("restart", "gateway", "--json").stdout)
        assert [each["part"] for each in told["restarted"]] == ["gateway"]
    assert seen.failures == []
    assert len(seen.answers) > 100
    after = parts(mortal)
    assert set(before) == set(after) == {"gateway", "supervisor", "adapters"}
    assert not set(before.values()) & set(after.values())


def test_what_runs_when_the_supervisor_is_restarted_runs_to_its_end(mortal: Running) -> None:
    client = mortal.client("lambda", read_timeout=60)
    source = "import time\ndef handler(e, c):\n    time.sleep(4)\n    return 'done'"
    client.create_function(
        FunctionName="slow",
        Runtime=PYTHON,
        Handler="app.handler",
        Role=ROLE,
        Timeout=20,
        Code={"ZipFile": zipped({"app.py": source})},
    )
    client.get_waiter("function_active_v2").wait(FunctionName="slow")
    answers: list[bytes] = []

    def call() -> None:
        answers.append(client.invoke(FunctionName="slow")["Payload"].read())

    caller = threading.Thread(target=call)
    caller.start()
    try:
        mortal.trivet("restart", "gateway", "supervisor")
    finally:
        caller.join()
    assert answers == [b'"done"']


def test_every_call_runs_one_deployment_while_twenty_follow_each_other(mortal: Running) -> None:
    client = mortal.client("lambda", read_timeout=60)
    client.create_function(
        FunctionName="redeployed",
        Runtime=PYTHON,
        Handler="app.handler",
        Role=ROLE,
        Timeout=10,
        Code={"ZipFile": package(0)},
        Environment={"Variables": {"NUMBER": "0"}},
    )
    client.get_waiter("function_active_v2").wait(FunctionName="redeployed")
    updated: list[tuple[float, int]] = [(time.monotonic(), 0)]

    @contextmanager
    def caller() -> Iterator[Callable[[], Any]]:
        own = mortal.client("lambda", read_timeout=60)

        def ask() -> Any:
            answer = own.invoke(FunctionName="redeployed")
            payload = json.loads(answer["Payload"].read())
            assert "FunctionError" not in answer, payload
            return payload

        yield ask
        own.close()

    with traffic(caller) as seen:
        for number in range(1, 21):
            settings = {"Variables": {"NUMBER": str(number)}}
            client.update_function_configuration(FunctionName="redeployed", Environment=settings)
            client.get_waiter("function_updated_v2").wait(FunctionName="redeployed")
            client.update_function_code(FunctionName="redeployed", ZipFile=package(number))
            client.get_waiter("function_updated_v2").wait(FunctionName="redeployed")
            updated.append((time.monotonic(), number))
            seen.wait(20)
    assert seen.failures == []
    assert len(seen.answers) > 100
    for asked, (module, part, text, variable) in seen.answers:
        # The settings were changed before the code: between the two they are one ahead.
        assert module == part == text
        assert variable - module in (0, 1)
        # Whoever asks after an update was done gets it, or a later one.
        assert module >= max(number for at, number in updated if at <= asked)


def test_a_part_that_is_unknown_and_a_platform_that_is_not_there_are_told(
    mortal: Running, tmp_path: Path
) -> None:
    unknown = mortal.trivet("restart", "engine", check=False)
    assert unknown.returncode == 2
    assert "there is no part called engine" in unknown.stderr
    assert "gateway, supervisor, adapters, zygotes, provisioner" in unknown.stderr
    absent = mortal.trivet("restart", "--data", str(tmp_path), check=False)
    assert absent.returncode == 1
    assert "no platform is running" in absent.stderr
