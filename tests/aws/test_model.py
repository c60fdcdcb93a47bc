"""AWS's models as router, parser, validator and serializer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

import orjson
import pytest

from trivet.aws.constraints import compiled, constraints_of
from trivet.aws.json_target import JsonTarget
from trivet.aws.model import Model, Request, load
from trivet.aws.query import Query
from trivet.aws.refusals import Refused
from trivet.aws.rest_json import RestJson
from trivet.errors import FunctionNotFound, Throttled, TrivetError

SERVED = ("apigatewayv2", "events", "iam", "lambda", "logs", "scheduler", "sqs", "sts")
ROLE = "arn:aws:iam::123456789012:role/r"


@pytest.fixture(scope="module")
def lambda_() -> RestJson:
    return RestJson(load("lambda"))


def create(lambda_: RestJson, **members: Any) -> dict[str, Any]:
    body = {"FunctionName": "f", "Role": ROLE, "Code": {}, **members}
    given = {name: value for name, value in body.items() if value is not ...}
    request = Request("POST", "/2015-03-31/functions", b"", {}, orjson.dumps(given))
    return lambda_.read(lambda_.find(request), request)


def get(lambda_: RestJson, path: str, query: str = "", method: str = "GET") -> tuple[str, Any]:
    request = Request(method, path, query.encode(), {})
    found = lambda_.find(request)
    return found.operation, lambda_.read(found, request)


@pytest.mark.parametrize("service", SERVED)
def test_every_pattern_of_every_model_means_something_here(service: str) -> None:
    for shape in load(service).shapes.values():
        constraints_of(shape)
        if "pattern" in shape:
            compiled(shape["pattern"])


@pytest.mark.parametrize("service", ["apigatewayv2", "lambda", "scheduler"])
def test_every_operation_is_found_by_its_own_path(service: str) -> None:
    model = load(service)
    speaker = RestJson(model)
    for name, operation in model.operations.items():
        path, _, query = operation["http"]["requestUri"].partition("?")
        filled = path.replace("{", "x-").replace("+}", "").replace("}", "")
        request = Request(operation["http"]["method"], filled, query.encode(), {})
        found = speaker.find(request)
        assert found.operation == name
        assert all(value == f"x-{label}" for label, value in found.labels.items())


def test_a_query_chooses_between_operations_of_one_path(lambda_: RestJson) -> None:
    path = "/2019-09-30/functions/f/provisioned-concurrency"
    listed, params = get(lambda_, path, "List=ALL&MaxItems=5")
    assert listed == "ListProvisionedConcurrencyConfigs"
    assert params == {"FunctionName": "f", "MaxItems": 5}
    assert get(lambda_, path, "Qualifier=1")[0] == "GetProvisionedConcurrencyConfig"


def test_members_come_from_path_query_headers_and_body(lambda_: RestJson) -> None:
    arn = "arn:aws:lambda:us-east-1:123456789012:function:f"
    path = f"/2017-03-31/tags/{quote(arn, safe='')}"
    assert get(lambda_, path, "tagKeys=a&tagKeys=b%20c", method="DELETE") == (
        "UntagResource",
        {"Resource": arn, "TagKeys": ["a", "b c"]},
    )
    headers = {b"x-amz-invocation-type": b"Event"}
    path = "/2015-03-31/functions/f/invocations"
    request = Request("POST", path, b"Qualifier=v+1", headers, b"{}")
    with pytest.raises(TrivetError) as error:
        lambda_.read(lambda_.find(request), request)
    assert "Value 'v 1' at 'qualifier'" in error.value.message
    request.query = b"Qualifier=v1"
    assert lambda_.read(lambda_.find(request), request) == {
        "FunctionName": "f",
        "InvocationType": "Event",
        "Qualifier": "v1",
        "Payload": b"{}",
    }


def test_unknown_members_and_nulls_are_passed_over(lambda_: RestJson) -> None:
    assert create(lambda_, Nonsense=[1], Description=None, Timeout=3.0) == {
        "FunctionName": "f",
        "Role": ROLE,
        "Code": {},
        "Timeout": 3,
    }


ARCHITECTURES = (
    "Member must satisfy constraint: [Member must satisfy enum value set: [x86_64, arm64], "
    "Member must not be null]"
)
NAMES = (
    "Map keys must satisfy constraint: [Member must satisfy regular expression pattern: "
    "[a-zA-Z]([a-zA-Z0-9_])+, Member must not be null]"
)


@pytest.mark.parametrize(
    ("members", "told"),
    [
        (
            {"MemorySize": 127},
            "Value '127' at 'memorySize' failed to satisfy constraint: "
            "Member must have value greater than or equal to 128",
        ),
        (
            {"MemorySize": 32769},
            "Value '32769' at 'memorySize' failed to satisfy constraint: "
            "Member must have value less than or equal to 32768",
        ),
        (
            {"Role": "nobody"},
            "Value 'nobody' at 'role' failed to satisfy constraint: "
            "Member must satisfy regular expression pattern: "
            r"arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+",
        ),
        (
            {"Handler": "h" * 129},
            f"Value '{'h' * 129}' at 'handler' failed to satisfy constraint: "
            "Member must have length less than or equal to 128",
        ),
        (
            {"Role": ...},
            "Value null at 'role' failed to satisfy constraint: Member must not be null",
        ),
        (
            {"PackageType": "Tar"},
            "Value 'Tar' at 'packageType' failed to satisfy constraint: "
            "Member must satisfy enum value set: [Zip, Image]",
        ),
        (
            {"EphemeralStorage": {"Size": 1}},
            "Value '1' at 'ephemeralStorage.size' failed to satisfy constraint: "
            "Member must have value greater than or equal to 512",
        ),
        (
            {"Architectures": ["vax"]},
            f"Value '[vax]' at 'architectures' failed to satisfy constraint: {ARCHITECTURES}",
        ),
        (
            # The model calls variables sensitive: their values are not echoed.
            {"Environment": {"Variables": {"1": "x"}}},
            f"Value at 'environment.variables' failed to satisfy constraint: {NAMES}",
        ),
    ],
)
def test_a_broken_constraint_is_told_in_awss_words(
    lambda_: RestJson, members: dict[str, Any], told: str
) -> None:
    with pytest.raises(TrivetError) as error:
        create(lambda_, **members)
    assert error.value.message == f"1 validation error detected: {told}"
    assert (error.value.error_type, error.value.status) == ("ValidationException", 400)


def test_all_broken_constraints_are_told_together(lambda_: RestJson) -> None:
    with pytest.raises(TrivetError) as error:
        create(lambda_, MemorySize=1, Timeout=0)
    assert error.value.message == (
        "2 validation errors detected: "
        "Value '0' at 'timeout' failed to satisfy constraint: "
        "Member must have value greater than or equal to 1; "
        "Value '1' at 'memorySize' failed to satisfy constraint: "
        "Member must have value greater than or equal to 128"
    )


def test_names_and_runtimes_have_an_error_of_their_own(lambda_: RestJson) -> None:
    with pytest.raises(TrivetError) as error:
        create(lambda_, FunctionName="no spaces")
    assert error.value.error_type == "InvalidParameterValueException"
    told = "1 validation error detected: Value 'no spaces' at 'functionName' failed to satisfy"
    assert error.value.message.startswith(told)
    with pytest.raises(TrivetError) as error:
        create(lambda_, Runtime="node20")
    assert error.value.error_type == "InvalidParameterValueException"
    told = "Value node20 at 'runtime' failed to satisfy constraint: Member must satisfy enum value"
    assert error.value.message.startswith(told)
    assert error.value.message.endswith("] or be a valid ARN")
    with pytest.raises(TrivetError) as error:
        create(lambda_, Runtime="node20", MemorySize=1)
    assert error.value.error_type == "ValidationException"
    assert "runtime" not in error.value.message


def test_a_class_of_letters_is_javas(lambda_: RestJson) -> None:
    assert create(lambda_, Tags={"größe 5": "ü-@"})["Tags"] == {"größe 5": "ü-@"}
    with pytest.raises(TrivetError):
        create(lambda_, Tags={"a*": "b"})
    with pytest.raises(TrivetError):
        create(lambda_, Role=ROLE.replace("123456789012", "١٢٣٤٥٦٧٨٩٠١٢"))


def test_a_nested_member_is_told_by_its_place() -> None:
    events = JsonTarget(load("events"))
    target = {"Id": "", "Arn": "a"}
    body = orjson.dumps({"Rule": "r", "Targets": [target]})
    request = Request("POST", "/", b"", {b"x-amz-target": b"AWSEvents.PutTargets"}, body)
    with pytest.raises(TrivetError) as error:
        events.read(events.find(request), request)
    assert "Value '' at 'targets.1.member.id' failed" in error.value.message


def test_an_output_is_written_where_the_model_wants_it(lambda_: RestJson) -> None:
    answer = lambda_.write(
        "Invoke", {"StatusCode": 202, "Payload": b"x", "ExecutedVersion": "7"}, "id"
    )
    assert (answer.status, answer.body) == (202, b"x")
    assert answer.headers == {"X-Amz-Executed-Version": "7"}
    answer = lambda_.write("CreateFunction", {"FunctionName": "f", "KMSKeyArn": None}, "id")
    assert (answer.status, answer.body) == (201, b'{"FunctionName":"f"}')
    at = datetime(2026, 11, 23, 10, 0, 0, 500_000, tzinfo=UTC)
    answer = lambda_.write("GetEventSourceMapping", {"LastModified": at}, "id")
    assert orjson.loads(answer.body) == {"LastModified": 1795428000.5}
    assert lambda_.write("DeleteAlias", {}, "id").status == 204
    apis = RestJson(load("apigatewayv2"))
    answer = apis.write("GetApi", {"ApiId": "a", "CreatedDate": at}, "id")
    assert orjson.loads(answer.body) == {"apiId": "a", "createdDate": "2026-11-23T10:00:00.500Z"}
    with pytest.raises(KeyError):
        lambda_.write("CreateFunction", {"Nonsense": 1}, "id")


def test_the_message_of_an_error_is_spelled_as_its_shape_spells_it(lambda_: RestJson) -> None:
    def body(error: TrivetError) -> Any:
        return orjson.loads(lambda_.refuse(error, "id").body)

    assert body(FunctionNotFound("gone")) == {"Type": "User", "Message": "gone"}
    told = {"Type": "User", "message": "full", "Reason": "CallerRateLimitExceeded"}
    throttled = Throttled("full", Reason="CallerRateLimitExceeded", retryAfterSeconds="7")
    assert body(throttled) == told
    assert lambda_.refuse(throttled, "id").headers["Retry-After"] == "7"
    assert body(TrivetError("down")) == {"Type": "Service", "Message": "down"}
    assert body(Refused("ValidationException", "no")) == {"message": "no"}


def test_json_by_target_answers_errors_by_type() -> None:
    logs = JsonTarget(load("logs"))
    answer = logs.refuse(Refused("ResourceNotFoundException", "gone", status=404), "id")
    assert answer.status == 400
    assert orjson.loads(answer.body) == {"__type": "ResourceNotFoundException", "message": "gone"}
    assert answer.content_type == "application/x-amz-json-1.1"
    for target in (b"", b"Logs_20140328.Nonsense", b"Other.FilterLogEvents"):
        with pytest.raises(Refused) as error:
            logs.find(Request("POST", "/", b"", {b"x-amz-target": target}))
        assert error.value.error_type == "UnknownOperationException"


def test_a_form_grows_into_structures_and_lists() -> None:
    iam = Query(load("iam"))
    form = {
        "Action": "CreateRole",
        "Version": "2010-05-08",
        "RoleName": "r",
        "AssumeRolePolicyDocument": "{}",
        "MaxSessionDuration": "3600",
        "Tags.member.1.Key": "a",
        "Tags.member.1.Value": "1",
        "Tags.member.2.Key": "b",
        "Tags.member.2.Value": "",
    }
    request = Request("POST", "/", b"", {}, urlencode(form).encode())
    assert iam.read(iam.find(request), request) == {
        "RoleName": "r",
        "AssumeRolePolicyDocument": "{}",
        "MaxSessionDuration": 3600,
        "Tags": [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": ""}],
    }
    del form["Tags.member.2.Key"]
    request = Request("POST", "/", b"", {}, urlencode(form).encode())
    with pytest.raises(TrivetError) as error:
        iam.read(iam.find(request), request)
    assert "Value null at 'tags.2.member.key'" in error.value.message


def test_xml_is_escaped() -> None:
    sts = Query(load("sts"))
    answer = sts.write("GetCallerIdentity", {"Account": "<&\0>"}, "the-id")
    assert answer.body == (
        b'<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
        b"<GetCallerIdentityResult><Account>&lt;&amp;&gt;</Account></GetCallerIdentityResult>"
        b"<ResponseMetadata><RequestId>the-id</RequestId></ResponseMetadata>"
        b"</GetCallerIdentityResponse>"
    )
    assert b"<Code>x</Code><Message>&lt;</Message>" in sts.refuse(Refused("x", "<"), "id").body


def test_a_shape_may_hold_itself() -> None:
    tree = Model(
        "trees",
        {
            "metadata": {"protocol": "rest-json"},
            "operations": {
                "Plant": {
                    "http": {"method": "POST", "requestUri": "/"},
                    "input": {"shape": "Tree"},
                    "output": {"shape": "Tree"},
                }
            },
            "shapes": {
                "Tree": {"type": "structure", "members": {"Left": {"shape": "Tree"}}},
            },
        },
    )
    speaker = RestJson(tree)
    request = Request("POST", "/", b"", {}, b'{"Left": {"Left": {}}}')
    params = speaker.read(speaker.find(request), request)
    assert params == {"Left": {"Left": {}}}
    assert speaker.write("Plant", params, "id").body == b'{"Left":{"Left":{}}}'
