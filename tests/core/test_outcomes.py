import json

import pytest

from trivet.core import outcomes


def test_a_timeout_has_the_payload_and_the_line_of_aws() -> None:
    outcome = outcomes.timed_out("r-1", 1_000, "2026-11-23T10:00:00.000Z")
    assert outcome.payload == (
        b'{"errorType":"Sandbox.Timedout",'
        b'"errorMessage":"RequestId: r-1 Error: Task timed out after 1.00 seconds"}'
    )
    assert outcome.log_line == "2026-11-23T10:00:00.000Z r-1 Task timed out after 1.00 seconds"
    assert outcome.status == "timeout"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (0, "Runtime exited without providing a reason"),
        (None, "Runtime exited without providing a reason"),
        (3, "Runtime exited with error: exit status 3"),
        (-9, "Runtime exited with error: signal: killed"),
        (-11, "Runtime exited with error: signal: segmentation fault"),
        (-64, "Runtime exited with error: signal: signal 64"),
        (-99, "Runtime exited with error: signal: signal 99"),
    ],
)
def test_an_exit_says_how(status: int | None, reason: str) -> None:
    payload = json.loads(outcomes.exited("r-1", status).payload)
    assert payload == {
        "errorType": "Runtime.ExitError",
        "errorMessage": f"RequestId: r-1 Error: {reason}",
    }


def test_too_little_memory_is_a_kill_to_the_caller_and_has_its_name_in_the_report() -> None:
    outcome = outcomes.out_of_memory("r-1")
    assert outcome.payload == outcomes.exited("r-1", -9).payload
    assert (outcome.status, outcome.error_type) == ("error", "Runtime.OutOfMemory")


@pytest.mark.parametrize("nonsense", [b"", b"[]", b"{", b"[" * 100_000, b'{"x": 1}'])
def test_an_error_report_that_cannot_be_read_becomes_one_that_can(nonsense: bytes) -> None:
    outcome = outcomes.raised(nonsense)
    assert json.loads(outcome.payload)["errorType"] == "Function.Unknown"


def test_a_readable_report_is_passed_on_as_it_is() -> None:
    payload = b'{"errorType": "ValueError", "errorMessage": "x"}'
    assert outcomes.raised(payload).payload == payload
    assert outcomes.raised(payload).error_type == "ValueError"
