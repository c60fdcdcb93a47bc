"""Whatever order publishers, consumers, timers and deaths take, the lane's books are right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.chaos.lane_model import Lane, sources
from tests.chaos.servers import Server, running

from trivet.bus.frames import Delivery
from trivet.core.retries import Again, AttemptStatus, Over, Verdict

BUS = "arn:aws:events:us-east-1:123456789012:event-bus/default"

OVERS: dict[str, tuple[AttemptStatus, Verdict]] = {
    "success": ("ok", Over("success", "Success")),
    "told": ("ok", Over("success", "Success", BUS)),
    "dead": ("crash", Over("dead", "RetriesExhausted")),
    "destination": ("error", Over("destination", "RetriesExhausted", BUS)),
}
MOST_PUBLISHED = 8  # in a run: the rest of it is for what becomes of them
SOON_MS, LATER_MS = 10, 1_000


class CommitMachine(RuleBasedStateMachine):
    """Publishers, two consumers and what they leave behind, timers, an outbox and a server."""

    server: ClassVar[Server]
    scripts: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.lane = Lane(self.server, {**sources(), **self.scripts})
        self.published = self.metered = self.restarts = 0
        self.lives = {"a": 1, "b": 1}
        self.held: dict[str, list[Delivery]] = {"n:a1": [], "n:b1": []}
        self.committed: list[tuple[str, Delivery]] = []

    def teardown(self) -> None:
        self.lane.redis.close()

    def name(self, who: str) -> str:
        return f"n:{who}{self.lives[who]}"

    def ending(self, data: st.DataObject, status: AttemptStatus, verdict: Verdict) -> None:
        """By whoever has it in hand, alive or only paused and long since taken over."""
        consumer = data.draw(st.sampled_from(sorted(c for c, held in self.held.items() if held)))
        delivery = self.held[consumer].pop(0)
        self.lane.end(consumer, delivery, status, verdict)
        self.committed.append((consumer, delivery))

    @precondition(lambda self: self.published < MOST_PUBLISHED)
    @rule(count=st.integers(1, 3), once=st.sampled_from(["", "", "k1", "k2"]))
    def publish(self, count: int, once: str) -> None:
        for _ in range(count):
            self.published += 1
            self.lane.publish(self.published, once)

    @precondition(lambda self: self.lane.has_unread)
    @rule(who=st.sampled_from("ab"), most=st.integers(1, 3))
    def take(self, who: str, most: int) -> None:
        self.held[self.name(who)] += self.lane.take(self.name(who), most)

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data(), how=st.sampled_from(sorted(OVERS)))
    def end(self, data: st.DataObject, how: str) -> None:
        self.ending(data, *OVERS[how])

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data(), due_ms=st.sampled_from([SOON_MS, SOON_MS, LATER_MS]))
    def park(self, data: st.DataObject, due_ms: int) -> None:
        self.ending(data, "error", Again(due_ms))

    @precondition(lambda self: self.committed)
    @rule(data=st.data(), is_over=st.booleans())
    def end_again(self, data: st.DataObject, is_over: bool) -> None:
        """A commit is sent again, because its answer was lost."""
        consumer, delivery = data.draw(st.sampled_from(self.committed))
        status, verdict = OVERS["told"] if is_over else ("error", Again(SOON_MS))
        assert self.lane.end(consumer, delivery, status, verdict) != 1

    @precondition(lambda self: any(self.held[self.name(who)] for who in "ab"))
    @rule(data=st.data(), is_successor=st.booleans())
    def die(self, data: st.DataObject, is_successor: bool) -> None:
        """A consumer dies, or is only paused; its successor or its peer takes over."""
        dead = data.draw(st.sampled_from([who for who in "ab" if self.held[self.name(who)]]))
        old = self.name(dead)
        self.lives[dead] += 1
        self.held[self.name(dead)] = []
        heir = self.name(dead if is_successor else {"a": "b", "b": "a"}[dead])
        self.held[heir] += self.lane.claim(old, heir)

    @precondition(lambda self: self.lane.model.parked)
    @rule(now_ms=st.sampled_from([SOON_MS - 1, SOON_MS, SOON_MS, LATER_MS]))
    def wake(self, now_ms: int) -> None:
        self.lane.wake(now_ms)

    @precondition(lambda self: self.lane.model.outbox)
    @rule(data=st.data(), is_cut_short=st.booleans())
    def deliver(self, data: st.DataObject, is_cut_short: bool) -> None:
        origin = data.draw(st.sampled_from(sorted(self.lane.model.outbox)))
        self.lane.tell(origin)
        if not is_cut_short:
            self.lane.deliver(origin)

    @precondition(lambda self: self.metered < 2)
    @rule(who=st.sampled_from("ab"))
    def meter(self, who: str) -> None:
        self.metered += 1
        self.lane.meter(self.name(who))

    @precondition(lambda self: not self.restarts and len(self.committed) > 3)
    @rule()
    def restart(self) -> None:
        self.restarts += 1
        self.lane.restart()

    @invariant()
    def holds(self) -> None:
        self.lane.check()


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


def explore(server: Server, scripts: dict[str, str], *, examples: int, steps: int) -> None:
    """Raises AssertionError when a run does not hold; what it looked like is not looked for."""
    CommitMachine.server, CommitMachine.scripts = server, scripts
    run_state_machine_as_test(
        CommitMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=[Phase.generate] if scripts else [Phase.generate, Phase.shrink],
            suppress_health_check=[*HealthCheck],
            derandomize=bool(scripts),
            database=None,
        ),
    )


def test_the_books_are_right_in_every_order(server: Server) -> None:
    explore(server, {}, examples=12, steps=40)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_books_are_right_in_very_many_orders(server: Server) -> None:
    explore(server, {}, examples=100, steps=50)


BREAKS = {
    "a commit without its fence": ("commit", "pending[2] ~= ARGV[2]", "false"),
    "a commit that is not looked for first": (
        "commit",
        "  return 0\nend\nif pending",
        "  pending = {ARGV[3], ARGV[2], 0, 1}\nend\nif pending",
    ),
    "an end that is not acknowledged": ("commit", "redis.call('XACK'", "tostring('XACK'"),
    "an end that stays on the stream": ("commit", "redis.call('XDEL', KEYS[1]", "tostring('XDEL'"),
    "an end that is not counted": (
        "commit",
        "redis.call('HINCRBY', KEYS[2], ARGV[13]",
        "tostring(1",
    ),
    "an end that is not in the ledger": (
        "commit",
        "redis.call('XADD', KEYS[7]",
        "tostring(KEYS[7]",
    ),
    "an attempt that is not billed": (
        "commit",
        "redis.call('HINCRBY', KEYS[4], 'requests', ARGV[5])",
        "tonumber(ARGV[5])",
    ),
    "an attempt whose time is not billed": (
        "commit",
        "redis.call('HINCRBY', KEYS[4], 'mb_ms', ARGV[6])",
        "tonumber(ARGV[6])",
    ),
    "an attempt without a reading": ("commit", "redis.call('XADD', KEYS[3]", "tostring(KEYS[3]"),
    "an attempt that is not counted": (
        "commit",
        "redis.call('HINCRBY', KEYS[2], 'requests', ARGV[5])",
        "tonumber(ARGV[5])",
    ),
    "a parked event without a time": ("commit", "redis.call('ZADD'", "tostring('ZADD'"),
    "a parked event that is not kept": ("commit", "redis.call('HSET', KEYS[6]", "tostring(KEYS[6]"),
    "a destination that is forgotten": ("commit", "redis.call('XADD', KEYS[8]", "tostring(KEYS[8]"),
    "a take-over that is not counted": ("commit", "pending[4] > 1", "false"),
    "an acceptance that is not counted": ("enqueue", "redis.call('HINCRBY'", "tostring('HINCRBY'"),
    "an idempotency key that is not kept": ("enqueue", "redis.call('SET'", "tostring('SET'"),
    "a waking that leaves the event parked": ("wake", "redis.call('HDEL'", "tostring('HDEL'"),
    "a waking that wakes again": ("wake", "redis.call('ZREM'", "tostring('ZREM'"),
    "a waking that loses the event": ("wake", "redis.call('XADD'", "tostring('XADD'"),
    "a waking that forgets the attempts": ("wake", ", 'p', parts[2])", ")"),
    "a delivery that is counted twice": ("delivered", "== 0 then", "== 7 then"),
    "a bus that is told twice": ("tell_bus", "'NX', ", ""),
    "a batch that is metered twice": ("meter", "'NX', ", ""),
}
"""What is wrong, in which script, and how: a text and what stands in its place."""


@pytest.mark.slow
@pytest.mark.parametrize("wrong", BREAKS)
def test_a_broken_script_is_noticed(server: Server, wrong: str) -> None:
    name, before, after = BREAKS[wrong]
    text = sources()[name]
    assert before in text
    broken = {name: text.replace(before, after, 1)}
    with pytest.raises(AssertionError):
        explore(server, broken, examples=40, steps=40)
