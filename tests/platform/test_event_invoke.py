"""Settings of asynchronous invocation and of concurrency, as the real client sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from botocore.exceptions import ClientError
from redis.asyncio import Redis
from tests.platform.conftest import Call
from tests.platform.test_express_lane import Echo, Lane, event, until
from tests.platform.test_lambda_operations import (
    ARN,
    OTHER_CODE,
    create,
    plain,
    platform_of,
    refused,
)

from trivet.aws.services import Services
from trivet.bus import frames
from trivet.core.functions import Function, function_from_record, function_to_record
from trivet.core.invocations import Reply
from trivet.errors import Throttled
from trivet.gateway.platform import GatewayPlatform
from trivet.settings import Settings
from trivet.store.functions import FunctionStore

pytestmark = pytest.mark.anyio

NOBODY: dict[str, Any] = {"OnSuccess": {}, "OnFailure": {}}
OTHER = ARN.replace("hello", "other")
BUS = "arn:aws:events:us-east-1:123456789012:event-bus/default"

UNSET = (
    404,
    "ResourceNotFoundException",
    f"The function {ARN}:$LATEST doesn't have an EventInvokeConfig",
)
NO_FUNCTION = (404, "ResourceNotFoundException", "The function doesn't exist.")
REVISION_IS_STALE = 412


async def put(call: Call, **settings: Any) -> dict[str, Any]:
    given = {"FunctionName": "hello", **settings}
    return plain(await call("lambda", "put_function_event_invoke_config", **given), "LastModified")


async def update(call: Call, **settings: Any) -> dict[str, Any]:
    given = {"FunctionName": "hello", **settings}
    answer = await call("lambda", "update_function_event_invoke_config", **given)
    return plain(answer, "LastModified")


async def shown(call: Call, **settings: Any) -> dict[str, Any]:
    given = {"FunctionName": "hello", **settings}
    return plain(await call("lambda", "get_function_event_invoke_config", **given), "LastModified")


async def listed(call: Call) -> list[dict[str, Any]]:
    answer = await call("lambda", "list_function_event_invoke_configs", FunctionName="hello")
    assert "NextMarker" not in answer
    return [plain(each, "LastModified") for each in answer["FunctionEventInvokeConfigs"]]


def config(destinations: dict[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    return {
        "FunctionArn": f"{ARN}:$LATEST",
        "DestinationConfig": {**NOBODY, **(destinations or {})},
        **members,
    }


async def stored(services: Services, name: str = "hello") -> Function:
    function = await services.functions.fetch(name)
    assert function is not None
    return function


# --------------------------------------------------------------------- asynchronous invocation


async def test_put_sets_everything_anew(call: Call, services: Services) -> None:
    await create(call)
    await create(call, FunctionName="other")
    destinations = {"OnSuccess": {"Destination": BUS}, "OnFailure": {"Destination": OTHER}}
    first = await put(
        call,
        MaximumRetryAttempts=0,
        MaximumEventAgeInSeconds=60,
        DestinationConfig=destinations,
    )
    assert first == config(destinations, MaximumRetryAttempts=0, MaximumEventAgeInSeconds=60)
    assert await shown(call) == first
    assert await shown(call, Qualifier="$LATEST") == first
    assert await listed(call) == [first]
    kept = dict((await stored(services)).event_invoke)
    assert kept.pop("modified_ms") > 1_700_000_000_000
    assert kept == {"retries": 0, "age_s": 60, "on_success": BUS, "on_failure": OTHER}

    second = await put(call, MaximumEventAgeInSeconds=21_600)
    assert second == config(MaximumEventAgeInSeconds=21_600)
    assert await shown(call) == second
    assert platform_of(services).changes == ["hello", "other", "hello", "hello"]


async def test_update_sets_what_it_names(call: Call, services: Services) -> None:
    await create(call)
    await put(
        call,
        MaximumRetryAttempts=1,
        DestinationConfig={"OnFailure": {"Destination": BUS}},
    )
    on_failure = {"OnFailure": {"Destination": BUS}}
    assert await update(call, MaximumEventAgeInSeconds=90) == config(
        on_failure, MaximumRetryAttempts=1, MaximumEventAgeInSeconds=90
    )
    both = {**on_failure, "OnSuccess": {"Destination": BUS}}
    added = await update(call, DestinationConfig={"OnSuccess": {"Destination": BUS}})
    assert added["DestinationConfig"] == both
    taken = await update(
        call, DestinationConfig={"OnSuccess": {}, "OnFailure": {"Destination": ""}}
    )
    assert taken == config(MaximumRetryAttempts=1, MaximumEventAgeInSeconds=90)
    assert await shown(call) == taken
    assert set((await stored(services)).event_invoke) == {"retries", "age_s", "modified_ms"}


async def test_it_says_when_it_was_changed_last(call: Call) -> None:
    await create(call)
    given = {"FunctionName": "hello", "MaximumRetryAttempts": 1}
    first = await call("lambda", "put_function_event_invoke_config", **given)
    assert abs(datetime.now(UTC) - first["LastModified"]) < timedelta(minutes=1)
    second = await call("lambda", "update_function_event_invoke_config", **given)
    assert second["LastModified"] >= first["LastModified"]
    read = await call("lambda", "get_function_event_invoke_config", FunctionName="hello")
    assert read["LastModified"] == second["LastModified"]


async def test_what_was_deleted_is_unset(call: Call, services: Services) -> None:
    await create(call)
    await put(call, DestinationConfig={})
    assert await shown(call) == config()
    answer = await call("lambda", "delete_function_event_invoke_config", FunctionName="hello")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert await listed(call) == []
    assert (await stored(services)).event_invoke == {}
    gone = {"FunctionName": "hello"}
    assert await refused(call, "get_function_event_invoke_config", **gone) == UNSET
    assert await refused(call, "delete_function_event_invoke_config", **gone) == UNSET
    settings = {**gone, "MaximumRetryAttempts": 1}
    assert await refused(call, "update_function_event_invoke_config", **settings) == UNSET


async def test_only_latest_is_there(call: Call) -> None:
    await create(call)
    await put(call, Qualifier="$LATEST", MaximumRetryAttempts=1)
    for name in ("hello:$LATEST", ARN, f"{ARN}:$LATEST", "123456789012:function:hello"):
        assert await shown(call, FunctionName=name) == config(MaximumRetryAttempts=1)
    asked = {"FunctionName": "hello", "Qualifier": "prod"}
    unset = (404, "ResourceNotFoundException", UNSET[2].replace("$LATEST", "prod"))
    assert await refused(call, "get_function_event_invoke_config", **asked) == unset
    assert await refused(call, "delete_function_event_invoke_config", **asked) == unset
    changes = {**asked, "MaximumRetryAttempts": 1}
    assert await refused(call, "put_function_event_invoke_config", **changes) == NO_FUNCTION
    assert await refused(call, "update_function_event_invoke_config", **changes) == NO_FUNCTION


async def test_a_function_that_is_not_there_has_no_settings(call: Call) -> None:
    asked = {"FunctionName": "nobody"}
    changes = {**asked, "MaximumRetryAttempts": 1}
    assert await refused(call, "put_function_event_invoke_config", **changes) == NO_FUNCTION
    assert await refused(call, "update_function_event_invoke_config", **changes) == NO_FUNCTION
    assert await refused(call, "list_function_event_invoke_configs", **asked) == NO_FUNCTION
    unset = (404, "ResourceNotFoundException", UNSET[2].replace("hello", "nobody"))
    assert await refused(call, "get_function_event_invoke_config", **asked) == unset
    assert await refused(call, "delete_function_event_invoke_config", **asked) == unset


@pytest.mark.parametrize("operation", ["put", "update"])
async def test_something_must_be_asked_for(call: Call, operation: str) -> None:
    await create(call)
    operation = f"{operation}_function_event_invoke_config"
    assert await refused(call, operation, FunctionName="hello") == (
        400,
        "InvalidParameterValueException",
        "You must specify at least one of error handling or destination setting.",
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"MaximumRetryAttempts": 3},
        {"MaximumRetryAttempts": -1},
        {"MaximumEventAgeInSeconds": 59},
        {"MaximumEventAgeInSeconds": 21_601},
        {"DestinationConfig": {"OnFailure": {"Destination": "orders"}}},
    ],
)
async def test_numbers_and_arns_have_the_limits_of_the_model(
    call: Call, settings: dict[str, Any]
) -> None:
    await create(call)
    given = {"FunctionName": "hello", **settings}
    status, _, text = await refused(call, "put_function_event_invoke_config", **given)
    assert status == 400
    assert text.startswith("1 validation error detected: ")
    assert await listed(call) == []


@pytest.mark.parametrize("side", ["OnSuccess", "OnFailure"])
@pytest.mark.parametrize(
    ("arn", "text"),
    [
        (ARN, "You can't specify the function as a destination for itself."),
        (f"{ARN}:$LATEST", "You can't specify the function as a destination for itself."),
        (OTHER, f"The destination ARN {OTHER} is invalid."),
        (
            BUS.replace("default", "mine"),
            f"The destination ARN {BUS.replace('default', 'mine')} is invalid.",
        ),
        (
            OTHER.replace("us-east-1", "eu-west-1"),
            f"The destination ARN {OTHER.replace('us-east-1', 'eu-west-1')} is invalid.",
        ),
    ],
)
async def test_destinations_that_cannot_be(call: Call, side: str, arn: str, text: str) -> None:
    await create(call)
    for operation in ("put", "update"):
        assert await refused(
            call,
            f"{operation}_function_event_invoke_config",
            FunctionName="hello",
            DestinationConfig={side: {"Destination": arn}},
        ) == (400, "InvalidParameterValueException", text)
    assert await listed(call) == []


@pytest.mark.parametrize(
    "arn",
    [
        "arn:aws:sqs:us-east-1:123456789012:queue",
        "arn:aws:sns:us-east-1:123456789012:topic",
        "arn:aws:s3:::bucket",
    ],
)
async def test_destinations_that_are_not_here_are_refused_in_words(call: Call, arn: str) -> None:
    await create(call)
    service = arn.split(":")[2].upper()
    assert await refused(
        call,
        "put_function_event_invoke_config",
        FunctionName="hello",
        DestinationConfig={"OnFailure": {"Destination": arn}},
    ) == (
        501,
        "NotImplementedException",
        f"Trivet does not have this yet: Destinations in {service}. Records go to functions and "
        "to the event bus 'default'. Leave DestinationConfig.OnFailure out.",
    )


# -------------------------------------------------------------------------------- revisions


async def test_no_setting_beside_a_function_gives_it_a_revision(
    call: Call, services: Services
) -> None:
    await create(call)
    before = await call("lambda", "get_function_configuration", FunctionName="hello")
    await put(call, MaximumRetryAttempts=1)
    await reserve(call, 5)
    await call("lambda", "delete_function_event_invoke_config", FunctionName="hello")
    after = await call("lambda", "get_function_configuration", FunctionName="hello")
    assert plain(after) == plain(before)
    # And whoever holds that revision may change the function still.
    updated = await call(
        "lambda",
        "update_function_code",
        FunctionName="hello",
        ZipFile=OTHER_CODE,
        RevisionId=before["RevisionId"],
    )
    assert updated["RevisionId"] not in (before["RevisionId"], "")
    kept = await stored(services)
    assert (kept.revision, kept.reserved_concurrency) == (updated["RevisionId"], 5)
    stale = {"FunctionName": "hello", "Timeout": 9, "RevisionId": before["RevisionId"]}
    status, _, _ = await refused(call, "update_function_configuration", **stale)
    assert status == REVISION_IS_STALE


async def test_settings_made_at_once_are_all_kept(call: Call, services: Services) -> None:
    await create(call)

    async def describe() -> None:
        await call("lambda", "update_function_configuration", FunctionName="hello", Timeout=9)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: put(call, MaximumRetryAttempts=1))
        tasks.start_soon(reserve, call, 5)
        tasks.start_soon(describe)
    kept = await stored(services)
    assert kept.event_invoke["retries"] == 1
    assert (kept.reserved_concurrency, kept.latest.timeout_ms) == (5, 9_000)


async def test_records_from_before_these_settings_are_read(call: Call, services: Services) -> None:
    await create(call)
    function = await stored(services)
    record = function_to_record(function)
    assert function_from_record(record) == function
    del record["event_invoke"], record["reserved_concurrency"]
    assert function_from_record(record) == function


# ------------------------------------------------------------------------------- concurrency


async def reserve(call: Call, count: int, name: str = "hello") -> dict[str, Any]:
    given = {"FunctionName": name, "ReservedConcurrentExecutions": count}
    return plain(await call("lambda", "put_function_concurrency", **given))


async def reserved_of(call: Call) -> dict[str, Any]:
    return plain(await call("lambda", "get_function_concurrency", FunctionName="hello"))


async def unreserved(call: Call) -> int:
    limits = (await call("lambda", "get_account_settings"))["AccountLimit"]
    assert limits["ConcurrentExecutions"] == 1_000
    return int(limits["UnreservedConcurrentExecutions"])


@pytest.mark.parametrize("count", [0, 1, 900])
async def test_concurrency_is_reserved_and_given_back(
    call: Call, services: Services, count: int
) -> None:
    await create(call)
    assert await reserved_of(call) == {}
    assert await reserve(call, count) == {"ReservedConcurrentExecutions": count}
    assert await reserved_of(call) == {"ReservedConcurrentExecutions": count}
    function = await call("lambda", "get_function", FunctionName=ARN)
    assert function["Concurrency"] == {"ReservedConcurrentExecutions": count}
    assert await unreserved(call) == 1_000 - count
    answer = await call("lambda", "delete_function_concurrency", FunctionName="hello")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert await reserved_of(call) == {}
    assert "Concurrency" not in await call("lambda", "get_function", FunctionName="hello")
    assert await unreserved(call) == 1_000
    assert platform_of(services).changes == ["hello"] * 3


async def test_a_hundred_stay_for_the_functions_without_a_reservation(call: Call) -> None:
    await create(call)
    await create(call, FunctionName="other")
    await reserve(call, 500, "other")
    too_little = (
        400,
        "InvalidParameterValueException",
        "Specified ReservedConcurrentExecutions for function decreases account's "
        "UnreservedConcurrentExecution below its minimum value of [100].",
    )
    asked = {"FunctionName": "hello", "ReservedConcurrentExecutions": 401}
    assert await refused(call, "put_function_concurrency", **asked) == too_little
    assert await reserved_of(call) == {}
    await reserve(call, 400)
    await reserve(call, 400)  # its own reservation is not counted against it
    assert await unreserved(call) == 100
    asked = {"FunctionName": "other", "ReservedConcurrentExecutions": 501}
    assert await refused(call, "put_function_concurrency", **asked) == too_little


async def test_reservations_made_at_once_leave_a_hundred_too(call: Call) -> None:
    names = [f"at-once-{number}" for number in range(4)]
    told: list[str] = []

    async def try_it(name: str) -> None:
        try:
            await reserve(call, 400, name)
        except ClientError as error:
            told.append(error.response["Error"]["Code"])

    for name in names:
        await create(call, FunctionName=name)
    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(try_it, name)
    assert told == ["InvalidParameterValueException"] * 2
    assert await unreserved(call) == 200


@pytest.mark.parametrize("operation", ["put", "get", "delete"])
async def test_concurrency_belongs_to_whole_functions(call: Call, operation: str) -> None:
    await create(call)
    settings = {"ReservedConcurrentExecutions": 1} if operation == "put" else {}
    operation = f"{operation}_function_concurrency"
    assert await refused(call, operation, FunctionName=f"{ARN}:$LATEST", **settings) == (
        400,
        "InvalidParameterValueException",
        "This operation is permitted on Lambda functions only. Aliases and versions do not "
        "support this operation. Please specify either a function name or an unqualified "
        "function ARN.",
    )
    assert await refused(call, operation, FunctionName="nobody", **settings) == (
        404,
        "ResourceNotFoundException",
        f"Function not found: {ARN.replace('hello', 'nobody')}:$LATEST",
    )


# ----------------------------------------------------------- a reservation at the gateway


@pytest.fixture
async def lane(durable: Redis, durable_socket: str) -> AsyncIterator[Lane]:
    async with anyio.create_task_group() as tasks:
        yield Lane(durable_socket, tasks)
        tasks.cancel_scope.cancel()


async def gateway(lane: Lane, services: Services) -> GatewayPlatform:
    nobody: Any = None  # nothing here is matched or authorized
    functions: FunctionStore = services.functions
    return GatewayPlatform(Settings(), await lane.calls(), functions, nobody, nobody, nobody)


async def throttled(platform: GatewayPlatform) -> str:
    with pytest.raises(Throttled) as error:
        await platform.invoke(event())
    assert (error.value.status, error.value.message) == (429, "Rate Exceeded.")
    return str(error.value.members["Reason"])


RESERVED = "ReservedFunctionConcurrentInvocationLimitExceeded"


async def test_calls_beyond_a_reservation_are_refused_at_once(
    call: Call, lane: Lane, services: Services
) -> None:
    await create(call)
    await create(call, FunctionName="other")
    await reserve(call, 2)
    platform, taker = await gateway(lane, services), Echo()
    intake = await lane.intake(taker, answers=False)
    replies: list[Reply] = []

    async def invoke(name: str) -> None:
        replies.append(await platform.invoke(event(name)))

    async with anyio.create_task_group() as tasks:
        for name in ("hello", "hello", "other"):
            tasks.start_soon(invoke, name)
        await until(lambda: len(taker.held) == 3)
        assert await throttled(platform) == RESERVED
        for held in taker.held:
            intake.answer(held, frames.pack_reply(held.call, b"1", None, "$LATEST", b""))
    assert [reply.payload for reply in replies] == [b"1"] * 3
    taker.held.clear()
    taker.answer = intake.answer
    assert (await platform.invoke(event())).payload == b"{}"


async def test_a_caller_that_leaves_gives_its_place_back(
    call: Call, lane: Lane, services: Services
) -> None:
    await create(call)
    await reserve(call, 1)
    platform, taker = await gateway(lane, services), Echo()
    intake = await lane.intake(taker, answers=False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(platform.invoke, event())
        await until(lambda: bool(taker.held))
        assert await throttled(platform) == RESERVED
        tasks.cancel_scope.cancel()
    taker.held.clear()
    taker.answer = intake.answer
    assert (await platform.invoke(event())).payload == b"{}"


async def test_nothing_runs_of_a_function_that_is_reserved_nothing(
    call: Call, lane: Lane, services: Services
) -> None:
    await create(call)
    await reserve(call, 0)
    platform = await gateway(lane, services)
    await lane.intake(Echo())
    assert await throttled(platform) == RESERVED
    counted = [f for f in platform.counters.families() if f.name == "trivet_throttles_total"]
    (sample,) = counted[0].samples
    assert (sample.labels, sample.value) == ((("lane", "express"), ("function", "hello")), 1)
    await call("lambda", "delete_function_concurrency", FunctionName="hello")
    assert (await platform.invoke(event())).payload == b"{}"
