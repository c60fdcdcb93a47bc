"""A fault at any step of the durable lane leaves its books right, and broken books are seen."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from tests.chaos.crash_points import Case, Crashes, crashes
from tests.chaos.lane_model import sources
from tests.chaos.servers import Server, running

from trivet.bus import keys, resp
from trivet.bus.failpoints import Failpoints, arm, parse
from trivet.bus.resp import Address, Connection, connected, pack

SAMPLE = 6


@pytest.fixture(scope="module")
def machine() -> Iterator[Crashes]:
    with crashes() as machine:
        yield machine


@pytest.mark.slow
def test_the_books_are_right_after_a_fault(machine: Crashes) -> None:
    """A sample of the run below; the same one each time."""
    choice = random.Random(5)
    calm, cases = machine.cases(choice)
    assert calm.violations == []
    for case in choice.sample(cases, SAMPLE):
        result = machine.strike(case)
        assert (str(case), result.violations) == (str(case), [])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_books_are_right_after_every_fault_at_every_step(machine: Crashes) -> None:
    calm, cases = machine.cases(random.Random(6))
    results = [calm, *map(machine.strike, cases)]
    assert {str(r.case): r.violations for r in results if r.violations} == {}
    assert len({(case.who, case.step) for case in cases}) >= 25


BREAKS = {
    "I1": ("redis.call('HINCRBY', KEYS[2], ARGV[13], 1)", "tonumber(1)"),
    "I2": ("redis.call('XADD', KEYS[7]", "tostring(KEYS[7]"),
    "I3": ("redis.call('HINCRBY', KEYS[4], 'requests', ARGV[5])", "tonumber(ARGV[5])"),
    "I4": ("redis.call('HINCRBY', KEYS[4], 'mb_ms', ARGV[6])", "tonumber(ARGV[6])"),
    "I5": ("redis.call('HINCRBY', KEYS[2], 'outbox', 1)", "tonumber(1)"),
}


@pytest.mark.parametrize("invariant", BREAKS)
def test_a_broken_commit_is_seen(
    machine: Crashes, invariant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where a run that fails leaves its files.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before, after = BREAKS[invariant]
    text = sources()["commit"]
    assert before in text
    result = machine.run(Case(), commit=text.replace(before, after, 1))
    assert any(words.startswith(invariant) for words in result.violations)


# ------------------------------------------------------------------ the failpoints themselves


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("commit", "not of the form"),
        ("comit=kill-after", "no step 'comit'"),
        ("sadd.bucklog=error", "no step 'sadd.bucklog'"),
        ("commit=explode", "no mode 'explode'"),
        ("commit=delay", "has seconds"),
        ("commit=error:1", "has seconds"),
        ("commit=error@0", "number 1"),
    ],
)
def test_a_point_that_could_never_strike_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text)


def test_a_service_does_not_start_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        arm("comit=error", tmp_path)
    assert ended.value.code == 78
    assert "no step 'comit'" in capsys.readouterr().err
    assert resp.intercept is None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
async def connection(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connection]:
    monkeypatch.setattr(resp, "intercept", None)  # and again, whatever a test puts there
    server.client().flushall()
    async with connected(Address(socket=server.socket)) as connection:
        yield connection


async def answers_of(connection: Connection, *commands: tuple[str | bytes | int, ...]) -> list[Any]:
    """Sent in one turn of the loop, in the order in which their answers came."""
    answers: list[Any] = []
    for command in commands:
        connection.send(pack(command), answers.append)
    with anyio.fail_after(10):
        while len(answers) < len(commands):
            await anyio.lowlevel.checkpoint()
    return answers


@pytest.mark.anyio
async def test_a_command_is_sent_twice_and_its_second_answer_counts(
    connection: Connection, tmp_path: Path
) -> None:
    resp.intercept = Failpoints(parse("sadd.backlog=duplicate"), tmp_path)
    add = ("SADD", keys.BACKLOG, "f")
    assert await answers_of(connection, add, ("PING",), add) == [0, b"PONG", 0]


@pytest.mark.anyio
async def test_an_answer_comes_late_and_keeps_its_place(
    connection: Connection, tmp_path: Path
) -> None:
    resp.intercept = Failpoints(parse("sadd.backlog=delay:0.05"), tmp_path)
    began = anyio.current_time()
    assert await answers_of(connection, ("SADD", keys.BACKLOG, "f"), ("PING",)) == [1, b"PONG"]
    assert anyio.current_time() - began > 0.04


@pytest.mark.anyio
async def test_a_connection_is_lost_before_a_command_and_after_those_before_it(
    connection: Connection, tmp_path: Path
) -> None:
    resp.intercept = Failpoints(parse("sadd.ledgers=error"), tmp_path)
    first, lost = ("SADD", keys.BACKLOG, "f"), ("SADD", keys.LEDGERS, "f")
    answers = await answers_of(connection, first, lost, ("SADD", keys.BACKLOG, "g"))
    assert isinstance(answers[1], ConnectionError)
    assert not connection.is_open
