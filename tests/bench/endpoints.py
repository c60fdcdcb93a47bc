"""Endpoints: a Lambda API, ours or another one, and functions on it."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from tests.bench.load import Request

ROLE = "arn:aws:iam::123456789012:role/bench"
PYTHON = f"python3.{sys.version_info.minor}"
NODE = "nodejs20.x"
# File, handler, text.
HELLO = {
    PYTHON: (
        "hello.py",
        """
import json


def handler(event, context):
    name = (event.get("queryStringParameters") or {}).get("name") or "World"
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "application/json"},
        "body": json.dumps({"message": f"Hello, {name}!"}),
    }
""",
    ),
    NODE: (
        "hello.mjs",
        """
export const handler = async (event) => ({
  statusCode: 200,
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ message: `Hello, ${event.queryStringParameters?.name ?? "World"}!` }),
});
""",
    ),
}
EVENT = json.dumps({"queryStringParameters": {"name": "Alice"}})
EXPECTED = {"message": "Hello, Alice!"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a Lambda API answers, and who we are there."""

    url: str
    access_key: str = "test"
    secret: str = "test"
    region: str = "us-east-1"

    def __repr__(self) -> str:
        return f"<Endpoint {self.url} as {self.access_key}>"  # the secret is nobody's to read

    def client(self) -> Any:
        return boto3.client(
            "lambda",
            endpoint_url=self.url,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret,
            config=Config(retries={"total_max_attempts": 1}, read_timeout=60),
        )

    def deploy(
        self, *names: str, runtime: str = PYTHON, text: str = "", memory_mb: int = 128
    ) -> None:
        """The hello-world, or other code, under these names, in place of what had them."""
        client = self.client()
        file, hello = HELLO[runtime]
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(file, text or hello)
        for name in names:
            with suppress(client.exceptions.ResourceNotFoundException):
                client.delete_function(FunctionName=name)
            client.create_function(
                FunctionName=name,
                Runtime=runtime,
                Handler="hello.handler",
                Code={"ZipFile": buffer.getvalue()},
                Role=ROLE,
                Timeout=30,
                MemorySize=memory_mb,
            )
            client.get_waiter("function_active_v2").wait(FunctionName=name)

    def call(self, name: str) -> None:
        """One call, whose answer must be right."""
        answer = self.client().invoke(FunctionName=name, Payload=EVENT)
        told = answer["Payload"].read()
        assert json.loads(json.loads(told)["body"]) == EXPECTED, told

    def invocation(self, name: str, *, asynchronous: bool = False, event: str = EVENT) -> Request:
        """A signed request to the Invoke API."""
        url = f"{self.url}/2015-03-31/functions/{name}/invocations"
        kind = "Event" if asynchronous else "RequestResponse"
        headers = {"Content-Type": "application/json", "X-Amz-Invocation-Type": kind}
        request = AWSRequest("POST", url, data=event, headers=headers)
        signer = SigV4Auth(Credentials(self.access_key, self.secret), "lambda", self.region)
        signer.add_auth(request)
        return Request(url, "POST", dict(request.headers.items()), event)
