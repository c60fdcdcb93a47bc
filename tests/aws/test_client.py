"""Client and AsyncClient against a real door, and against servers that misbehave."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.aws.conftest import ACCESS_KEY, SECRET, Opener, Speak

import trivet
from trivet import (
    AsyncClient,
    Client,
    FunctionNotFound,
    RequestTooLarge,
    Result,
    Throttled,
    TrivetError,
    Unavailable,
)
from trivet.aws import logs
from trivet.aws.services import Caller, Operation, Services
from trivet.client.operations import BATCHES_IN_FLIGHT, MOST_IN_BATCH
from trivet.errors import CallerError
from trivet.store.logs import FUNCTION, LogWriter

pytestmark = pytest.mark.slow


class Platform:
    """Operations that answer as the platform would, and remember what they were asked."""

    def __init__(self) -> None:
        self.invoked: list[dict[str, Any]] = []
        self.batches: list[list[dict[str, Any]]] = []
        self.refuses: dict[str, TrivetError] = {}
        self.full_from = 10**9  # the number of the first event that finds the lane full

    @property
    def tables(self) -> dict[str, dict[str, Operation]]:
        return {
            "lambda": {"Invoke": self.invoke, "GetFunctionConfiguration": self.describe},
            "trivet": {"PublishEvents": self.publish},
            "logs": dict(logs.OPERATIONS),
        }

    async def invoke(
        self, services: Services, params: dict[str, Any], caller: Caller
    ) -> dict[str, Any]:
        name = params["FunctionName"]
        if name in self.refuses:
            raise self.refuses[name]
        self.invoked.append(params)
        request_id = caller.request_id
        init = "Init Duration: 31.07 ms\t" if name == "cold" else ""
        tail = (
            f"REPORT RequestId: {request_id}\tDuration: 9 ms\tBilled Duration: 9 ms\tmine\n"
            f"END RequestId: {request_id}\n"
            f"REPORT RequestId: {request_id}\tDuration: 1.50 ms\tBilled Duration: 33 ms\t"
            f"Memory Size: 128 MB\tMax Memory Used: 20 MB\t{init}\n"
        )
        answer = {
            "StatusCode": 200,
            "Payload": params.get("Payload", b"null"),
            "LogResult": base64.b64encode(tail.encode()).decode(),
        }
        return {**answer, "FunctionError": "Unhandled"} if name == "fails" else answer

    async def describe(
        self, services: Services, params: dict[str, Any], caller: Caller
    ) -> dict[str, Any]:
        if params["FunctionName"] != "quiet":
            raise FunctionNotFound("Function not found: it")
        return {"FunctionName": "quiet"}

    async def publish(
        self, services: Services, params: dict[str, Any], caller: Caller
    ) -> dict[str, Any]:
        begin = sum(map(len, self.batches))
        self.batches.append(params["Events"])
        results = []
        for number, event in enumerate(params["Events"], begin):
            told: dict[str, Any] = {"Id": f"{number:08x}-0000-0000-0000-000000000000"}
            if number >= self.full_from:
                told |= {"ErrorCode": Throttled.error_type, "ErrorMessage": "Rate Exceeded."}
            elif event.get("Once") == "again":
                told["Duplicate"] = True
            results.append(told)
        return {"FailedCount": 0, "Results": results}


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
def url(open_door: Opener, platform: Platform) -> Iterator[str]:
    with open_door(platform.tables) as url:
        yield url


# ------------------------------------------------------------------------------- invoke


def test_a_result_has_the_payload_and_what_the_report_says(url: str, speak: Speak) -> None:
    result = speak(url, "invoke", "cold", {"name": "Ålice", "n": [1, 2.5, None]})
    assert isinstance(result, Result)
    assert result.payload == {"name": "Ålice", "n": [1, 2.5, None]}
    assert (result.function_error, result.cold) == (None, True)
    assert (result.duration_ms, result.billed_ms) == (1.5, 33)
    assert f"END RequestId: {result.request_id}\n" in result.logs
    assert speak(url, "invoke", "warm").cold is False


def test_an_error_of_the_function_is_a_result(url: str, speak: Speak) -> None:
    result = speak(url, "invoke", "fails", b'{"errorType": "ValueError"}')
    assert (result.function_error, result.payload) == ("Unhandled", {"errorType": "ValueError"})


def test_any_name_that_aws_knows_is_sent_as_it_is(
    url: str, speak: Speak, platform: Platform
) -> None:
    names = ["f", "f:$LATEST", "arn:aws:lambda:us-east-1:123456789012:function:f"]
    for name in names:
        speak(url, "invoke", name)
    assert [params["FunctionName"] for params in platform.invoked] == names


@pytest.mark.parametrize(
    "refusal",
    [
        FunctionNotFound("Function not found: it"),
        Throttled("Rate Exceeded.", Reason="ConcurrentInvocationLimitExceeded"),
        RequestTooLarge("7000000 byte payload is too large"),
        Unavailable("The express lane is away; try again in a moment."),
        CallerError("The invoked function is not enabled with tenancy configuration."),
        trivet.PlatformError("The platform lost this invocation."),
    ],
)
def test_refusals_come_back_as_the_errors_they_were(
    url: str, speak: Speak, platform: Platform, refusal: TrivetError
) -> None:
    platform.refuses["f"] = refusal
    with pytest.raises(TrivetError) as told:
        speak(url, "invoke", "f")
    assert type(told.value) is type(refusal)
    assert (told.value.message, told.value.status) == (refusal.message, refusal.status)
    assert told.value.error_type == refusal.error_type
    assert told.value.members.get("Reason") == refusal.members.get("Reason")


def test_what_aws_says_of_a_bad_name_is_passed_on(url: str, speak: Speak) -> None:
    with pytest.raises(CallerError, match="validation error detected") as told:
        speak(url, "invoke", "no/name")
    assert told.value.status == 400


def test_a_foreign_key_is_refused_with_the_command_that_mends_it(url: str) -> None:
    with (
        Client(url, access_key=ACCESS_KEY, secret="another") as client,
        pytest.raises(CallerError, match="signature we calculated") as told,
    ):
        client.invoke("f")
    assert told.value.status == 403
    assert told.value.hint.startswith("eval ")
    assert told.value.error_type == "InvalidSignatureException"


@pytest.mark.parametrize("payload", [float("nan"), {1, 2}, object()])
def test_what_json_cannot_hold_is_not_sent(url: str, speak: Speak, payload: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        speak(url, "invoke", "f", payload)


# ------------------------------------------------------------------------------ publish


def test_publish_gives_the_id_and_nothing_for_a_duplicate(
    url: str, speak: Speak, platform: Platform
) -> None:
    assert speak(url, "publish", "f", {"a": 1}).startswith("00000000-")
    assert speak(url, "publish", "f", once="again") == ""
    assert platform.batches == [
        [{"Function": "f", "Payload": '{"a":1}'}],
        [{"Function": "f", "Payload": "null", "Once": "again"}],
    ]


def test_many_events_leave_in_batches_and_keep_their_order(
    url: str, speak: Speak, platform: Platform
) -> None:
    count = 2 * MOST_IN_BATCH + 5
    ids = speak(url, "publish_many", (("f", number, f"once-{number}") for number in range(count)))
    assert len(set(ids)) == count
    assert [len(batch) for batch in platform.batches] == [MOST_IN_BATCH, MOST_IN_BATCH, 5]
    sent = {event["Payload"]: event["Once"] for batch in platform.batches for event in batch}
    assert sent == {str(number): f"once-{number}" for number in range(count)}
    assert speak(url, "publish_many", []) == []


def test_large_events_are_fewer_in_a_batch(url: str, speak: Speak, platform: Platform) -> None:
    large = '"' * 500_000  # twice as much once it is JSON, and twice that within JSON
    assert all(speak(url, "publish_many", [("f", large)] * 8))
    assert [len(batch) for batch in platform.batches] == [2, 2, 2, 2]


def test_a_full_lane_is_an_error_that_tells_what_was_taken(
    url: str, speak: Speak, platform: Platform
) -> None:
    platform.full_from = MOST_IN_BATCH + 10
    events = [("f", number) for number in range(20 * MOST_IN_BATCH)]
    with pytest.raises(Throttled, match=r"Rate Exceeded\.") as told:
        speak(url, "publish_many", events)
    ids = told.value.members["ids"]
    assert isinstance(ids, list)
    assert [bool(event_id) for event_id in ids[: MOST_IN_BATCH + 11]] == [
        *[True] * (MOST_IN_BATCH + 10),
        False,
    ]
    # Nothing was sent beyond what was on its way already.
    assert len(platform.batches) <= BATCHES_IN_FLIGHT + 2


def test_a_generator_that_fails_leaves_no_connection_behind(url: str, platform: Platform) -> None:
    def events() -> Iterator[tuple[str, int]]:
        for number in range(2 * MOST_IN_BATCH):
            yield ("f", number)
        raise KeyError("mine")

    with Client(url, access_key=ACCESS_KEY, secret=SECRET, connections=2) as client:
        for _ in range(3):
            with pytest.raises(KeyError):
                client.publish_many(events())
        assert client.invoke("f").payload is None


def test_few_connections_are_enough_for_many_threads(url: str, platform: Platform) -> None:
    events = [("f", number) for number in range(3 * MOST_IN_BATCH)]
    with (
        Client(url, access_key=ACCESS_KEY, secret=SECRET, connections=3) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        published = [pool.submit(client.publish_many, events) for _ in range(8)]
        assert all(len(set(each.result())) == len(events) for each in published)


# --------------------------------------------------------------------------------- logs


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[LogWriter]:
    writer = LogWriter(tmp_path / "logs")
    yield writer
    writer.close()


def now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1_000)


def test_logs_are_the_lines_since_then(url: str, speak: Speak, writer: LogWriter) -> None:
    for age_ms, text in ((3_600_000, "old"), (2_000, "one"), (1_000, "two\ttwo")):
        writer.add("f", now_ms() - age_ms, "stream", FUNCTION, "id", text)
    writer.flush()
    lines = speak(url, "logs", "f")
    assert [(line.text, line.stream) for line in lines] == [
        ("one", "stream"),
        ("two\ttwo", "stream"),
    ]
    assert next(line.text for line in speak(url, "logs", "f", since=7_200)) == "old"


def test_a_function_without_lines_is_not_one_that_is_not_there(url: str, speak: Speak) -> None:
    assert speak(url, "logs", "quiet") == []
    with pytest.raises(FunctionNotFound):
        speak(url, "logs", "missing")
    with pytest.raises(CallerError, match="not the name"):
        speak(url, "logs", "no/name")


def test_following_brings_each_line_once(url: str, writer: LogWriter) -> None:
    with Client(url, access_key=ACCESS_KEY, secret=SECRET) as client:
        lines = client.logs("quiet", follow=True)
        for number in range(4):
            writer.add("quiet", now_ms(), "stream", FUNCTION, "id", f"line {number}")
            writer.flush()
            assert next(lines).text == f"line {number}"
        lines.close()  # type: ignore[attr-defined]  # an iterator to its users, a generator here


def test_following_on_a_loop_brings_each_line_once(url: str, writer: LogWriter) -> None:
    async def follow() -> None:
        async with AsyncClient(url, access_key=ACCESS_KEY, secret=SECRET) as client:
            lines = client.logs("quiet", follow=True)
            for number in range(4):
                writer.add("quiet", now_ms(), "stream", FUNCTION, "id", f"line {number}")
                writer.flush()
                assert (await anext(lines)).text == f"line {number}"
            await lines.aclose()

    anyio.run(follow)


# ------------------------------------------------------------------------------- sharing


def test_a_closed_client_says_so(url: str) -> None:
    client = Client(url, access_key=ACCESS_KEY, secret=SECRET)
    client.invoke("f")
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.invoke("f")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_tasks_share_a_client(url: str, backend: str) -> None:
    if backend == "trio":
        pytest.importorskip("trio")
    payloads = []

    async def work() -> None:
        async with AsyncClient(url, access_key=ACCESS_KEY, secret=SECRET, connections=4) as client:

            async def one(number: int) -> None:
                payloads.append((await client.invoke("f", number)).payload)

            async with anyio.create_task_group() as tasks:
                for number in range(40):
                    tasks.start_soon(one, number)

    anyio.run(work, backend=backend)
    assert sorted(payloads) == list(range(40))


def test_the_package_is_light_until_a_client_is_wanted() -> None:
    import subprocess
    import sys

    program = (
        "import sys, trivet\n"
        "assert not {'anyio', 'redis', 'httptools', 'ssl'} & set(sys.modules)\n"
        "assert 'Client' in dir(trivet)\n"
        "from trivet import AsyncClient, Client, Result\n"
        "assert not {'redis', 'botocore', 'orjson', 'uvicorn'} & set(sys.modules)\n"
    )
    variables = {**os.environ, "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", program], check=True, env=variables)
