"""However supervisors of three nodes pause, die and come back: nobody who lives is taken for dead,
and what the dead had is run by one of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, ClassVar, cast

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
from tests.chaos.lane_model import FUNCTION, Lane, sources
from tests.chaos.servers import Server, running

from trivet.bus import keys, leases
from trivet.bus.dequeue import COMMIT
from trivet.bus.frames import Delivery
from trivet.bus.leases import LEASE_S, Lease
from trivet.bus.resp import Address, Connection, connect
from trivet.bus.scripts import load
from trivet.bus.streams import ensure_group
from trivet.bus.succession import RETIRE, Succession
from trivet.core.retries import Over

NODES = ("a", "b", "c")


class Clock:
    """In the place of the module `time`: it passes when the machine says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Express:
    """The server of the leases: a connection that takes its time, and keys that the clock of the
    machine expires."""

    def __init__(self, out: Connection, clock: Clock) -> None:
        self._out = out
        self._clock = clock
        self.expires: dict[str, float] = {}  # by node
        self.before_s = self.after_s = 0.0  # what a command and its answer take on their way

    async def call(self, *command: str | bytes | int) -> Any:
        self._clock.now += self.before_s
        await self.expire()
        answer = await self._out.call(*command)
        for node in NODES:
            if command[:2] == ("SET", keys.lease(node)):
                self.expires[node] = self._clock.now + LEASE_S
        self._clock.now += self.after_s
        return answer

    async def expire(self) -> None:
        for node in [node for node in self.expires if self.expires[node] <= self._clock.now]:
            del self.expires[node]
            await self._out.call("DEL", keys.lease(node))


class Life:
    """One epoch of a node's supervisor."""

    def __init__(self, machine: LeaseMachine, node: str, number: int) -> None:
        self.node = node
        self.consumer = f"{node}:{number}"
        self.held: list[Delivery] = []
        self.has_lapsed = False
        self.lease = machine.lease_kind(
            Address(socket=machine.server.socket),
            node=node,
            epoch=str(number),
            on_lapse=self._lapse,
        )
        self.succession = Succession(
            node, str(number), prepare=self._prepare, is_held=self._is_held, take=self._take
        )
        self._lane = machine.lane

    def _lapse(self) -> None:
        self.has_lapsed = True

    async def _prepare(self, out: Connection, function: str) -> None:
        node, _, epoch = self.consumer.partition(":")
        await out.call("SADD", keys.durable_epoch_functions(node, epoch), function)
        await ensure_group(out, keys.durable_stream(function))

    def _is_held(self, function: str, entry_id: bytes) -> bool:
        return any(delivery.entry_id == entry_id for delivery in self.held)

    def _take(self, function: str, entries: list[Any], deliveries: dict[bytes, int]) -> None:
        for entry_id, flat in entries:
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            given = self._lane._given(self.consumer, entry_id, fields, aborted=deliveries[entry_id])
            if not self._is_held(function, entry_id):
                self.held.append(given)

    async def begin(self, out: Connection, express: Express) -> None:
        self.connected(express)
        await self.lease._renew(cast(Connection, express))
        await self.succession.begin(out)
        await self._prepare(out, FUNCTION)

    def connected(self, express: Express) -> None:
        self.lease._out = cast(Connection, express)
        self.lease._connected_at = express._clock.now


class LeaseMachine(RuleBasedStateMachine):
    """Three nodes and the events of one function."""

    server: ClassVar[Server]
    clock: ClassVar[Clock]
    lease_kind: ClassVar[type[Lease]] = Lease

    def __init__(self) -> None:
        super().__init__()
        self.clock.now = 1_000.0
        self.lane = Lane(self.server, sources())
        self.loop = asyncio.new_event_loop()
        self.out = self.wait(connect(Address(socket=self.server.socket)))
        self.wait(load(self.out, COMMIT, RETIRE))
        self.express = Express(self.out, self.clock)
        self.published = self.lives = self.losses = 0
        self.alive: dict[str, Life] = {}
        self.paused: list[Life] = []  # were taken over from, and do not know it yet
        for node in NODES[:2]:
            self.start(node)

    def wait(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    def start(self, node: str) -> None:
        """A new epoch. What was there before of this node is dead."""
        self.lives += 1
        life = self.alive[node] = Life(self, node, self.lives)
        self.wait(life.begin(self.out, self.express))

    def teardown(self) -> None:
        """In the end one that lives has all that the others left."""
        self.start("a")
        self.clock.now += 2 * LEASE_S
        self.wait(self.express.expire())
        self.start("a")
        last = self.alive["a"]
        last.connected(self.express)
        self.clock.now += 1.01 * LEASE_S
        self.wait(self.express.expire())
        self.sweep_of(last, checks=False)
        dead = [node for node in NODES if node != "a"]
        self.wait(last.succession.claim_strays(self.out, FUNCTION, dead))
        assert {*self.lane.model.owners.values()} <= {last.consumer}
        self.lane.check()
        self.out.close()
        self.wait(asyncio.sleep(0))
        self.loop.close()
        self.lane.redis.close()

    def sweep_of(self, life: Life, *, checks: bool = True) -> None:
        for node in self.wait(life.lease.dead_among(NODES)):
            if checks and (other := self.alive.pop(node, None)) is not None:
                other.lease._check_lapse()
                assert other.has_lapsed, f"{other.consumer} lives, by all that it can know"
                self.paused.append(other)
            self.wait(life.succession.claim_node(self.out, node))

    @precondition(lambda self: self.published < 6)
    @rule()
    def publish(self) -> None:
        self.published += 1
        self.lane.publish(self.published)

    @rule(node=st.sampled_from(NODES), before_s=st.sampled_from([0, 0, 4, 9]), after_s=st.just(0))
    def renew(self, node: str, before_s: float, after_s: float) -> None:
        life = self.alive.get(node)
        if life is None:
            return
        self.express.before_s, self.express.after_s = before_s, after_s
        self.wait(life.lease._renew(cast(Connection, self.express)))
        self.express.before_s = self.express.after_s = 0.0
        if life.has_lapsed:
            del self.alive[node]  # it has peers, so it ends itself

    @rule(node=st.sampled_from(NODES), after_s=st.sampled_from([4, 9]))
    def renew_and_hear_late(self, node: str, after_s: float) -> None:
        self.renew(node, 0, after_s)

    @rule(seconds=st.sampled_from([1, 4, 8]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds
        self.wait(self.express.expire())

    @precondition(lambda self: self.alive and self.lane.has_unread)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        """Also by one who does not know yet that he is held for dead."""
        life = data.draw(st.sampled_from([*self.alive.values(), *self.paused]))
        life.held += self.lane.take(life.consumer)

    @precondition(lambda self: any(x.held for x in (*self.alive.values(), *self.paused)))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """By its owner, or by one who was taken over and does not know: the model tells them
        apart, and so must the script."""
        able = [life for life in (*self.alive.values(), *self.paused) if life.held]
        life = data.draw(st.sampled_from(able))
        self.lane.end(life.consumer, life.held.pop(0), "ok", Over("success", "Success"))

    @rule(node=st.sampled_from(NODES))
    def sweep(self, node: str) -> None:
        life = self.alive.get(node)
        if life is not None:
            self.sweep_of(life)

    @precondition(lambda self: len(self.alive) < len(NODES))
    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        self.start(data.draw(st.sampled_from([node for node in NODES if node not in self.alive])))

    @precondition(lambda self: len(self.alive) > 1)
    @rule(node=st.sampled_from(NODES))
    def die(self, node: str) -> None:
        self.alive.pop(node, None)

    @precondition(lambda self: self.losses < 2)
    @rule()
    def express_comes_back_empty(self) -> None:
        """And whoever was not paused has a new connection to it."""
        self.losses += 1
        for node in [*self.express.expires]:
            self.express.expires[node] = self.clock.now
        self.wait(self.express.expire())
        for life in self.alive.values():
            life.connected(self.express)

    @invariant()
    def holds(self) -> None:
        self.lane.check()


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(leases, "time", clock)
    return clock


def explore(server: Server, clock: Clock, kind: type[Lease], examples: int, steps: int) -> None:
    LeaseMachine.server, LeaseMachine.clock, LeaseMachine.lease_kind = server, clock, kind
    run_state_machine_as_test(
        LeaseMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=[Phase.generate] if kind is not Lease else [Phase.generate, Phase.shrink],
            suppress_health_check=[*HealthCheck],
            derandomize=kind is not Lease,
            database=None,
        ),
    )


def test_nobody_who_lives_is_taken_for_dead(server: Server, clock: Clock) -> None:
    explore(server, clock, Lease, examples=10, steps=30)


def test_who_is_taken_for_dead_at_the_last_instant_knows_it(server: Server, clock: Clock) -> None:
    """Its key went with the server's memory in the very instant in which it was renewed."""
    LeaseMachine.server, LeaseMachine.clock, LeaseMachine.lease_kind = server, clock, Lease
    machine = LeaseMachine()
    machine.express_comes_back_empty()
    machine.time_passes(LEASE_S)
    machine.sweep("a")
    assert "b" not in machine.alive
    machine.teardown()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nobody_who_lives_is_taken_for_dead_in_very_many_orders(
    server: Server, clock: Clock
) -> None:
    explore(server, clock, Lease, examples=80, steps=50)


class Hopeful(Lease):
    """Counts from the answer to its renewal, when its key has run for a while."""

    async def _renew(self, out: Connection) -> None:
        await super()._renew(out)
        self._renewed_at = LeaseMachine.clock.now


class Hasty(Lease):
    """Believes a server that came back empty."""

    async def dead_among(self, nodes: Any) -> list[str]:
        self._connected_at = -LEASE_S
        return await super().dead_among(nodes)


class Careless(Lease):
    """Never notices that its own ran out."""

    def _check_lapse(self) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Hopeful, Hasty, Careless])
def test_a_broken_lease_is_noticed(server: Server, clock: Clock, kind: type[Lease]) -> None:
    with pytest.raises(AssertionError):
        explore(server, clock, kind, examples=400, steps=40)
