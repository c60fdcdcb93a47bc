"""Custom runtimes: a program named `bootstrap` that speaks the Runtime API."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.e2e.conftest import ROLE, Running

# A shell has no HTTP client that is everywhere, so a little Python plays curl.
BOOTSTRAP = """#!/usr/bin/python3 -S
import http.client, json, os, sys
host = os.environ["AWS_LAMBDA_RUNTIME_API"]
base = "/2018-06-01/runtime"
api = http.client.HTTPConnection(host)

def call(method, path, body=None, headers={}):
    api.request(method, base + path, body, headers)
    answer = api.getresponse()
    return answer, answer.read()

if os.environ.get("FAIL_INIT"):
    call("POST", "/init/error", json.dumps({"errorType": "My.Init", "errorMessage": "no"}))
    sys.exit(1)
count = 0
while True:
    answer, event = call("GET", "/invocation/next")
    request_id = answer.headers["Lambda-Runtime-Aws-Request-Id"]
    event = json.loads(event)
    count += 1
    print("line of", request_id, flush=True)
    if event == "crash":
        sys.exit(3)
    if event == "fail":
        error = {"errorType": "My.Error", "errorMessage": "as asked", "stackTrace": []}
        call("POST", f"/invocation/{request_id}/error", json.dumps(error))
        continue
    result = {
        "count": count,
        "event": event,
        "handler": os.environ["_HANDLER"],
        "execution": os.environ.get("AWS_EXECUTION_ENV"),
        "arn": answer.headers["Lambda-Runtime-Invoked-Function-Arn"],
    }
    call("POST", f"/invocation/{request_id}/response", json.dumps(result))
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="its interpreter may be out of reach")


def package(source: str, mode: int = 0o755) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("bootstrap")
        entry.external_attr = (0o100000 | mode) << 16
        archive.writestr(entry, source)
    return buffer.getvalue()


@pytest.fixture
def deploy(
    platform: Running, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Callable[..., Any]]]:
    client = platform.client("lambda", read_timeout=30)
    names: list[str] = []

    def make(code: bytes, **options: Any) -> Callable[..., Any]:
        name = f"custom-{os.urandom(4).hex()}"
        client.create_function(
            FunctionName=name,
            Runtime="provided.al2023",
            Handler="my.handler",
            Role=ROLE,
            Code={"ZipFile": code},
            **options,
        )
        names.append(name)

        def call(event: Any, **more: Any) -> tuple[str | None, Any]:
            answer = client.invoke(FunctionName=name, Payload=json.dumps(event), **more)
            return answer.get("FunctionError"), json.loads(answer["Payload"].read())

        return call

    yield make
    for name in names:
        client.delete_function(FunctionName=name)


@needs_root
def test_it_takes_events_one_after_the_other(deploy: Callable[..., Callable[..., Any]]) -> None:
    call = deploy(package(BOOTSTRAP))
    error, result = call({"key": 1})
    assert error is None
    assert result["arn"].startswith("arn:aws:lambda:us-east-1:123456789012:function:custom-")
    del result["arn"]
    assert result == {
        "count": 1,
        "event": {"key": 1},
        "handler": "my.handler",
        "execution": None,
    }
    assert call("again")[1]["count"] == 2


@needs_root
def test_its_errors_and_its_end_are_told_as_on_aws(
    deploy: Callable[..., Callable[..., Any]],
) -> None:
    call = deploy(package(BOOTSTRAP))
    assert call("fail") == (
        "Unhandled",
        {"errorType": "My.Error", "errorMessage": "as asked", "stackTrace": []},
    )
    error, payload = call("crash")
    assert (error, payload["errorType"]) == ("Unhandled", "Runtime.ExitError")
    assert payload["errorMessage"].endswith("Error: Runtime exited with error: exit status 3")
    assert call("next")[1]["count"] == 1


@needs_root
def test_a_failed_initialisation_is_its_own_error(
    deploy: Callable[..., Callable[..., Any]],
) -> None:
    call = deploy(package(BOOTSTRAP), Environment={"Variables": {"FAIL_INIT": "1"}})
    assert call(1) == ("Unhandled", {"errorType": "My.Init", "errorMessage": "no"})


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (package("#!/bin/sh\n", 0o644), "fork/exec /var/task/bootstrap: permission denied"),
        (
            package("#!/no/such/program\n"),
            "Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]",
        ),
    ],
)
def test_a_program_that_does_not_start_is_told(
    deploy: Callable[..., Callable[..., Any]], code: bytes, words: str
) -> None:
    error, payload = deploy(code)(1)
    assert (error, payload["errorType"]) == ("Unhandled", "Runtime.InvalidEntrypoint")
    assert words in payload["errorMessage"]
