"""The Lambda API as the real client sees it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
import uuid
import zipfile
from typing import Any

import pytest
from botocore.exceptions import ClientError
from redis.asyncio import Redis
from tests.platform.conftest import Call, Echo, zip_of

from trivet.aws.lambda_.absent import ARCHITECTURE
from trivet.aws.lambda_.functions import edited
from trivet.aws.lambda_.names import named
from trivet.aws.services import Services
from trivet.core.functions import Function
from trivet.errors import Conflict
from trivet.store.functions import FunctionStore

pytestmark = pytest.mark.anyio

ROLE = "arn:aws:iam::123456789012:role/any"
ARN = "arn:aws:lambda:us-east-1:123456789012:function:hello"
CODE = zip_of(app="def handler(event, context): return event")
OTHER_CODE = zip_of(app="def handler(event, context): return 2")

GIVEN: dict[str, Any] = {
    "FunctionName": "hello",
    "Runtime": "python3.11",
    "Role": ROLE,
    "Handler": "app.handler",
    "Code": {"ZipFile": CODE},
}


async def create(call: Call, **settings: Any) -> Any:
    return await call("lambda", "create_function", **{**GIVEN, **settings})


async def refused(call: Call, operation: str, **settings: Any) -> tuple[int, str, str]:
    """Status, type and text of the error that a call is answered with."""
    with pytest.raises(ClientError) as error:
        await call("lambda", operation, **settings)
    response: Any = error.value.response
    status = response["ResponseMetadata"]["HTTPStatusCode"]
    return status, response["Error"]["Code"], response["Error"]["Message"]


def plain(answer: dict[str, Any], *without: str) -> dict[str, Any]:
    return {k: v for k, v in answer.items() if k not in ("ResponseMetadata", *without)}


def platform_of(services: Services) -> Echo:
    platform = services.platform
    assert isinstance(platform, Echo)
    return platform


# -------------------------------------------------------------------------- create and read


async def test_a_new_function_is_pending_in_its_answer_and_active_when_read(
    call: Call, services: Services
) -> None:
    created = await create(call, Environment={"Variables": {"KEY": "value"}}, Description="Hi")
    assert created["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert plain(created, "RevisionId", "LastModified", "RuntimeVersionConfig") == {
        "FunctionName": "hello",
        "FunctionArn": ARN,
        "Runtime": "python3.11",
        "Role": ROLE,
        "Handler": "app.handler",
        "CodeSize": len(CODE),
        "CodeSha256": base64.b64encode(hashlib.sha256(CODE).digest()).decode(),
        "Description": "Hi",
        "Timeout": 3,
        "MemorySize": 128,
        "Version": "$LATEST",
        "Environment": {"Variables": {"KEY": "value"}},
        "TracingConfig": {"Mode": "PassThrough"},
        "State": "Pending",
        "StateReason": "The function is being created.",
        "StateReasonCode": "Creating",
        "PackageType": "Zip",
        "Architectures": [ARCHITECTURE],
        "EphemeralStorage": {"Size": 512},
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": "/aws/lambda/hello"},
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+0000", created["LastModified"])
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", created["RevisionId"])

    read = plain(await call("lambda", "get_function_configuration", FunctionName="hello"))
    expected = plain(created, "State", "StateReason", "StateReasonCode")
    assert read == {**expected, "State": "Active", "LastUpdateStatus": "Successful"}
    assert platform_of(services).changes == ["hello"]
    tree = services.blobs.tree(hashlib.sha256(CODE).hexdigest())
    assert (tree / "app.py").read_text().startswith("def handler")


async def test_get_function_tells_where_the_code_is(call: Call) -> None:
    await create(call, Tags={"team": "a"})
    answer = await call("lambda", "get_function", FunctionName="hello")
    assert answer["Code"]["RepositoryType"] == "S3"
    assert answer["Code"]["Location"].startswith("file://")
    assert answer["Tags"] == {"team": "a"}
    assert answer["Configuration"]["State"] == "Active"
    assert "Concurrency" not in answer


async def test_every_setting_is_kept(call: Call) -> None:
    settings = {
        "Timeout": 900,
        "MemorySize": 10_240,
        "EphemeralStorage": {"Size": 10_240},
        "TracingConfig": {"Mode": "Active"},
        "VpcConfig": {"SubnetIds": [], "SecurityGroupIds": []},
        "Architectures": [ARCHITECTURE],
    }
    created = await create(
        call,
        **settings,
        PackageType="Zip",
        Publish=False,
        Layers=[],
        FileSystemConfigs=[],
        KMSKeyArn="",
        DeadLetterConfig={"TargetArn": ""},
        SnapStart={"ApplyOn": "None"},
        LoggingConfig={"LogFormat": "Text", "LogGroup": "/aws/lambda/hello"},
    )
    read = await call("lambda", "get_function_configuration", FunctionName="hello")
    settings["VpcConfig"] = {"SubnetIds": [], "SecurityGroupIds": [], "VpcId": ""}
    for answer in (created, read):
        assert {name: answer[name] for name in settings} == settings


async def test_a_name_is_taken_once(call: Call) -> None:
    await create(call)
    assert await refused(call, "create_function", **GIVEN) == (
        409,
        "ResourceConflictException",
        "Function already exist: hello",
    )


async def test_what_terraform_reads_beside_it_is_unset(call: Call) -> None:
    await create(call)
    for operation in ("get_function_code_signing_config", "get_function_concurrency"):
        assert plain(await call("lambda", operation, FunctionName="hello")) == {}
    versions = await call("lambda", "list_versions_by_function", FunctionName="hello")
    assert [v["FunctionArn"] for v in versions["Versions"]] == [f"{ARN}:$LATEST"]
    assert (await refused(call, "get_policy", FunctionName="hello")) == (
        404,
        "ResourceNotFoundException",
        "The resource you requested does not exist.",
    )


async def test_functions_list_page_by_page(call: Call) -> None:
    for name in ("c", "a", "b"):
        await create(call, FunctionName=name)
    first = await call("lambda", "list_functions", MaxItems=2)
    rest = await call("lambda", "list_functions", MaxItems=2, Marker=first["NextMarker"])
    assert [f["FunctionName"] for f in first["Functions"]] == ["a", "b"]
    assert [f["FunctionName"] for f in rest["Functions"]] == ["c"]
    assert "NextMarker" not in rest
    assert "State" not in rest["Functions"][0]
    every = await call("lambda", "list_functions", FunctionVersion="ALL")
    assert every["Functions"][0]["FunctionArn"].endswith(":function:a:$LATEST")
    assert (await refused(call, "list_functions", Marker="é"))[:2] == (
        400,
        "InvalidParameterValueException",
    )


async def test_account_settings_count(call: Call) -> None:
    await create(call)
    answer = await call("lambda", "get_account_settings")
    assert answer["AccountUsage"] == {"TotalCodeSize": len(CODE), "FunctionCount": 1}
    assert answer["AccountLimit"]["CodeSizeZipped"] == 52_428_800
    assert answer["AccountLimit"]["ConcurrentExecutions"] == 1000


# ------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    "name",
    [
        "hello",
        "hello:$LATEST",
        "function:hello",
        "123456789012:function:hello",
        ARN,
        f"{ARN}:$LATEST",
    ],
)
async def test_every_form_of_a_name(call: Call, name: str) -> None:
    await create(call)
    answer = await call("lambda", "get_function_configuration", FunctionName=name)
    assert answer["FunctionName"] == "hello"
    assert answer["FunctionArn"] == (f"{ARN}:$LATEST" if "$" in name else ARN)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"FunctionName": "nobody"},
            (
                404,
                "ResourceNotFoundException",
                f"Function not found: {ARN.replace('hello', 'nobody')}",
            ),
        ),
        (
            {"FunctionName": "hello", "Qualifier": "7"},
            (404, "ResourceNotFoundException", f"Function not found: {ARN}:7"),
        ),
        (
            {"FunctionName": "hello:prod"},
            (404, "ResourceNotFoundException", f"Function not found: {ARN}:prod"),
        ),
        (
            {"FunctionName": "hello:1", "Qualifier": "2"},
            (
                400,
                "InvalidParameterValueException",
                "The derived qualifier from the function name does not match the specified "
                "qualifier.",
            ),
        ),
        (
            {"FunctionName": ARN.replace("us-east-1", "eu-west-1")},
            (
                404,
                "ResourceNotFoundException",
                "Functions from 'eu-west-1' are not reachable in this region ('us-east-1')",
            ),
        ),
        (
            {"FunctionName": "a.b"},
            (404, "ResourceNotFoundException", f"Function not found: {ARN[:-5]}a.b"),
        ),
    ],
)
async def test_names_that_mean_nothing_here(
    call: Call, settings: dict[str, str], expected: tuple[int, str, str]
) -> None:
    await create(call)
    assert await refused(call, "get_function", **settings) == expected


async def test_another_account_is_denied(call: Call) -> None:
    theirs = ARN.replace("123456789012", "999999999999")
    status, kind, text = await refused(call, "get_function", FunctionName=theirs)
    assert (status, kind) == (403, "AccessDeniedException")
    assert f"lambda:GetFunction on resource: {theirs}" in text


async def test_a_name_of_more_than_64_characters(call: Call) -> None:
    status, kind, text = await refused(
        call, "create_function", **{**GIVEN, "FunctionName": "n" * 65}
    )
    assert (status, kind) == (400, "InvalidParameterValueException")
    assert text == (
        f"1 validation error detected: Value '{'n' * 65}' at 'functionName' failed to satisfy "
        "constraint: Member must have length less than or equal to 64"
    )


# ---------------------------------------------------------------------------------- changes


async def test_new_code(call: Call, services: Services) -> None:
    created = await create(call)
    updated = await call("lambda", "update_function_code", FunctionName="hello", ZipFile=OTHER_CODE)
    assert updated["CodeSha256"] != created["CodeSha256"]
    assert updated["CodeSize"] == len(OTHER_CODE)
    assert updated["RevisionId"] != created["RevisionId"]
    assert (updated["State"], updated["LastUpdateStatus"]) == ("Active", "InProgress")
    read = await call("lambda", "get_function_configuration", FunctionName="hello")
    assert read["LastUpdateStatus"] == "Successful"
    assert read["CodeSha256"] == updated["CodeSha256"]
    assert platform_of(services).changes == ["hello", "hello"]


async def test_a_dry_run_changes_nothing(call: Call) -> None:
    created = await create(call)
    dry = await call(
        "lambda", "update_function_code", FunctionName="hello", ZipFile=OTHER_CODE, DryRun=True
    )
    assert dry["CodeSize"] == len(OTHER_CODE)
    read = await call("lambda", "get_function_configuration", FunctionName="hello")
    assert read["RevisionId"] == created["RevisionId"] == dry["RevisionId"]
    assert read["CodeSha256"] == created["CodeSha256"]


async def test_new_settings_leave_the_others(call: Call) -> None:
    await create(call, Timeout=5, Environment={"Variables": {"KEY": "1"}})
    await call(
        "lambda",
        "update_function_configuration",
        FunctionName="hello",
        MemorySize=256,
        Runtime="nodejs20.x",
        Handler="index.handler",
        Description="new",
    )
    read = await call("lambda", "get_function_configuration", FunctionName="hello")
    assert (read["Timeout"], read["MemorySize"]) == (5, 256)
    assert (read["Runtime"], read["Handler"]) == ("nodejs20.x", "index.handler")
    assert (read["Description"], read["Environment"]["Variables"]) == ("new", {"KEY": "1"})
    await call(
        "lambda",
        "update_function_configuration",
        FunctionName="hello",
        Environment={"Variables": {}},
        Description="",
    )
    read = await call("lambda", "get_function_configuration", FunctionName="hello")
    assert "Environment" not in read
    assert read["Description"] == ""


async def test_a_change_of_nothing_is_a_change(call: Call) -> None:
    created = await create(call)
    updated = await call("lambda", "update_function_configuration", FunctionName="hello")
    assert updated["RevisionId"] != created["RevisionId"]
    assert updated["LastModified"] >= created["LastModified"]


@pytest.mark.parametrize(
    ("operation", "settings"),
    [
        ("update_function_configuration", {"Timeout": 9}),
        ("update_function_code", {"ZipFile": OTHER_CODE}),
    ],
)
async def test_the_revision_is_a_precondition(
    call: Call, operation: str, settings: dict[str, Any]
) -> None:
    created = await create(call)
    assert await refused(
        call, operation, FunctionName="hello", RevisionId="another", **settings
    ) == (
        412,
        "PreconditionFailedException",
        "The Revision Id provided does not match the latest Revision Id. Call the "
        "GetFunction/GetAlias API to retrieve the latest Revision Id",
    )
    revision = created["RevisionId"]
    await call("lambda", operation, FunctionName="hello", RevisionId=revision, **settings)


class Rival(FunctionStore):
    """Changes a function each time in the moment before it is to be changed."""

    async def replace(self, function: Function, expected_revision: str) -> None:
        rival = dataclasses.replace(
            function, revision_id=str(uuid.uuid4()), description="of a rival"
        )
        await super().replace(rival, expected_revision)
        await super().replace(function, expected_revision)


async def test_an_update_during_updates_is_a_conflict_and_changes_nothing(
    call: Call, services: Services, durable: Redis
) -> None:
    await create(call)
    rivalled = dataclasses.replace(services, functions=Rival(durable))
    params = {"FunctionName": "hello"}
    with pytest.raises(Conflict) as error:
        await edited(
            rivalled,
            named(services, params, "UpdateFunctionConfiguration"),
            params,
            lambda function: dataclasses.replace(function, description="mine"),
        )
    assert (error.value.status, str(error.value)) == (
        409,
        "The operation cannot be performed at this time. An update is in progress for resource: "
        f"{ARN}",
    )
    kept = await FunctionStore(durable).get("hello")
    assert kept is not None
    assert kept.description == "of a rival"


async def test_deleted(call: Call, services: Services) -> None:
    await create(call)
    answer = await call("lambda", "delete_function", FunctionName="hello")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert (await refused(call, "get_function", FunctionName="hello"))[0] == 404
    assert (await refused(call, "delete_function", FunctionName="hello"))[0] == 404
    assert platform_of(services).changes == ["hello", "hello"]


async def test_latest_is_not_deleted_alone(call: Call) -> None:
    await create(call)
    assert await refused(call, "delete_function", FunctionName="hello", Qualifier="$LATEST") == (
        400,
        "InvalidParameterValueException",
        "$LATEST version cannot be deleted without deleting the function.",
    )
    assert (await refused(call, "delete_function", FunctionName="hello:prod"))[0] == 400
    await call("lambda", "get_function", FunctionName="hello")


async def test_tags(call: Call) -> None:
    await create(call, Tags={"a": "1"})
    await call("lambda", "tag_resource", Resource=ARN, Tags={"b": "2", "a": "3"})
    await call("lambda", "untag_resource", Resource=ARN, TagKeys=["b", "none"])
    assert (await call("lambda", "list_tags", Resource=ARN))["Tags"] == {"a": "3"}
    many = {f"k{i}": "v" for i in range(50)}
    assert await refused(call, "tag_resource", Resource=ARN, Tags=many) == (
        400,
        "InvalidParameterValueException",
        "Number of tags exceeds resource tag limit.",
    )
    assert (await refused(call, "list_tags", Resource=f"{ARN}:$LATEST"))[2] == (
        "Tags on function aliases and versions are not supported. Please specify a function ARN."
    )
    assert (await refused(call, "list_tags", Resource=ARN.replace("hello", "nobody")))[0] == 404


# --------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"Timeout": 901}, "Value '901' at 'timeout' failed to satisfy constraint: Member must"),
        ({"Timeout": 0}, "Value '0' at 'timeout' failed"),
        ({"MemorySize": 10_241}, "Value '10241' at 'memorySize' failed"),
        ({"MemorySize": 127}, "Value '127' at 'memorySize' failed"),
        ({"EphemeralStorage": {"Size": 10_241}}, "Value '10241' at 'ephemeralStorage.size' failed"),
        ({"Handler": "a b"}, "Value 'a b' at 'handler' failed"),
        ({"Role": "nobody"}, "Value 'nobody' at 'role' failed"),
    ],
)
async def test_limits_are_validated(call: Call, settings: dict[str, Any], text: str) -> None:
    for operation in ("create_function", "update_function_configuration"):
        given = GIVEN if operation == "create_function" else {"FunctionName": "hello"}
        if operation != "create_function":
            await create(call)
        status, kind, message = await refused(call, operation, **{**given, **settings})
        assert (status, kind) == (400, "ValidationException")
        assert message.startswith("1 validation error detected: ")
        assert text in message


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"Environment": {"Variables": {"AWS_REGION": "x", "AWS_ACCESS_KEY": "y"}}},
            "Lambda was unable to configure your environment variables because the environment "
            "variables you have provided contains reserved keys that are currently not supported "
            "for modification. Reserved keys used in this request: AWS_ACCESS_KEY, AWS_REGION",
        ),
        (
            {"Environment": {"Variables": {"KEY": "v" * 4_100}}},
            "Lambda was unable to configure your environment variables because the environment "
            "variables you have provided exceeded the 4KB limit. String measured: "
            + json.dumps({"KEY": "v" * 4_100}, separators=(",", ":")),
        ),
        (
            {"Runtime": "python3.7"},
            "The runtime parameter of python3.7 is no longer supported for creating or updating "
            "AWS Lambda functions. We recommend you use a supported runtime while creating or "
            "updating functions.",
        ),
        (
            {"Runtime": "nodejs22.x"},
            "The runtime nodejs22.x is not installed on this machine, which has nodejs20.x, "
            "python3.11. To add it: trivet runtime add nodejs22.x",
        ),
    ],
)
async def test_settings_in_aws_words(call: Call, settings: dict[str, Any], text: str) -> None:
    expected = (400, "InvalidParameterValueException", text)
    assert await refused(call, "create_function", **{**GIVEN, **settings}) == expected
    await create(call)
    update = {"FunctionName": "hello", **settings}
    assert await refused(call, "update_function_configuration", **update) == expected


async def test_a_runtime_that_nobody_knows(call: Call) -> None:
    status, kind, text = await refused(call, "create_function", **{**GIVEN, "Runtime": "cobol1"})
    assert (status, kind) == (400, "InvalidParameterValueException")
    assert text.startswith(
        "Value cobol1 at 'runtime' failed to satisfy constraint: Member must satisfy enum value "
        "set: ["
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"Layers": [f"arn:aws:lambda:us-east-1:{'1' * 12}:layer:l:1"]},
        {"VpcConfig": {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}},
        {"DeadLetterConfig": {"TargetArn": f"arn:aws:sqs:us-east-1:{'1' * 12}:q"}},
        {"KMSKeyArn": f"arn:aws:kms:us-east-1:{'1' * 12}:key/k"},
        {"SnapStart": {"ApplyOn": "PublishedVersions"}},
        {"LoggingConfig": {"LogFormat": "JSON"}},
        {"LoggingConfig": {"LogGroup": "elsewhere"}},
        {"ImageConfig": {"Command": ["x"]}},
        {"DurableConfig": {"ExecutionTimeout": 60}},
    ],
)
async def test_what_is_not_here_is_refused_in_words(call: Call, settings: dict[str, Any]) -> None:
    status, kind, text = await refused(call, "create_function", **{**GIVEN, **settings})
    assert (status, kind) == (501, "NotImplementedException")
    assert text.startswith("Trivet does not have this yet: ")
    assert next(iter(settings)) in text
    await create(call)
    update = {"FunctionName": "hello", **settings}
    assert (await refused(call, "update_function_configuration", **update))[0] == 501


@pytest.mark.parametrize(
    "settings",
    [
        {"Publish": True},
        {"PackageType": "Image"},
        {"Architectures": ["arm64" if ARCHITECTURE == "x86_64" else "x86_64"]},
        {"TenancyConfig": {"TenantIsolationMode": "PER_TENANT"}},
        {"Code": {"S3Bucket": "bucket", "S3Key": "key"}},
        {"Code": {"ImageUri": "image:1"}},
    ],
)
async def test_other_ways_to_create_are_refused_in_words(
    call: Call, settings: dict[str, Any]
) -> None:
    assert (await refused(call, "create_function", **{**GIVEN, **settings}))[:2] == (
        501,
        "NotImplementedException",
    )


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            {"ZipFile": b"no zip"},
            "Could not unzip uploaded file. Please check your file, then try to upload again.",
        ),
        ({"ZipFile": zip_of()}, "Uploaded file must be a non-empty zip"),
        ({}, "Please provide a source for function code."),
    ],
)
async def test_code_in_aws_words(call: Call, code: dict[str, Any], text: str) -> None:
    expected = (400, "InvalidParameterValueException", text)
    assert await refused(call, "create_function", **{**GIVEN, "Code": code}) == expected
    await create(call)
    assert await refused(call, "update_function_code", FunctionName="hello", **code) == expected


@pytest.mark.slow
async def test_too_large_zipped_and_unzipped(call: Call) -> None:
    large = {"ZipFile": b"\0" * 52_428_801}
    assert await refused(call, "create_function", **{**GIVEN, "Code": large}) == (
        413,
        "RequestEntityTooLargeException",
        "Zipped size must be smaller than 52428800 bytes",
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr("zeros", b"\0" * 262_144_001)
    assert await refused(
        call, "create_function", **{**GIVEN, "Code": {"ZipFile": out.getvalue()}}
    ) == (
        400,
        "InvalidParameterValueException",
        "Unzipped size must be smaller than 262144000 bytes",
    )


async def test_runtime_and_handler_are_mandatory_for_a_zip(call: Call) -> None:
    given = {k: v for k, v in GIVEN.items() if k != "Handler"}
    assert (await refused(call, "create_function", **given))[2] == (
        "Runtime and Handler are mandatory parameters for functions created with deployment "
        "packages."
    )


# ----------------------------------------------------------------------------------- invoke


async def test_invoked(call: Call, services: Services) -> None:
    await create(call)
    answer = await call("lambda", "invoke", FunctionName="hello", Payload=b'{"a": 1}')
    assert answer["StatusCode"] == 200
    assert answer["Payload"].read() == b'{"a": 1}'
    assert answer["ExecutedVersion"] == "$LATEST"
    assert "FunctionError" not in answer
    assert "LogResult" not in answer
    (event,) = platform_of(services).events
    assert event.id == answer["ResponseMetadata"]["RequestId"]
    assert (event.function, event.source, event.invoked_arn) == ("hello", "invoke", ARN)
    assert not event.wants_log_tail


async def test_invoked_with_everything(call: Call, services: Services) -> None:
    await create(call)
    platform_of(services).function_error = "Unhandled"
    context = base64.b64encode(b'{"custom":{"a":"b"}}').decode()
    answer = await call(
        "lambda",
        "invoke",
        FunctionName="hello",
        Qualifier="$LATEST",
        LogType="Tail",
        ClientContext=context,
        InvocationType="RequestResponse",
    )
    assert answer["FunctionError"] == "Unhandled"
    assert base64.b64decode(answer["LogResult"]) == b"START"
    assert answer["Payload"].read() == b"{}"
    (event,) = platform_of(services).events
    assert event.invoked_arn == f"{ARN}:$LATEST"
    assert event.client_context == b'{"custom":{"a":"b"}}'


async def test_a_dry_run_only_looks(call: Call, services: Services) -> None:
    await create(call)
    answer = await call("lambda", "invoke", FunctionName="hello", InvocationType="DryRun")
    assert answer["StatusCode"] == 204
    assert platform_of(services).events == []


async def test_nobody_to_invoke_is_named_with_its_version(call: Call) -> None:
    nobody = ARN.replace("hello", "nobody")
    assert await refused(call, "invoke", FunctionName="nobody") == (
        404,
        "ResourceNotFoundException",
        f"Function not found: {nobody}:$LATEST",
    )


@pytest.mark.parametrize(
    "payload",
    [b"{", b"hello", b"NaN", b'{"a": Infinity}', b'"\xff"', b"{} {}", b"[" * 100_000, b" "],
)
async def test_a_payload_must_be_json(call: Call, payload: bytes) -> None:
    await create(call)
    status, kind, text = await refused(call, "invoke", FunctionName="hello", Payload=payload)
    assert (status, kind) == (400, "InvalidRequestContentException")
    assert text.startswith(
        "Could not parse request body into json: Could not parse payload into json: "
    )


@pytest.mark.parametrize("payload", [b"1", b"null", b'"\\ud800"', b'{"a":1,"a":2}', b" {} "])
async def test_any_json_is_a_payload(call: Call, payload: bytes) -> None:
    await create(call)
    answer = await call("lambda", "invoke", FunctionName="hello", Payload=payload)
    assert answer["Payload"].read() == payload


async def test_a_payload_of_more_than_6_mb(call: Call) -> None:
    await create(call)
    payload = b'"' + b"x" * 6_291_455 + b'"'
    assert await refused(call, "invoke", FunctionName="hello", Payload=payload) == (
        413,
        "RequestTooLargeException",
        "6291457 byte payload is too large for the RequestResponse invocation type "
        "(limit 6291456 bytes)",
    )


@pytest.mark.parametrize("context", ["%%%", "aGVsbG8=", base64.b64encode(b"[1]").decode()])
async def test_a_client_context_must_be_an_object(call: Call, context: str) -> None:
    await create(call)
    assert await refused(call, "invoke", FunctionName="hello", ClientContext=context) == (
        400,
        "InvalidRequestContentException",
        "Client context must be a valid Base64-encoded JSON object.",
    )


async def test_durable_executions_are_refused_in_words(call: Call) -> None:
    await create(call)
    settings = {"DurableExecutionName": "name"}
    assert (await refused(call, "invoke", FunctionName="hello", **settings))[:2] == (
        501,
        "NotImplementedException",
    )
