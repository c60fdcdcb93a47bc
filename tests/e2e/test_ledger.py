"""The ledger on the command line: what ended is listed, shown, checked and sent again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.e2e.conftest import Deployed, Running, deployer, zipped
from tests.e2e.test_async import accept

from trivet.bus import keys

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PICKY = "def handler(e, c):\n    if e.get('bad'):\n        raise ValueError(e['bad'])\n    return e"
MENDED = zipped({"app.py": "def handler(e, c): return e"})


@pytest.fixture(scope="module")
def hasty(start_platform: Callable[..., Running]) -> Running:
    """Does not wait minutes before it tries again."""
    return start_platform(TRIVET_RETRY_AFTER_S="0.05 0.05")


@pytest.fixture
def picky(hasty: Running, request: pytest.FixtureRequest) -> Deployed:
    """Fails for what is bad."""
    return deployer(hasty, request)(PICKY)


def told(running: Running, *words: str) -> Any:
    return json.loads(running.trivet(*words, "--json").stdout)


def await_ended(running: Running, function: Deployed, count: int) -> list[Any]:
    """The events of a function, once so many have ended."""
    ends = time.monotonic() + 30
    while True:
        events: list[Any] = told(running, "events", function.name)
        if sum(event["endedMs"] is not None for event in events) >= count:
            return events
        assert time.monotonic() < ends, events


def test_the_check_passes_with_the_client_s_own_file(
    hasty: Running, picky: Deployed, tmp_path: Path
) -> None:
    ids = [accept(picky, {"n": n, **({"bad": "egg"} if n % 5 == 0 else {})}) for n in range(20)]
    await_ended(hasty, picky, 20)
    accepted = tmp_path / "accepted"
    accepted.write_text("\n".join(ids) + "\n")
    function = ("--function", picky.name)
    passed = hasty.trivet("ledger", "check", *function, "--quiesced", "--accepted", str(accepted))
    lines = passed.stdout.splitlines()
    assert [line[:4] for line in lines[:7]] == [f"✓ I{n}" for n in range(1, 8)]
    assert "20 accepted; 20 ended, 0 in flight" in lines[0]
    assert "28 executions of 20 events; 8 retries, 0 aborted" in lines[5]
    found = told(hasty, "ledger", "check", *function, "--most-aborted", "0")
    assert found["holds"]
    assert found["invariants"][2]["figures"] == {"billed": 28, "attempts": 28, "aborted": 0}


def test_a_broken_ledger_is_said_and_exits_1(
    hasty: Running, picky: Deployed, tmp_path: Path
) -> None:
    accept(picky, {})
    await_ended(hasty, picky, 1)
    accepted = tmp_path / "accepted"
    accepted.write_text("00000000-0000-4000-8000-000000000000\n")
    with redis.Redis(unix_socket_path=str(hasty.data / "run" / "durable.sock")) as durable:
        durable.hincrby(keys.totals(picky.name), "requests", 1)
        words = ("ledger", "check", "--function", picky.name, "--accepted", str(accepted))
        failed = hasty.trivet(*words, check=False)
        durable.hincrby(keys.totals(picky.name), "requests", -1)
    assert failed.returncode == 1
    assert "error: the ledger does not add up: I3, I7 do not hold" in failed.stderr
    assert f"      {picky.name}: 2 requests are billed, and 1 attempts ran" in failed.stdout
    assert "      → " in failed.stdout
    assert hasty.trivet("ledger", "check", "--function", picky.name).returncode == 0


def test_a_dead_letter_is_shown_and_sent_again_edited(hasty: Running, picky: Deployed) -> None:
    request_id = accept(picky, {"bad": "egg"})
    await_ended(hasty, picky, 1)
    (listed,) = told(hasty, "events", picky.name, "--state", "dead")
    assert listed["requestId"] == request_id
    assert [each["status"] for each in listed["attempts"]] == ["error"] * 3
    assert request_id in hasty.trivet("events", picky.name).stdout
    shown = hasty.trivet("events", request_id).stdout
    assert "dead (RetriesExhausted)" in shown
    assert shown.count("ValueError") == 3
    assert '"bad": "egg"' in shown
    assert told(hasty, "events", request_id)["payload"] == {"bad": "egg"}
    answer = told(hasty, "replay", request_id, "--payload", '{"bad": ""}')
    assert answer["replayOf"] == request_id
    events = {event["requestId"]: event for event in await_ended(hasty, picky, 2)}
    assert events[answer["requestId"]]["state"] == "success"
    assert events[request_id]["state"] == "dead"


def test_all_dead_letters_are_sent_again_when_that_is_agreed_to(
    hasty: Running, picky: Deployed
) -> None:
    for n in range(3):
        accept(picky, {"bad": str(n)})
    await_ended(hasty, picky, 3)
    picky.client.update_function_code(FunctionName=picky.name, ZipFile=MENDED)
    picky.client.get_waiter("function_updated_v2").wait(FunctionName=picky.name)
    every = ("replay", "--state", "dead", "--function", picky.name)
    asked = hasty.trivet(*every, check=False)
    assert asked.returncode == 1
    assert f"3 events of {picky.name} are dead: nothing was sent again" in asked.stderr
    done = hasty.trivet(*every, "--yes")
    assert len(done.stdout.splitlines()) == 3
    states = [event["state"] for event in await_ended(hasty, picky, 6)]
    assert sorted(states) == ["dead"] * 3 + ["success"] * 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("events", "00000000-0000-4000-8000-000000000000"), "Event not found"),
        (("events", "nobody"), "there is no function 'nobody'"),
        (("replay", "00000000-0000-4000-8000-000000000000"), "Event not found"),
        (("replay", "hello"), "'hello' is not a request id"),
        (("replay", "--state", "dead"), "of one --function"),
        (("ledger", "check", "--accepted", "/nowhere"), "/nowhere cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    hasty: Running, words: tuple[str, ...], says: str
) -> None:
    failed = hasty.trivet(*words, check=False)
    assert failed.returncode == 1
    error, hint = failed.stderr.splitlines()
    assert error.startswith("error: ")
    assert says in error
    assert hint.startswith("hint: ")
