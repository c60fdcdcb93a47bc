"""Events are refused while there is still room, and what was accepted ends; nobody waits for long
for a server that has stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from botocore.exceptions import ClientError
from tests.e2e.conftest import Deployed, Running, deployer
from tests.e2e.test_async import MARK, accept, await_ran
from tests.e2e.test_recovery import VICTIMS, service

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mortal(start_platform: Callable[..., Running]) -> Running:
    return start_platform()


def failure(call: Callable[[], object]) -> dict[str, Any] | None:
    """What it was refused with, if it was."""
    try:
        call()
    except ClientError as error:
        return dict(error.response)
    return None


def refused(function: Deployed, within_s: float = 10) -> dict[str, str]:
    """The headers of the 503 that events get, once they do."""
    ends = time.monotonic() + within_s
    while True:
        error = failure(lambda: accept(function, 0))
        if error is not None:
            assert error["ResponseMetadata"]["HTTPStatusCode"] == 503
            assert error["Error"]["Code"] == "ServiceUnavailableException"
            headers: dict[str, str] = error["ResponseMetadata"]["HTTPHeaders"]
            return headers
        assert time.monotonic() < ends


def accepted(function: Deployed, payload: object, within_s: float = 10) -> None:
    ends = time.monotonic() + within_s
    while True:
        try:
            accept(function, payload)
        except ClientError:
            assert time.monotonic() < ends
        else:
            return


def test_too_little_disk_is_a_503_with_retry_after(
    start_platform: Callable[..., Running], request: pytest.FixtureRequest
) -> None:
    running = start_platform(TRIVET_DISK_RESERVE_MB=str(10**9))
    function = deployer(running, request)(MARK)
    assert refused(function)["retry-after"] == "1"
    assert function.call(1) is None  # a synchronous call writes nothing there


def test_near_the_limit_of_memory_events_are_refused_and_those_accepted_end(
    mortal: Running, request: pytest.FixtureRequest
) -> None:
    function = deployer(mortal, request)(f"import time\n{MARK}; time.sleep(0.3)")
    for n in range(5):
        accept(function, n)
    with redis.Redis(unix_socket_path=str(mortal.data / "run" / "durable.sock")) as durable:
        used = int(durable.info("memory")["used_memory"])
        before = durable.config_get("maxmemory")["maxmemory"]
        durable.config_set("maxmemory", used)
        try:
            assert refused(function)["retry-after"] == "1"
            await_ran(mortal, function, {str(n) for n in range(5)})
        finally:
            durable.config_set("maxmemory", before)
    accepted(function, "again")
    await_ran(mortal, function, {"again"})


@pytest.fixture
def stopped(mortal: Running) -> Iterator[Callable[[str], None]]:
    """Stops servers of the platform until the test is over."""
    pids: list[int] = []

    def stop(name: str) -> None:
        pids.append(service(mortal, VICTIMS[name]))
        os.kill(pids[-1], signal.SIGSTOP)

    yield stop
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def test_a_stopped_durable_server_is_a_503_and_calls_go_on(
    mortal: Running, request: pytest.FixtureRequest, stopped: Callable[[str], None]
) -> None:
    function = deployer(mortal, request)(MARK)
    function.call("warm")
    stopped("durable server")
    began = time.monotonic()
    refused(function)
    assert time.monotonic() - began < 9  # the first one waits for its deadline
    began = time.monotonic()
    refused(function)  # and then nobody does any more
    assert time.monotonic() - began < 1
    assert function.call("meanwhile") is None
    os.kill(service(mortal, VICTIMS["durable server"]), signal.SIGCONT)
    accepted(function, "after")
    await_ran(mortal, function, {"meanwhile", "after"})


def test_a_stopped_express_server_is_a_5xx_and_goes_on_where_it_was(
    mortal: Running, request: pytest.FixtureRequest, stopped: Callable[[str], None]
) -> None:
    function = deployer(mortal, request)(MARK)
    function.call("warm")
    stopped("express server")
    ends = time.monotonic() + 30
    while True:
        began = time.monotonic()
        error = failure(lambda: function.call("lost"))
        assert error is None or error["ResponseMetadata"]["HTTPStatusCode"] >= 500
        if error is not None and time.monotonic() - began < 1:
            break
        assert time.monotonic() < ends
    os.kill(service(mortal, VICTIMS["express server"]), signal.SIGCONT)
    ends = time.monotonic() + 10
    while True:
        try:
            function.call("after")
            break
        except ClientError:
            assert time.monotonic() < ends
