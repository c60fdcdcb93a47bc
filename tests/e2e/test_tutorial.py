"""The tutorial's beginning with the stock aws CLI, in both runtimes, in the user's own words."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.e2e.conftest import ROLE, Running, zipped

NODE = """
export const handler = async (event) => {
  const name = event.queryStringParameters?.name || "World";
  return {
    statusCode: 200,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ message: `Hello, ${name}!` })
  };
};
"""
PYTHON = """
import json

def handler(event, context):
    name = (event.get("queryStringParameters") or {}).get("name") or "World"
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "application/json"},
        "body": json.dumps({"message": f"Hello, {name}!"}),
    }
"""
RUNTIMES = [
    ("nodejs20.x", "index.mjs", NODE),
    (f"python3.{sys.version_info.minor}", "index.py", PYTHON),
]


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "file", "source"), RUNTIMES)
def test_create_wait_invoke_update_list_and_delete(
    platform: Running, tmp_path: Path, runtime: str, file: str, source: str
) -> None:
    """P2"""
    name = f"tutorial-{runtime.replace('.', '-')}"
    (tmp_path / "function.zip").write_bytes(zipped({file: source}))

    def lambda_(*words: str) -> str:
        return platform.aws("lambda", *words, cwd=tmp_path)

    created = json.loads(
        lambda_(
            "create-function", "--function-name", name, "--runtime", runtime,
            "--handler", "index.handler", "--zip-file", "fileb://function.zip", "--role", ROLE,
        )
    )  # fmt: skip
    assert (created["State"], created["Timeout"], created["MemorySize"]) == ("Pending", 3, 128)
    lambda_("wait", "function-active-v2", "--function-name", name)
    payload = '{"queryStringParameters": {"name": "Alice"}}'
    answer = lambda_("invoke", "--function-name", name, "--payload", payload, "output.json")
    assert json.loads(answer) == {"StatusCode": 200, "ExecutedVersion": "$LATEST"}
    output = json.loads((tmp_path / "output.json").read_text())
    assert json.loads(output["body"]) == {"message": "Hello, Alice!"}

    (tmp_path / "function.zip").write_bytes(zipped({file: source.replace("Hello", "Bye")}))
    lambda_("update-function-code", "--function-name", name, "--zip-file", "fileb://function.zip")
    lambda_("wait", "function-updated-v2", "--function-name", name)
    lambda_("invoke", "--function-name", name, "--payload", payload, "output.json")
    output = json.loads((tmp_path / "output.json").read_text())
    assert json.loads(output["body"]) == {"message": "Bye, Alice!"}

    variables = "Variables={DB_HOST=mydb.cluster.us-east-1.rds.amazonaws.com,TABLE_NAME=users}"
    lambda_("update-function-configuration", "--function-name", name, "--environment", variables)
    words = ("--memory-size", "512", "--timeout", "30")
    lambda_("update-function-configuration", "--function-name", name, *words)
    got = json.loads(lambda_("get-function", "--function-name", name))["Configuration"]
    assert (got["MemorySize"], got["Timeout"]) == (512, 30)
    assert got["Environment"]["Variables"]["TABLE_NAME"] == "users"
    assert json.loads(lambda_("get-function-configuration", "--function-name", name))["State"]
    listed = json.loads(lambda_("list-functions"))["Functions"]
    assert name in [function["FunctionName"] for function in listed]

    lambda_("delete-function", "--function-name", name)
    gone = platform.aws("lambda", "get-function", "--function-name", name, check=False)
    assert "ResourceNotFoundException" in gone
    assert f"Function not found: arn:aws:lambda:us-east-1:123456789012:function:{name}" in gone


def test_the_caller_s_identity(platform: Running) -> None:
    identity = json.loads(platform.aws("sts", "get-caller-identity"))
    assert identity["Account"] == "123456789012"


def test_wrong_keys_are_refused(platform: Running) -> None:
    client = platform.client("lambda")
    client._request_signer._credentials.secret_key = "wrong"
    with pytest.raises(client.exceptions.ClientError, match="InvalidSignatureException"):
        client.list_functions()
