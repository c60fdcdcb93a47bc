"""Inside: what functions do with the AWS endpoint of their own network, and when they stand still.

Nothing is configured in them: what they find is what every function finds.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import ROLE, Deployed, Running, descendants
from tests.platform.caged import burn, cpu_s, survey_v1, until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="networks and cgroups are root's"),
    pytest.mark.slow,  # many a cold start, and waits until something is frozen
]

Deploy = Callable[..., Deployed]

PYTHON = f"python3.{sys.version_info.minor}"
NOTHING_OUTSIDE = {"trivet:egress": "none"}

# Long enough that no call of a test comes later than this after the one before it.
FREEZE_AFTER_MS = 500

ECHO = "def handler(event, context): return {'echo': event}"

# Calls one operation of a service, and tells what came back or how it was refused.
CALL = """
import json, boto3
from botocore.config import Config
from botocore.exceptions import ClientError

def handler(event, context):
    config = Config(retries={"total_max_attempts": 1})
    client = boto3.client(event["service"], config=config, **event.get("client", {}))
    try:
        answer = getattr(client, event["operation"])(**event.get("params", {}))
    except ClientError as error:
        said = error.response
        return [said["ResponseMetadata"]["HTTPStatusCode"], said["Error"]]
    answer.pop("ResponseMetadata")
    if "Payload" in answer:
        answer["Payload"] = json.loads(answer["Payload"].read())
    return answer
"""

FETCH = """
export const handler = async () => {
    const url = `${process.env.AWS_ENDPOINT_URL}/2015-03-31/functions/any/invocations`;
    const answer = await fetch(url, { method: "POST", body: "{}" });
    return { status: answer.status, error: answer.headers.get("x-amzn-errortype") };
};
"""


class _Tables(BaseHTTPRequestHandler):
    """A database of nobody's making: it takes any call, and keeps what was asked for."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.headers["X-Amz-Target"])
        self.send_response(200)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def tables() -> Iterator[ThreadingHTTPServer]:
    _Tables.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Tables)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def platform(start_platform: Callable[..., Running], tables: ThreadingHTTPServer) -> Running:
    return start_platform(
        TRIVET_SERVICE_ENDPOINTS=f"dynamodb=http://127.0.0.1:{tables.server_port}",
        TRIVET_FREEZE_AFTER_MS=str(FREEZE_AFTER_MS),
    )


# ---------------------------------------------------------------------------- the AWS endpoint


@pytest.mark.parametrize("tags", [{}, NOTHING_OUTSIDE], ids=["internet", "none"])
def test_a_function_invokes_another_with_an_sdk_as_it_comes(
    deploy: Deploy, tags: dict[str, str]
) -> None:
    callee, caller = deploy(ECHO), deploy(CALL, Tags=tags, Timeout=20)
    params = {"FunctionName": callee.name, "Payload": json.dumps(7)}
    answer = caller.call({"service": "lambda", "operation": "invoke", "params": params})
    assert answer["Payload"] == {"echo": 7}
    assert answer["StatusCode"] == 200


def test_a_function_is_its_role(deploy: Deploy) -> None:
    function = deploy(CALL, Timeout=20)
    identity = function.call({"service": "sts", "operation": "get_caller_identity"})
    role = ROLE.rpartition("/")[2]
    assert identity["Arn"] == f"arn:aws:sts::123456789012:assumed-role/{role}/{function.name}"
    assert identity["Account"] == "123456789012"
    assert identity["UserId"].endswith(f":{function.name}")


def test_what_the_operator_did_not_allow_is_denied_in_aws_s_words(deploy: Deploy) -> None:
    function = deploy(CALL, Timeout=20)
    params = {
        "FunctionName": "made-inside",
        "Runtime": PYTHON,
        "Role": ROLE,
        "Handler": "app.handler",
        "Code": {"S3Bucket": "bucket", "S3Key": "key"},
    }
    status, error = function.call(
        {"service": "lambda", "operation": "create_function", "params": params}
    )
    arn = f"arn:aws:sts::123456789012:assumed-role/lambda-execution-role/{function.name}"
    assert status == 403
    assert error["Code"] == "AccessDeniedException"
    assert error["Message"] == (
        f"User: {arn} is not authorized to perform: lambda:CreateFunction on resource: * because"
        " no identity-based policy allows the lambda:CreateFunction action"
    )


def test_credentials_of_another_function_are_refused_inside(deploy: Deploy) -> None:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    tells = deploy(f"import os\ndef handler(e, c): return [os.environ[n] for n in {names!r}]")
    uses = deploy(CALL, Timeout=20)
    taken = dict(zip([name.lower() for name in names], tells.call(), strict=True))
    wanted = {"service": "sts", "operation": "get_caller_identity"}
    assert uses.call(wanted)["Account"] == "123456789012"
    status, error = uses.call({**wanted, "client": taken})
    assert status == 403
    assert error == {
        **error,
        "Code": "InvalidClientTokenId",
        "Message": "The security token included in the request is invalid.",
    }


@pytest.mark.parametrize("tags", [{}, NOTHING_OUTSIDE], ids=["internet", "none"])
def test_an_unsigned_request_of_node_reaches_the_door_and_is_refused(
    deploy: Deploy, tags: dict[str, str]
) -> None:
    function = deploy(FETCH, runtime="nodejs20.x", Tags=tags, Timeout=20)
    assert function.call() == {"status": 403, "error": "MissingAuthenticationTokenException"}


def test_a_service_can_be_served_elsewhere(deploy: Deploy) -> None:
    """On this machine's loopback, which functions cannot reach themselves."""
    function = deploy(CALL, Tags=NOTHING_OUTSIDE, Timeout=20)
    assert function.call({"service": "dynamodb", "operation": "list_tables"}) == {}
    assert _Tables.asked[-1] == "DynamoDB_20120810.ListTables"


# --------------------------------------------------------------------------------------- frost

COUNT = """
import os, threading, time

count = 0

def work():
    global count
    while True:
        count += 1
        time.sleep(0)

threading.Thread(target=work, daemon=True).start()

def handler(event, context):
    before = count
    time.sleep(event)
    return [os.getuid(), before, count]
"""


def _process_of(platform: Running, uid: int) -> int:
    (pid,) = [
        pid
        for pid in descendants(int(platform.state["pid"]))
        if Path(f"/proc/{pid}").stat().st_uid == uid
    ]
    return pid


def _freezer_of(pid: int) -> Path:
    top = survey_v1().tops["freezer"]
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "freezer" in controllers.split(","):
            return Path(f"{top}{path}/freezer.state")
    raise LookupError(pid)


class _Writes:
    """Counts how often a file is written to, by whomever."""

    MODIFY = 0x2

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._fd, os.fsencode(path), self.MODIFY) >= 0

    def seen(self) -> bool:
        try:
            return len(os.read(self._fd, 4096)) >= struct.calcsize("iIII")
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._fd)


def test_between_calls_nothing_of_a_function_runs(platform: Running, deploy: Deploy) -> None:
    function = deploy(COUNT)
    uid, _, counted = function.call(0.01)
    pid = _process_of(platform, uid)
    freezer = _freezer_of(pid)
    until(lambda: freezer.read_text().strip() == "FROZEN")
    used_s = cpu_s(pid)
    began_s = time.monotonic()
    while time.monotonic() < began_s + 0.1:
        burn(0.02)
    assert cpu_s(pid) == used_s
    again, before, after = function.call(0.05)
    assert again == uid  # the same environment
    assert counted <= before < after  # and its thread goes on


def test_calls_without_a_pause_freeze_nothing(platform: Running, deploy: Deploy) -> None:
    function = deploy(COUNT)
    uid, *_ = function.call(0)
    writes = _Writes(_freezer_of(_process_of(platform, uid)))
    try:
        for _ in range(30):
            assert function.call(0)[0] == uid
        assert not writes.seen()
        until(writes.seen)
    finally:
        writes.close()
