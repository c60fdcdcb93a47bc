"""Function URLs of a running platform: the stock aws CLI makes them, curl and boto3 use them."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from tests.e2e.conftest import Deployed, Running

pytestmark = pytest.mark.slow

Deploy = Callable[..., Deployed]

GREET = """
def handler(event, context):
    if event["rawPath"] == "/fail":
        raise ValueError
    if event["rawPath"] == "/arn":
        return context.invoked_function_arn
    name = event.get("queryStringParameters", {}).get("name", "World")
    return {"message": f"Hello, {name}!", "who": event["requestContext"]["accountId"]}
"""


def ask(url: str, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    """What a client of `url` gets, whatever this machine makes of names under localhost."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=40)
    try:
        connection.request(method, path, headers={"Host": parts.netloc, **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def open_to_all(client: Any, name: str) -> None:
    for sid, action, condition in (
        ("use-url", "lambda:InvokeFunctionUrl", {"FunctionUrlAuthType": "NONE"}),
        ("via-url", "lambda:InvokeFunction", {"InvokedViaFunctionUrl": True}),
    ):
        client.add_permission(
            FunctionName=name, StatementId=sid, Action=action, Principal="*", **condition
        )


def test_a_public_url_from_the_aws_cli_to_curl(platform: Running, deploy: Deploy) -> None:
    function = deploy(GREET)
    named = ("--function-name", function.name)
    made: dict[str, Any] = json.loads(
        platform.aws("lambda", "create-function-url-config", *named, "--auth-type", "NONE")
    )
    url: str = made["FunctionUrl"]
    assert ask(url, "/")[0] == 403
    for sid, action, option in (
        ("use-url", "lambda:InvokeFunctionUrl", ("--function-url-auth-type", "NONE")),
        ("via-url", "lambda:InvokeFunction", ("--invoked-via-function-url",)),
    ):
        platform.aws(
            "lambda", "add-permission", *named, "--statement-id", sid, "--action", action,
            "--principal", "*", *option,
        )  # fmt: skip
    greeting = {"message": "Hello, Alice!", "who": "anonymous"}
    status, body = ask(url, "/?name=Alice")
    assert (status, json.loads(body)) == (200, greeting)
    curl = shutil.which("curl")
    if curl is not None:
        said = subprocess.run(
            [curl, "-sS", "--noproxy", "*", f"{url}?name=Alice"], capture_output=True, check=True
        )
        assert json.loads(said.stdout) == greeting
    url_id = url.removeprefix("http://").partition(".")[0]
    status, body = ask(platform.http_url, f"/_url/{url_id}/arn")
    assert (status, body.decode().rpartition(":")[2]) == (200, function.name)
    assert ask(url, "/fail") == (502, b"Internal Server Error")
    platform.aws("lambda", "delete-function-url-config", *named)
    assert ask(url, "/") == (403, b'{"Message":null}')


def test_a_url_for_those_who_sign(platform: Running, deploy: Deploy) -> None:
    function = deploy(GREET)
    made = function.client.create_function_url_config(
        FunctionName=function.name, AuthType="AWS_IAM"
    )
    url: str = made["FunctionUrl"]
    assert ask(url, "/") == (403, b'{"Message":"Forbidden"}')
    request = AWSRequest("GET", f"{url}?name=Bob")
    own = Credentials(platform.env["AWS_ACCESS_KEY_ID"], platform.env["AWS_SECRET_ACCESS_KEY"])
    SigV4Auth(own, "lambda", platform.env["AWS_DEFAULT_REGION"]).add_auth(request)
    status, body = ask(url, "/?name=Bob", **dict(request.headers.items()))
    assert (status, json.loads(body)) == (200, {"message": "Hello, Bob!", "who": "123456789012"})
    assert ask(url, "/?name=Eve", **dict(request.headers.items()))[0] == 403


@pytest.mark.slow
def test_a_url_and_its_policy_are_there_after_a_restart(
    start_platform: Callable[..., Running],
) -> None:
    running = start_platform()
    client = running.client("lambda")
    made = client.create_function_url_config(FunctionName="welcome", AuthType="NONE")
    open_to_all(client, "welcome")
    url_id = urlsplit(made["FunctionUrl"]).netloc.partition(".")[0]
    running.down()
    running.up()
    status, body = ask(running.http_url, f"/_url/{url_id}/?name=Alice")
    assert (status, json.loads(body)) == (200, {"message": "Hello, Alice!"})
    shown = running.client("lambda").get_function_url_config(FunctionName="welcome")
    assert url_id in shown["FunctionUrl"]
