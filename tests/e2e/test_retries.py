"""Asynchronous invocations that fail: retries, destinations and dead letters, as AWS has them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import redis
from tests.e2e.conftest import ROLE, Deployed, Running, deployer, zipped
from tests.e2e.test_async import accept, ran

from trivet.bus import frames, keys
from trivet.core.retries import Progress

pytestmark = pytest.mark.slow  # each of them waits between its attempts

Deploy = Callable[..., Deployed]


@pytest.fixture(scope="module")
def hasty(start_platform: Callable[..., Running]) -> Running:
    """A platform that waits for a moment and a second where AWS waits for minutes."""
    return start_platform(TRIVET_RETRY_AFTER_S="0.2 1")


@pytest.fixture
def deploy(hasty: Running, request: pytest.FixtureRequest) -> Deploy:
    return deployer(hasty, request)


def ended(running: Running, function: Deployed, count: int = 1) -> list[dict[bytes, bytes]]:
    """The entries of the function's ledger, once there are so many."""
    socket = str(running.data / "run" / "durable.sock")
    ledger = keys.ledger(function.name)
    with redis.Redis(unix_socket_path=socket) as durable:
        entries: Any = durable.xrange(ledger)
        while len(entries) < count:
            last = entries[-1][0] if entries else "0"
            assert durable.xread({ledger: last}, block=30_000), f"{len(entries)} of {count} ended"
            entries = durable.xrange(ledger)
    return [fields for _, fields in entries]


def progress(entry: dict[bytes, bytes]) -> Progress:
    return frames.unpack_progress(entry[b"p"])


FAILS = "def handler(e, c):\n    print('ran', c.aws_request_id)\n    raise ValueError('no')"


def test_a_failing_event_is_tried_three_times_under_one_id(hasty: Running, deploy: Deploy) -> None:
    function = deploy(FAILS)
    request_id = accept(function, 1)
    (entry,) = ended(hasty, function)
    assert entry[b"i"].decode() == request_id
    assert (entry[b"s"], entry[b"c"]) == (b"dead", b"RetriesExhausted")
    attempts = progress(entry).attempts
    assert [a.status for a in attempts] == ["error"] * 3
    gaps = [b.ended_ms - a.ended_ms for a, b in pairwise(attempts)]
    assert gaps[0] >= 200
    assert gaps[1] >= 1000
    ends = time.monotonic() + 10
    while ran(hasty, function) != [request_id] * 3:  # lines reach the disk a moment later
        assert time.monotonic() < ends


def test_it_succeeds_when_the_function_does(hasty: Running, deploy: Deploy) -> None:
    function = deploy(
        "count = 0\ndef handler(e, c):\n    global count\n    count += 1\n"
        "    if count < 2: raise ValueError('not yet')\n    return 'done'"
    )
    accept(function, 1)
    (entry,) = ended(hasty, function)
    assert entry[b"s"] == b"success"
    assert [a.status for a in progress(entry).attempts] == ["error", "ok"]


TELLS = "import json\ndef handler(e, c): print('ran', json.dumps(e))"


def told(running: Running, function: Deployed) -> dict[str, Any]:
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        lines = ran(running, function)
        if lines:
            assert len(lines) == 1
            record: dict[str, Any] = json.loads(lines[0])
            return record
    raise AssertionError("the destination was not told")


def configure(function: Deployed, **members: Any) -> None:
    function.client.put_function_event_invoke_config(FunctionName=function.name, **members)


def arn(function: Deployed) -> str:
    found = function.client.get_function_configuration(FunctionName=function.name)
    return str(found["FunctionArn"])


def test_the_failure_destination_gets_awss_record(hasty: Running, deploy: Deploy) -> None:
    function, listener = deploy(FAILS), deploy(TELLS)
    configure(
        function,
        MaximumRetryAttempts=1,
        DestinationConfig={"OnFailure": {"Destination": arn(listener)}},
    )
    request_id = accept(function, {"n": 1})
    record = told(hasty, listener)
    assert record["version"] == "1.0"
    assert record["requestContext"] == {
        "requestId": request_id,
        "functionArn": f"{arn(function)}:$LATEST",
        "condition": "RetriesExhausted",
        "approximateInvokeCount": 2,
    }
    assert record["requestPayload"] == {"n": 1}
    assert record["responseContext"] == {
        "statusCode": 200,
        "executedVersion": "$LATEST",
        "functionError": "Unhandled",
    }
    assert record["responsePayload"]["errorMessage"] == "no"
    (entry,) = ended(hasty, function)
    assert entry[b"s"] == b"destination"


def test_the_success_destination_gets_the_answer(hasty: Running, deploy: Deploy) -> None:
    function, listener = deploy("def handler(e, c): return {'got': e}"), deploy(TELLS)
    configure(function, DestinationConfig={"OnSuccess": {"Destination": arn(listener)}})
    accept(function, 7)
    record = told(hasty, listener)
    assert record["requestContext"]["condition"] == "Success"
    assert record["responsePayload"] == {"got": 7}
    assert "functionError" not in record["responseContext"]


def test_a_bus_gets_an_event_as_eventbridge_writes_it(hasty: Running, deploy: Deploy) -> None:
    function = deploy("def handler(e, c): return e")
    bus = "arn:aws:events:us-east-1:123456789012:event-bus/default"
    configure(function, DestinationConfig={"OnSuccess": {"Destination": bus}})
    request_id = accept(function, 7)
    socket = str(hasty.data / "run" / "durable.sock")
    ends = time.monotonic() + 20
    with redis.Redis(unix_socket_path=socket) as durable:
        entries: Any = []
        while not entries:
            assert time.monotonic() < ends
            entries = durable.xrange(keys.bus_entries("default"))
    event = json.loads(entries[-1][1][b"e"])
    assert event["source"] == "lambda"
    assert event["detail-type"] == "Lambda Function Invocation Result - Success"
    assert event["resources"] == [bus, f"{arn(function)}:$LATEST"]
    assert event["detail"]["requestContext"]["requestId"] == request_id


def test_a_poison_event_is_set_aside_after_three_crashes(hasty: Running, deploy: Deploy) -> None:
    function = deploy("import os\ndef handler(e, c): os._exit(1)")
    accept(function, 1)
    (entry,) = ended(hasty, function)
    assert (entry[b"s"], entry[b"c"]) == (b"dead", b"PoisonPill")
    assert [a.status for a in progress(entry).attempts] == ["crash"] * 3


def test_without_concurrency_an_event_goes_straight_to_its_destination(
    hasty: Running, deploy: Deploy
) -> None:
    function, listener = deploy("def handler(e, c): print('ran')"), deploy(TELLS)
    configure(function, DestinationConfig={"OnFailure": {"Destination": arn(listener)}})
    function.client.put_function_concurrency(
        FunctionName=function.name, ReservedConcurrentExecutions=0
    )
    accept(function, 1)
    record = told(hasty, listener)
    assert record["requestContext"]["condition"] == "ZeroReservedConcurrency"
    assert record["requestContext"]["approximateInvokeCount"] == 0
    assert ran(hasty, function) == []
    with pytest.raises(function.client.exceptions.TooManyRequestsException):
        function.invoke(1)


def test_a_change_of_the_configuration_holds_for_the_next_end(
    hasty: Running, deploy: Deploy
) -> None:
    function = deploy(FAILS)
    accept(function, 1)
    ended(hasty, function)
    configure(function, MaximumRetryAttempts=0)
    accept(function, 2)
    entries = ended(hasty, function, 2)
    assert [len(progress(entry).attempts) for entry in entries] == [3, 1]


def test_an_event_whose_function_is_deleted_is_dropped(hasty: Running, deploy: Deploy) -> None:
    function = deploy(FAILS)
    accept(function, 1)
    ends = time.monotonic() + 10
    while len(ran(hasty, function)) < 2:  # it waits for its third attempt, for a second
        assert time.monotonic() < ends
    function.client.delete_function(FunctionName=function.name)
    (entry,) = ended(hasty, function)
    assert (entry[b"s"], entry[b"c"]) == (b"dropped", b"FunctionDeleted")
    assert len(progress(entry).attempts) == 2
    function.client.create_function(  # the deployer wants to delete it
        FunctionName=function.name,
        Runtime=f"python3.{sys.version_info.minor}",
        Handler="app.handler",
        Role=ROLE,
        Code={"ZipFile": zipped({"app.py": FAILS})},
    )


def test_a_function_that_sends_itself_events_is_stopped(hasty: Running, deploy: Deploy) -> None:
    function = deploy(
        "import boto3, os\n"
        "def handler(e, c):\n"
        "    print('ran')\n"
        "    boto3.client('lambda').invoke(\n"
        "        FunctionName=c.function_name, InvocationType='Event', Payload=b'1')\n",
        Timeout=30,
    )
    accept(function, 1)
    entries = ended(hasty, function, 17)
    conditions = [entry[b"c"] for entry in entries]
    assert conditions.count(b"Success") == 16
    assert conditions.count(b"RecursiveInvocation") == 1
