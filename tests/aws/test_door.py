"""The door, met by the real clients."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from tests.aws.conftest import ACCESS_KEY, SECRET, Opener, client

from trivet.aws.services import Caller, Operation, Services
from trivet.errors import FunctionNotFound, Throttled

ARN = "arn:aws:lambda:us-east-1:123456789012:function:hello"
ROLE = "arn:aws:iam::123456789012:role/r"


async def create_function(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    return {
        "FunctionName": params["FunctionName"],
        "CodeSize": len(params["Code"]["ZipFile"]),
        "Description": caller.access_key,
        "Environment": params.get("Environment"),
        "LastModified": "2026-11-23T10:00:00.000+0000",
    }


async def get_function(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    raise FunctionNotFound(f"Function not found: {ARN}")


async def invoke(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    if params["FunctionName"] == "busy":
        raise Throttled("Rate Exceeded.", Reason="ConcurrentInvocationLimitExceeded")
    if params["FunctionName"] == "broken":
        raise ZeroDivisionError("a secret of ours")
    if params.get("InvocationType") == "DryRun":
        return {"StatusCode": 204}
    return {
        "StatusCode": 200,
        "Payload": params.get("Payload", b"null"),
        "ExecutedVersion": params.get("Qualifier", "$LATEST"),
        "FunctionError": "Unhandled\r\nx-evil: 1",
    }


async def list_tags(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    return {"Tags": {"arn": params["Resource"]}}


async def get_apis(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    created = datetime(2026, 11, 23, 10, tzinfo=UTC)
    api = {"ApiId": "abc", "Name": "n", "CreatedDate": created, "ProtocolType": "HTTP"}
    return {"Items": [api], "NextToken": params.get("MaxResults")}


LAMBDA: dict[str, Operation] = {
    "CreateFunction": create_function,
    "GetFunction": get_function,
    "Invoke": invoke,
    "ListTags": list_tags,
}


@pytest.fixture
def url(open_door: Opener) -> Iterator[str]:
    with open_door({"lambda": LAMBDA, "apigatewayv2": {"GetApis": get_apis}}) as url:
        yield url


def refusal(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, str, int]:
    answer = error.value.response
    found = answer["Error"]
    return found["Code"], found["Message"], answer["ResponseMetadata"]["HTTPStatusCode"]


def test_an_operation_gets_its_parameters_and_answers_in_the_shape_of_aws(url: str) -> None:
    variables = {"Variables": {"NAME": "wörld"}}
    answer = client("lambda", url).create_function(
        FunctionName="hello", Role=ROLE, Code={"ZipFile": b"PK\0\xff"}, Environment=variables
    )
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert answer["CodeSize"] == 4
    assert answer["Description"] == ACCESS_KEY
    assert answer["Environment"] == variables
    assert len(answer["ResponseMetadata"]["RequestId"]) == 36


def test_a_big_body_is_one_as_any_other(url: str) -> None:
    code = os.urandom(6 << 20)
    answer = client("lambda", url).create_function(
        FunctionName="hello", Role=ROLE, Code={"ZipFile": code}
    )
    assert answer["CodeSize"] == len(code)
    with pytest.raises(ClientError) as error:
        client("lambda", url, secret="wrong").create_function(
            FunctionName="hello", Role=ROLE, Code={"ZipFile": code}
        )
    assert refusal(error)[0] == "InvalidSignatureException"


def test_a_payload_passes_as_it_is_and_no_value_writes_headers(url: str) -> None:
    answer = client("lambda", url).invoke(
        FunctionName="hello", Payload=b'{"a": "\xc3\xa9"}', Qualifier="live"
    )
    assert answer["Payload"].read() == b'{"a": "\xc3\xa9"}'
    assert answer["ExecutedVersion"] == "live"
    assert answer["FunctionError"].startswith("Unhandled")
    assert "x-evil" not in answer["ResponseMetadata"]["HTTPHeaders"]
    dry = client("lambda", url).invoke(FunctionName="hello", InvocationType="DryRun")
    assert dry["StatusCode"] == 204


def test_an_arn_in_the_path_arrives_whole(url: str) -> None:
    assert client("lambda", url).list_tags(Resource=ARN)["Tags"] == {"arn": ARN}


def test_services_that_share_a_signing_name_or_none_are_told_apart(url: str) -> None:
    apis = client("apigatewayv2", url).get_apis(MaxResults="5")
    assert apis["Items"][0]["CreatedDate"] == datetime(2026, 11, 23, 10, tzinfo=UTC)
    assert apis["NextToken"] == "5"


def test_errors_come_as_aws_words_them(url: str) -> None:
    with pytest.raises(ClientError) as error:
        client("lambda", url).get_function(FunctionName="hello")
    assert refusal(error) == ("ResourceNotFoundException", f"Function not found: {ARN}", 404)
    assert error.value.response["Message"] == f"Function not found: {ARN}"
    assert error.value.response["Type"] == "User"


def test_a_throttled_caller_is_told_why_and_when_to_return(url: str) -> None:
    with pytest.raises(ClientError) as error:
        client("lambda", url).invoke(FunctionName="busy")
    assert refusal(error) == ("TooManyRequestsException", "Rate Exceeded.", 429)
    assert error.value.response["Reason"] == "ConcurrentInvocationLimitExceeded"
    assert error.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "1"


def test_a_bug_of_ours_is_a_500_without_a_traceback(url: str) -> None:
    with pytest.raises(ClientError) as error:
        client("lambda", url).invoke(FunctionName="broken")
    code, message, status = refusal(error)
    assert (code, status) == ("ServiceException", 500)
    assert "secret" not in message


def test_what_is_not_there_yet_is_refused_in_words(url: str) -> None:
    with pytest.raises(ClientError) as error:
        client("lambda", url).publish_layer_version(LayerName="l", Content={})
    message = "Trivet does not implement lambda:PublishLayerVersion yet."
    assert refusal(error) == ("NotImplementedException", message, 501)
    with pytest.raises(ClientError) as error:
        client("dynamodb", url).list_tables()
    message = "Trivet does not implement dynamodb yet."
    assert refusal(error) == ("NotImplementedException", message, 501)
    with pytest.raises(ClientError) as error:
        client("s3", url).list_buckets()
    message = "Trivet does not implement s3 yet."  # in XML, which is all that it reads
    assert refusal(error) == ("NotImplementedException", message, 501)


def test_a_strangers_signature_is_refused(url: str) -> None:
    with pytest.raises(ClientError) as error:
        client("lambda", url, access_key="AKIDOTHER").get_function(FunctionName="hello")
    message = "The security token included in the request is invalid."
    assert refusal(error) == ("UnrecognizedClientException", message, 403)
    with pytest.raises(ClientError) as error:
        client("lambda", url, secret="wrong").get_function(FunctionName="hello")
    assert refusal(error)[0] == "InvalidSignatureException"
    with pytest.raises(ClientError) as error:
        client("lambda", url, region_name="eu-west-1").get_function(FunctionName="hello")
    message = "Credential should be scoped to a valid region. "
    assert refusal(error) == ("InvalidSignatureException", message, 403)
    with pytest.raises(ClientError) as error:
        client("sts", url, secret="wrong").get_caller_identity()
    assert refusal(error)[0] == "SignatureDoesNotMatch"


def raw(
    url: str, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> tuple[int, Any, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    try:
        connection.request(method, target, body, headers or {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers
    finally:
        connection.close()


def signed(
    url: str, method: str, target: str, body: bytes = b"", *, service: str = "lambda"
) -> dict[str, str]:
    request = AWSRequest(method, f"{url}{target}", data=body)
    SigV4Auth(Credentials(ACCESS_KEY, SECRET), service, "us-east-1").add_auth(request)
    return dict(request.headers)


def test_everything_needs_a_signature(url: str) -> None:
    status, body, headers = raw(url, "GET", "/2015-03-31/functions")
    assert (status, body) == (403, {"message": "Missing Authentication Token"})
    assert headers["x-amzn-ErrorType"] == "MissingAuthenticationTokenException"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "Could not parse request body into json"),
        (b"\xff", "Could not parse request body into json"),
        (b"[]", "Start of structure or map was expected"),
        (b'{"FunctionName": 1}', "NUMBER_VALUE can not be converted to a String"),
        (b'{"MemorySize": "128"}', "STRING_VALUE can not be converted to an Integer"),
        (b'{"MemorySize": 99999999999}', "NUMBER_VALUE can not be converted to an Integer"),
        (b'{"Publish": 1}', "NUMBER_VALUE can not be converted to a Boolean"),
        (b'{"Layers": {}}', "Start of structure or map found where not expected."),
        (b'{"Environment": []}', "Start of list found where not expected"),
        (b'{"Code": {"ZipFile": "%%%"}}', "base64"),
    ],
)
def test_a_body_of_the_wrong_make_is_a_400(url: str, body: bytes, told: str) -> None:
    target = "/2015-03-31/functions"
    status, answer, headers = raw(url, "POST", target, signed(url, "POST", target, body), body)
    assert status == 400
    assert headers["x-amzn-ErrorType"] == "SerializationException"
    assert told in answer["message"]


def test_a_path_of_no_operation_is_a_404(url: str) -> None:
    status, _, headers = raw(url, "GET", "/nowhere", signed(url, "GET", "/nowhere"))
    assert status == 404
    assert headers["x-amzn-ErrorType"] == "UnknownOperationException"


def test_a_path_means_what_its_signature_covers(url: str) -> None:
    # Signed as the first, sent as the second: both mean the first.
    headers = signed(url, "GET", "/2015-03-31/functions/hello")
    target = "/2015-03-31/functions/other/..//hello"
    assert raw(url, "GET", target, headers)[0] == 404
    assert raw(url, "GET", target, headers)[1]["Message"] == f"Function not found: {ARN}"


def test_an_oversize_body_is_refused_before_it_is_read(url: str) -> None:
    target = "/2015-03-31/functions"
    headers = signed(url, "POST", target) | {"content-length": "70167212"}
    status, body, _ = raw(url, "POST", target, headers)
    told = "Request must be smaller than 70167211 bytes for the CreateFunction operation"
    assert (status, body["message"]) == (413, told)


def test_a_body_without_a_length_is_bounded_too(url: str) -> None:
    target = "/v2/apis"
    headers = signed(url, "POST", target, service="apigateway")
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    body = iter([bytes(1 << 20)] * 11)
    connection.request("POST", target, body, headers, encode_chunked=True)
    answer = connection.getresponse()
    told = "Request must be smaller than 10485760 bytes for the CreateApi operation"
    assert (answer.status, json.loads(answer.read())["message"]) == (413, told)
    connection.close()


def test_a_client_that_leaves_halfway_troubles_nobody(url: str) -> None:
    target = "/2015-03-31/functions"
    headers = signed(url, "POST", target) | {"content-length": "10"}
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.request("POST", target, b"half", headers)
    connection.close()
    assert raw(url, "GET", target)[0] == 403


def test_pypis_command_line_is_content(url: str, tmp_path: Path) -> None:
    def aws(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name("aws")), *arguments],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": ACCESS_KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_MAX_ATTEMPTS": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )

    output = tmp_path / "output.json"
    done = aws("lambda", "invoke", "--function-name", "hello", "--payload", '{"a": 1}', str(output))
    assert done.returncode == 0, done.stderr
    assert output.read_text() == '{"a": 1}'
    assert json.loads(done.stdout)["ExecutedVersion"] == "$LATEST"
    assert aws("lambda", "list-tags", "--resource", ARN).returncode == 0
    done = aws("lambda", "get-function", "--function-name", "hello")
    assert done.returncode == 255
    assert done.stderr.strip() == (
        "An error occurred (ResourceNotFoundException) when calling the GetFunction operation: "
        f"Function not found: {ARN}"
    )
