"""The road: deploy, invoke, and what comes back when a handler misbehaves."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError
from tests.e2e.conftest import Deployed, Running

Deploy = Callable[..., Deployed]

REPORT = re.compile(
    r"REPORT RequestId: (?P<id>[0-9a-f-]{36})\tDuration: (?P<run>\d+\.\d\d) ms\t"
    r"Billed Duration: (?P<billed>\d+) ms\tMemory Size: 128 MB\tMax Memory Used: \d+ MB\t"
    r"(?:Init Duration: (?P<init>\d+\.\d\d) ms\t)?(?P<status>.*)"
)


def tail(answer: dict[str, str]) -> list[str]:
    return base64.b64decode(answer["LogResult"]).decode().splitlines()


def test_a_python_function_returns_what_it_returns(deploy: Deploy) -> None:
    """P2"""
    function = deploy("def handler(event, context): return {'got': event}")
    assert function.call({"a": [1, None, "ü"]}) == {"got": {"a": [1, None, "ü"]}}


def test_a_node_function_of_the_tutorial_s_kind_answers(deploy: Deploy) -> None:
    function = deploy(
        "export const handler = async (event) => ({ statusCode: 200, body: event.name });",
        runtime="nodejs20.x",
    )
    assert function.call({"name": "Alice"}) == {"statusCode": 200, "body": "Alice"}


def test_initialisation_runs_once_for_many_invocations(deploy: Deploy) -> None:
    function = deploy("n = 0\ndef handler(e, c):\n    global n\n    n += 1\n    return n")
    assert [function.call() for _ in range(5)] == [1, 2, 3, 4, 5]


def test_environments_grow_with_demand_and_each_runs_one_at_a_time(deploy: Deploy) -> None:
    function = deploy(
        "import os, time\n"
        "busy = False\n"
        "def handler(e, c):\n"
        "    global busy\n"
        "    assert not busy\n"
        "    busy = True\n"
        "    time.sleep(2)\n"
        "    busy = False\n"
        "    return c.log_stream_name\n",
        Timeout=20,
    )
    with ThreadPoolExecutor(8) as threads:
        streams = list(threads.map(lambda _: function.call(), range(8)))
    assert len(set(streams)) == 8


def test_the_log_tail_has_start_the_lines_end_and_an_exact_report(deploy: Deploy) -> None:
    """P6"""
    function = deploy("def handler(e, c): print('hello'); print('world')")
    answer = function.invoke(LogType="Tail")
    request_id = answer["ResponseMetadata"]["RequestId"]
    start, *lines, end, report = tail(answer)
    assert start == f"START RequestId: {request_id} Version: $LATEST"
    assert lines == ["hello", "world"]
    assert end == f"END RequestId: {request_id}"
    match = REPORT.fullmatch(report)
    assert match is not None, report
    assert match["id"] == request_id
    assert match["init"] is not None
    total = float(match["run"]) + float(match["init"])
    assert 0 <= int(match["billed"]) - total <= 1.02
    warm = REPORT.fullmatch(tail(function.invoke(LogType="Tail"))[-1])
    assert warm is not None
    assert warm["init"] is None
    assert 0 <= int(warm["billed"]) - float(warm["run"]) <= 1.01


CRASHES = [
    ("import os; os._exit(3)", "Runtime exited with error: exit status 3"),
    ("import os; os._exit(0)", "Runtime exited without providing a reason"),
    ("import sys; sys.exit(4)", "Runtime exited with error: exit status 4"),
    (
        "import ctypes; ctypes.string_at(0)",
        "Runtime exited with error: signal: segmentation fault",
    ),
]


@pytest.mark.parametrize(("source", "reason"), CRASHES)
def test_a_crash_is_answered_in_aws_s_words_and_the_next_call_works(
    deploy: Deploy, source: str, reason: str
) -> None:
    """P5"""
    function = deploy(f"def handler(e, c):\n    if e: {source}\n    return 'fine'")
    answer = function.invoke(True, LogType="Tail")
    request_id = answer["ResponseMetadata"]["RequestId"]
    assert answer["FunctionError"] == "Unhandled"
    assert json.loads(answer["Payload"]) == {
        "errorType": "Runtime.ExitError",
        "errorMessage": f"RequestId: {request_id} Error: {reason}",
    }
    assert tail(answer)[-1].endswith("Status: error\tError Type: Runtime.ExitError")
    assert function.call(False) == "fine"


@pytest.mark.parametrize(
    "source",
    [
        "import os; os.closerange(0, 65536)",
        "import os; os.close(3)",
        "import os; os.write(3, b'\\xff' * 1000)",
        "import os, struct; os.write(3, struct.pack('<BII', 18, 99, 4) + bytes(4))",
        "import os, struct; os.write(3, struct.pack('<BII', 18, 1, 2**31))",
    ],
)
def test_meddling_with_the_channel_ends_the_environment_and_nothing_else(
    deploy: Deploy, source: str
) -> None:
    function = deploy(f"def handler(e, c):\n    if e: {source}\n    return 'fine'")
    answer = function.invoke(True)
    assert json.loads(answer["Payload"])["errorType"] == "Runtime.ExitError"
    assert function.call(False) == "fine"


def test_a_timeout_kills_at_the_millisecond_and_bills_the_timeout(deploy: Deploy) -> None:
    """P4"""
    function = deploy(
        "n = 0\ndef handler(e, c):\n    global n\n    n += 1\n    while e: pass\n    return n",
        Timeout=1,
    )
    assert function.call(False) == 1
    answer = function.invoke(True, LogType="Tail")
    request_id = answer["ResponseMetadata"]["RequestId"]
    assert json.loads(answer["Payload"]) == {
        "errorType": "Sandbox.Timedout",
        "errorMessage": f"RequestId: {request_id} Error: Task timed out after 1.00 seconds",
    }
    lines = tail(answer)
    assert lines[-3].endswith(f"{request_id} Task timed out after 1.00 seconds")
    match = REPORT.fullmatch(lines[-1])
    assert match is not None
    assert (match["run"], match["billed"], match["status"]) == (
        "1000.00",
        "1000",
        "Status: timeout",
    )
    # A new environment: the one that timed out is never used again.
    assert function.call(False) == 1


def test_an_exception_is_the_function_s_and_the_environment_lives_on(deploy: Deploy) -> None:
    function = deploy(
        "n = 0\n"
        "def handler(e, c):\n"
        "    global n\n"
        "    n += 1\n"
        "    if e: raise ValueError('no')\n"
        "    return n"
    )
    answer = function.invoke(True)
    payload = json.loads(answer["Payload"])
    assert answer["FunctionError"] == "Unhandled"
    assert list(payload) == ["errorMessage", "errorType", "requestId", "stackTrace"]
    assert payload["stackTrace"] == [
        "  File \"/var/task/app.py\", line 5, in handler\n    if e: raise ValueError('no')\n"
    ]
    assert function.call(False) == 2


def test_an_import_error_is_answered_at_each_call(deploy: Deploy) -> None:
    function = deploy("import nowhere\ndef handler(e, c): pass")
    for _ in range(2):
        payload = function.call()
        assert payload["errorType"] == "Runtime.ImportModuleError"
        assert payload["errorMessage"] == (
            "Unable to import module 'app': No module named 'nowhere'"
        )


def test_an_exit_while_initialising_is_answered(deploy: Deploy) -> None:
    function = deploy("import os\nos._exit(7)\ndef handler(e, c): pass")
    assert function.call()["errorMessage"].endswith("exit status 7")


def test_a_result_json_cannot_hold_is_a_marshal_error(deploy: Deploy) -> None:
    function = deploy("def handler(e, c): return {1, 2}")
    payload = function.call()
    assert payload["errorType"] == "Runtime.MarshalError"
    assert "Object of type set is not JSON serializable" in payload["errorMessage"]


def test_a_result_over_six_megabytes_is_refused_as_aws_does(deploy: Deploy) -> None:
    function = deploy("def handler(e, c): return 'x' * e")
    assert function.call(6_000_000) == "x" * 6_000_000
    payload = function.call(6_300_000)
    assert payload["errorType"] == "Function.ResponseSizeTooLarge"
    assert "(6291556 bytes)" in payload["errorMessage"]


def test_a_payload_over_six_megabytes_is_refused(deploy: Deploy) -> None:
    function = deploy("def handler(e, c): return len(e)")
    assert function.call("x" * 6_000_000) == 6_000_000
    with pytest.raises(ClientError, match="limit 6291456 bytes") as refused:
        function.call("x" * 6_300_000)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413


@pytest.mark.slow
def test_a_flood_on_stdout_is_bounded_and_counted(deploy: Deploy, platform: Running) -> None:
    """P7"""
    function = deploy(
        "import os\n"
        "def handler(e, c):\n"
        "    line = b'x' * 1023 + b'\\n'\n"
        "    for _ in range(30 * 1024): os.write(1, line)\n"
        "    return 'done'",
        Timeout=30,
    )
    answer = function.invoke(LogType="Tail")
    assert json.loads(answer["Payload"]) == "done"
    dropped = [line for line in tail(answer) if line.startswith("LOGS_DROPPED")]
    assert len(dropped) == 1
    stored = sum(f.stat().st_size for f in (platform.data / "logs" / function.name).iterdir())
    assert stored < 15_000_000
    assert int(dropped[0].rpartition(" ")[2]) > 15_000_000


def test_a_line_cannot_pass_for_the_platform_s_or_for_two(
    deploy: Deploy, platform: Running
) -> None:
    """P8"""
    function = deploy(
        "def handler(e, c):\n"
        "    print('REPORT RequestId: forged\\tDuration: 0.00 ms')\n"
        "    print('a\\rb\\x1b[2Jc\\u2028d\\x85e')\n"
    )
    request_id = function.invoke()["ResponseMetadata"]["RequestId"]
    read = platform.trivet("logs", function.name, "--json").stdout.splitlines()
    lines = [json.loads(line) for line in read]
    assert [line["kind"] for line in lines] == [
        "platform", "function", "function", "platform", "platform",
    ]  # fmt: skip
    assert {line["requestId"] for line in lines} == {request_id}
    shown = platform.trivet("logs", function.name).stdout
    # A carriage return begins a row, as AWS's tracebacks want it, and each row says whose it is.
    marks = [row.split(request_id[:8])[1].strip()[0] for row in shown.splitlines()]
    assert marks == ["·", "|", "|", "|", "·", "·"]
    assert "\x1b" not in shown


def test_an_update_is_used_by_the_next_call(deploy: Deploy) -> None:
    function = deploy("import os\ndef handler(e, c): return os.environ.get('XX')", Timeout=5)
    assert function.call() is None
    for value in ("one", "two"):
        function.client.update_function_configuration(
            FunctionName=function.name, Environment={"Variables": {"XX": value}}
        )
        assert function.call() == value


def test_the_environment_s_variables_are_aws_s_and_nothing_of_the_host_s(deploy: Deploy) -> None:
    function = deploy("import os\ndef handler(e, c): return dict(os.environ)")
    variables = function.call()
    assert variables["AWS_LAMBDA_FUNCTION_NAME"] == function.name
    assert variables["LAMBDA_TASK_ROOT"] == "/var/task"
    assert variables["_HANDLER"] == "app.handler"
    assert not [name for name in variables if name.startswith("TRIVET")]
    assert "HOME" not in variables


def test_inside_it_is_the_first_process_and_has_four_descriptors(deploy: Deploy) -> None:
    function = deploy(
        "import os\n"
        "def handler(e, c):\n"
        "    fds = sorted(int(n) for n in os.listdir('/proc/self/fd'))\n"
        "    return [os.getpid(), os.getsid(0), fds[:4], len(fds)]"
    )
    # The fifth descriptor is the listing's own.
    assert function.call() == [1, 1, [0, 1, 2, 3], 5]


def test_temporary_files_are_the_function_s_own_and_last_while_it_is_warm(deploy: Deploy) -> None:
    source = (
        "import os\n"
        "def handler(e, c):\n"
        "    before = os.path.exists('/tmp/mine')\n"
        "    open('/tmp/mine', 'w').close()\n"
        "    return before"
    )
    first, second = deploy(source), deploy(source)
    assert [first.call(), first.call(), second.call()] == [False, True, False]


def test_the_code_cannot_be_written(deploy: Deploy) -> None:
    function = deploy("def handler(e, c): open('/var/task/app.py', 'a')")
    assert function.call()["errorType"] in ("OSError", "PermissionError")
