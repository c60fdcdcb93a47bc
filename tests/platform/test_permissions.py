"""Resource policies as the real client sees them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.platform.conftest import Call
from tests.platform.test_lambda_operations import ARN, create, plain, refused

from trivet.aws.services import Services

pytestmark = pytest.mark.anyio

SID = "allow-s3"
GIVEN = {
    "FunctionName": "hello",
    "StatementId": SID,
    "Action": "lambda:InvokeFunction",
    "Principal": "s3.amazonaws.com",
}
STALE = (
    "The Revision Id provided does not match the latest Revision Id. "
    "Call the {} API to retrieve the latest Revision Id"
)


async def add(call: Call, **settings: Any) -> dict[str, Any]:
    added = await call("lambda", "add_permission", **{**GIVEN, **settings})
    statement: dict[str, Any] = json.loads(added["Statement"])
    return statement


async def policy(call: Call) -> tuple[dict[str, Any], str]:
    answer = await call("lambda", "get_policy", FunctionName="hello")
    return json.loads(answer["Policy"]), answer["RevisionId"]


async def test_a_statement_is_answered_and_kept_as_aws_writes_it(call: Call) -> None:
    await create(call)
    source = {"SourceArn": "arn:aws:s3:::bucket", "SourceAccount": "123456789012"}
    added = await call("lambda", "add_permission", **GIVEN, **source)
    assert added["ResponseMetadata"]["HTTPStatusCode"] == 201
    written = (
        '{"Sid":"allow-s3","Effect":"Allow","Principal":{"Service":"s3.amazonaws.com"},'
        f'"Action":"lambda:InvokeFunction","Resource":"{ARN}",'
        '"Condition":{"StringEquals":{"AWS:SourceAccount":"123456789012"},'
        '"ArnLike":{"AWS:SourceArn":"arn:aws:s3:::bucket"}}}'
    )
    assert added["Statement"] == written
    answer = await call("lambda", "get_policy", FunctionName=ARN)
    assert answer["Policy"] == (
        f'{{"Version":"2012-10-17","Id":"default","Statement":[{written}]}}'
    )


@pytest.mark.parametrize(
    ("principal", "written"),
    [
        ("*", "*"),
        ("events.amazonaws.com", {"Service": "events.amazonaws.com"}),
        ("alexa-appkit.amazon.com", {"Service": "alexa-appkit.amazon.com"}),
        ("111122223333", {"AWS": "arn:aws:iam::111122223333:root"}),
        ("arn:aws:iam::111122223333:role/r", {"AWS": "arn:aws:iam::111122223333:role/r"}),
    ],
)
async def test_principals(call: Call, principal: str, written: Any) -> None:
    await create(call)
    assert (await add(call, Principal=principal))["Principal"] == written


@pytest.mark.parametrize(
    ("settings", "condition"),
    [
        (
            {"PrincipalOrgID": "o-a1b2c3d4e5"},
            {"StringEquals": {"aws:PrincipalOrgID": "o-a1b2c3d4e5"}},
        ),
        ({"EventSourceToken": "skill.1"}, {"StringEquals": {"lambda:EventSourceToken": "skill.1"}}),
        ({"InvokedViaFunctionUrl": True}, {"Bool": {"lambda:InvokedViaFunctionUrl": "true"}}),
        (
            {"Action": "lambda:InvokeFunctionUrl", "FunctionUrlAuthType": "AWS_IAM"},
            {"StringEquals": {"lambda:FunctionUrlAuthType": "AWS_IAM"}},
        ),
    ],
)
async def test_conditions(call: Call, settings: Any, condition: Any) -> None:
    await create(call)
    assert (await add(call, Principal="*", **settings))["Condition"] == condition


async def test_a_statement_is_added_once_and_removed_by_its_id(call: Call) -> None:
    await create(call)
    await add(call)
    await add(call, StatementId="second", Principal="sns.amazonaws.com")
    assert await refused(call, "add_permission", **GIVEN) == (
        409,
        "ResourceConflictException",
        f"The statement id ({SID}) provided already exists. Please provide a new statement id, "
        "or remove the existing statement.",
    )
    removed = await call("lambda", "remove_permission", FunctionName="hello", StatementId=SID)
    assert removed["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert [each["Sid"] for each in (await policy(call))[0]["Statement"]] == ["second"]
    assert await refused(call, "remove_permission", FunctionName="hello", StatementId=SID) == (
        404,
        "ResourceNotFoundException",
        f"Statement {SID} is not found in resource policy.",
    )
    await call("lambda", "remove_permission", FunctionName="hello", StatementId="second")
    assert await refused(call, "get_policy", FunctionName="hello") == (
        404,
        "ResourceNotFoundException",
        "The resource you requested does not exist.",
    )
    assert await refused(call, "remove_permission", FunctionName="hello", StatementId=SID) == (
        404,
        "ResourceNotFoundException",
        "No policy is associated with the given resource.",
    )


async def test_the_policy_has_the_function_s_revision(call: Call) -> None:
    created = await create(call)
    await add(call, RevisionId=created["RevisionId"])
    stale = await refused(
        call, "add_permission", **{**GIVEN, "StatementId": "b"}, RevisionId=created["RevisionId"]
    )
    assert stale == (412, "PreconditionFailedException", STALE.format("GetPolicy"))
    _, revision = await policy(call)
    configuration = await call("lambda", "get_function_configuration", FunctionName="hello")
    assert configuration["RevisionId"] == revision != created["RevisionId"]
    assert configuration["LastModified"] == created["LastModified"]
    named = {"FunctionName": "hello", "StatementId": SID}
    stale = await refused(call, "remove_permission", **named, RevisionId=created["RevisionId"])
    assert stale == (412, "PreconditionFailedException", STALE.format("GetFunction/GetAlias"))
    await call("lambda", "remove_permission", **named, RevisionId=revision)


async def test_a_policy_survives_changes_of_its_function_and_a_restart(
    call: Call, services: Services
) -> None:
    await create(call)
    await add(call)
    await call("lambda", "update_function_configuration", FunctionName="hello", Timeout=9)
    assert len((await policy(call))[0]["Statement"]) == 1
    read_anew = await services.functions.fetch("hello")
    assert read_anew is not None
    assert list(read_anew.policy) == [SID]


async def test_a_policy_ends_with_its_function(call: Call) -> None:
    await create(call)
    await add(call)
    await call("lambda", "delete_function", FunctionName="hello")
    await create(call)
    assert (await refused(call, "get_policy", FunctionName="hello"))[0] == 404


async def test_a_policy_is_never_larger_than_20_kilobytes(call: Call) -> None:
    await create(call)
    settings = {"SourceArn": f"arn:aws:s3:::{'x' * 9_000}"}
    await add(call, StatementId="a", **settings)
    await add(call, StatementId="b", **settings)
    status, kind, text = await refused(
        call, "add_permission", **{**GIVEN, "StatementId": "c"}, **settings
    )
    assert (status, kind) == (400, "PolicyLengthExceededException")
    assert text.startswith("The final policy size (2")
    assert text.endswith(") is bigger than the limit (20480).")
    assert [each["Sid"] for each in (await policy(call))[0]["Statement"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("settings", "status", "kind", "text"),
    [
        (
            {"Principal": "nobody"},
            400,
            "InvalidParameterValueException",
            "The provided principal was invalid. Please check the principal and try again.",
        ),
        (
            {"FunctionUrlAuthType": "NONE"},
            400,
            "InvalidParameterValueException",
            "FunctionUrlAuthType is only supported for lambda:InvokeFunctionUrl action",
        ),
        (
            {"Action": "lambda:InvokeFunctionUrl", "InvokedViaFunctionUrl": True},
            400,
            "InvalidParameterValueException",
            "InvokedViaFunctionUrl is only supported for lambda:InvokeFunction action",
        ),
        (
            {"Qualifier": "$LATEST"},
            400,
            "InvalidParameterValueException",
            "We currently do not support adding policies for $LATEST.",
        ),
        (
            {"Qualifier": "7"},
            404,
            "ResourceNotFoundException",
            f"Function not found: {ARN}:7",
        ),
        (
            {"Qualifier": "live"},
            404,
            "ResourceNotFoundException",
            f"Cannot find alias arn: {ARN}:live",
        ),
        (
            {"FunctionName": "other"},
            404,
            "ResourceNotFoundException",
            f"Function not found: {ARN.replace('hello', 'other')}",
        ),
        (
            {"StatementId": "no spaces"},
            400,
            "ValidationException",
            "1 validation error detected: Value 'no spaces' at 'statementId' failed to satisfy "
            "constraint: Member must satisfy regular expression pattern: ([a-zA-Z0-9-_]+)",
        ),
    ],
)
async def test_what_cannot_be_added(
    call: Call, settings: dict[str, Any], status: int, kind: str, text: str
) -> None:
    created = await create(call)
    assert await refused(call, "add_permission", **{**GIVEN, **settings}) == (status, kind, text)
    read = await call("lambda", "get_function_configuration", FunctionName="hello")
    assert read["RevisionId"] == created["RevisionId"]
    assert plain(read)["FunctionName"] == "hello"
