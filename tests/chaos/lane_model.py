"""A model of the durable lane beside the real scripts on a real server, for state machines.

Each act sends the command that the platform sends, checks its answer against the model, and moves
the model on. Scripts may be given as altered texts, to see that a machine would notice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any, cast

import hiredis
from tests.chaos.books import Books, read_books
from tests.chaos.servers import Server

from trivet.bus import frames, keys
from trivet.bus.dequeue import DurableIntake
from trivet.bus.frames import Delivery
from trivet.bus.resp import Address, Connection, OnReply
from trivet.bus.scripts import script
from trivet.core.arns import Place
from trivet.core.billing import Reading
from trivet.core.invocations import Event
from trivet.core.retries import Again, Attempt, AttemptStatus, Over, Progress, Verdict

FUNCTION = "f"
METERED = "g"
ENDED_MS = 1_795_000_000_000
BILLED_MS, MEMORY_MB = 3, 128
BUS = "default"
SCRIPTS = ("enqueue", "commit", "meter", "wake", "delivered", "tell_bus")

Sources = Mapping[str, str]


def sources() -> dict[str, str]:
    """The texts of the lane's scripts, by name."""
    folder = files("trivet.bus") / "lua"
    return {name: (folder / f"{name}.lua").read_text() for name in SCRIPTS}


@dataclass(slots=True)
class Model:
    """What the server should hold."""

    on_stream: dict[str, Progress] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)  # entry id to consumer
    deliveries: Counter[str] = field(default_factory=Counter)  # by entry id
    parked: dict[str, tuple[int, Progress]] = field(default_factory=dict)  # origin: due, ...
    ends: dict[str, tuple[str, Progress]] = field(default_factory=dict)  # origin: state, ...
    outbox: dict[str, str] = field(default_factory=dict)  # origin to entry id
    told: set[str] = field(default_factory=set)  # origins that the bus knows
    keys_seen: set[str] = field(default_factory=set)
    metered: int = 0  # calls of the express lane


class Wire:
    """In the place of a connection: sends at once, and waits for the replies."""

    is_open = True

    def __init__(self, redis: Any, altered: Mapping[bytes, bytes]) -> None:
        """`altered`: for the digest of a script, that of the text to run instead."""
        self._redis = redis
        self._altered = altered
        self._last: list[bytes] = []
        self.answers: list[Any] = []

    def __repr__(self) -> str:
        return f"<Wire {len(self.answers)} answers>"

    def send_several(self, commands: bytes, on_replies: list[OnReply]) -> None:
        reader = hiredis.Reader()
        reader.feed(commands)
        for on_reply in on_replies:
            self._last = [self._altered.get(part, part) for part in reader.gets()]
            self.answers.append(self._redis.execute_command(*self._last))
            on_reply(self.answers[-1])

    def again(self) -> Any:
        """The answer when the last command is sent another time."""
        return self._redis.execute_command(*self._last)


class Lane:
    """One function on a server."""

    def __init__(self, server: Server, scripts: Sources) -> None:
        self.server = server
        self._scripts = scripts
        self.redis: Any = server.client()
        self.redis.flushall()
        self.model = Model()
        self.request_ids: dict[str, str] = {}  # by origin
        self._shas: dict[str, str] = {}
        self._load()
        self.redis.xgroup_create(keys.durable_stream(FUNCTION), keys.GROUP, "0", mkstream=True)

    def _load(self) -> None:
        self._shas = {name: self.redis.script_load(text) for name, text in self._scripts.items()}
        originals = {name: script(name).sha for name in self._scripts}
        self._wire = Wire(self.redis, {originals[n]: sha.encode() for n, sha in self._shas.items()})

    def restart(self) -> None:
        """Kill the server, and start it on what it wrote down."""
        self.server.kill()
        self.server.start()
        self._load()

    @property
    def has_unread(self) -> bool:
        return len(self.model.on_stream) > len(self.model.owners)

    # ------------------------------------------------------------------ acts

    def publish(self, number: int, once: str = "") -> None:
        request_id = f"r{number}"
        event = Event(id=request_id, function=FUNCTION, source="test", payload=b"{}")
        packed = frames.pack_event(
            event, call=0, reply_to="", version_key="", invoked_arn="", expires_ms=0
        )
        names = (
            keys.durable_stream(FUNCTION),
            keys.totals(FUNCTION),
            keys.accepted_once(FUNCTION, once),
        )
        limits = (1000 if once else 0, 1000)
        answer = self.redis.evalsha(self._shas["enqueue"], 3, *names, packed, *limits)
        assert answer == (0 if once and once in self.model.keys_seen else 1)
        if answer:
            self.model.keys_seen.add(once)
            ((entry_id, _),) = self.redis.xrevrange(keys.durable_stream(FUNCTION), count=1)
            origin = entry_id.decode()
            self.request_ids[origin] = request_id
            self.model.on_stream[origin] = Progress(origin)

    def take(self, consumer: str, most: int = 1) -> list[Delivery]:
        """Read as a supervisor reads: what nobody has read yet, in order."""
        stream = keys.durable_stream(FUNCTION)
        found = self.redis.xreadgroup(keys.GROUP, consumer, {stream: ">"}, count=most)
        entries = found[0][1] if found else []
        unread = [i for i in self.model.on_stream if i not in self.model.owners]
        assert [entry_id.decode() for entry_id, _ in entries] == unread[:most]
        return [self._given(consumer, *entry) for entry in entries]

    def _given(
        self, consumer: str, entry_id: bytes, fields: dict[bytes, bytes], *, aborted: int = 0
    ) -> Delivery:
        self.model.owners[entry_id.decode()] = consumer
        self.model.deliveries[entry_id.decode()] += 1
        flat = [part for pair in fields.items() for part in pair]
        delivery = frames.unpack_durable(FUNCTION, entry_id, flat)
        progress = delivery.progress
        assert progress == self.model.on_stream[entry_id.decode()]
        assert progress is not None  # it is in the model
        assert delivery.request_id == self.request_ids[progress.origin]
        delivery.progress = replace(progress, aborted=progress.aborted + aborted)
        return delivery

    def claim(self, dead: str, consumer: str) -> list[Delivery]:
        """Take over what `dead` had, as its successor does."""
        stream = keys.durable_stream(FUNCTION)
        pending = self.redis.xpending_range(stream, keys.GROUP, "-", "+", 1000, dead)
        counts = {each["message_id"].decode(): each["times_delivered"] for each in pending}
        mine = {i: self.model.deliveries[i] for i, who in self.model.owners.items() if who == dead}
        assert counts == mine
        claimed = self.redis.xclaim(stream, keys.GROUP, consumer, 0, [*counts]) if counts else []
        assert len(claimed) == len(counts)
        return [self._given(consumer, *each, aborted=counts[each[0].decode()]) for each in claimed]

    def end(
        self, consumer: str, delivery: Delivery, status: AttemptStatus, verdict: Verdict
    ) -> int:
        """Commit an attempt, with the command of a supervisor. Returns what the script said."""
        attempt = Attempt(ENDED_MS, status, "", "$LATEST", BILLED_MS, MEMORY_MB)
        assert delivery.progress is not None  # it came on this lane
        progress = delivery.progress.with_attempt(attempt)
        reading = Reading(
            request_id=delivery.request_id,
            function=FUNCTION,
            version="$LATEST",
            ended_ms=ENDED_MS,
            memory_mb=MEMORY_MB,
            billed_ms=BILLED_MS,
            init_ms=None,
            start="warm",
            status="",
        )
        told = b"{}" if isinstance(verdict, Over) and verdict.target else b""
        entry_id = delivery.entry_id.decode()
        self._intake(consumer).commit(delivery, progress, verdict, [reading], told)
        answer: int = self._wire.answers[-1]
        owner = self.model.owners.get(entry_id)
        assert answer == (0 if owner is None else 1 if owner == consumer else -1)
        if answer == 1:
            self._move(entry_id, progress, verdict)
        return answer

    def _intake(self, consumer: str) -> DurableIntake:
        """Packs what it sends as in earnest; only its connection is another."""
        node, _, epoch = consumer.partition(":")
        intake = DurableIntake(
            Address(socket=self.server.socket),
            node=node,
            epoch=epoch,
            place=Place("us-east-1", "123456789012"),
            taker=cast(Any, None),  # it takes nothing
            set_flag=cast(Any, None),  # and leaves nothing
        )
        intake._commits.connected(cast(Connection, self._wire))
        return intake

    def meter(self, consumer: str) -> None:
        """Meter an express call, sent twice as after a lost answer."""
        reading = Reading(
            request_id="express",
            function=METERED,
            version="$LATEST",
            ended_ms=ENDED_MS,
            memory_mb=MEMORY_MB,
            billed_ms=BILLED_MS,
            init_ms=None,
            start="warm",
            status="",
        )
        self._intake(consumer).meter([reading])
        assert self._wire.answers[-1] == 1
        assert self._wire.again() == 0
        self.model.metered += 1

    def _move(self, entry_id: str, progress: Progress, verdict: Verdict) -> None:
        model, origin = self.model, progress.origin
        del model.on_stream[entry_id], model.owners[entry_id], model.deliveries[entry_id]
        if isinstance(verdict, Again):
            model.parked[origin] = (verdict.due_ms, progress)
            return
        model.ends[origin] = (verdict.state, progress)
        if verdict.target:
            newest = self.redis.xrevrange(keys.outbox(FUNCTION), count=1)
            assert newest, "what is to be told was not written down"
            model.outbox[origin] = newest[0][0].decode()

    def wake(self, now_ms: int, most: int = 2) -> None:
        """Put back what is due."""
        names = (keys.delayed(FUNCTION), keys.parked(FUNCTION), keys.durable_stream(FUNCTION))
        count, _ = self.redis.evalsha(self._shas["wake"], 3, *names, now_ms, most)
        parked = self.model.parked
        due = sorted((when, origin) for origin, (when, _) in parked.items() if when <= now_ms)
        assert count == len(due[:most])
        entries = self.redis.xrevrange(keys.durable_stream(FUNCTION), count=max(1, count))
        back = [entry_id.decode() for entry_id, _ in reversed(entries)][:count]
        for (_, origin), entry_id in zip(due, back, strict=False):
            self.model.on_stream[entry_id] = parked.pop(origin)[1]

    def tell(self, origin: str) -> None:
        """Tell the bus of an end; whether the outbox hears of that is another act."""
        names = (keys.bus_entries(BUS), keys.bus_once(BUS, f"told:{FUNCTION}:{origin}"))
        answer = self.redis.evalsha(self._shas["tell_bus"], 2, *names, b"{}", 1000, 1000)
        assert answer == (0 if origin in self.model.told else 1)
        self.model.told.add(origin)

    def deliver(self, origin: str) -> None:
        """Take what was told off the outbox, twice, as after a lost answer."""
        entry_id = self.model.outbox.pop(origin)
        for expected in (1, 0):
            names = (keys.outbox(FUNCTION), keys.totals(FUNCTION))
            args = (entry_id, "delivered")
            assert self.redis.evalsha(self._shas["delivered"], 2, *names, *args) == expected

    # ------------------------------------------------------------------ what must hold

    def check(self) -> None:
        """The books are right at every moment, and say what the model says."""
        books: Books = read_books(self.redis, FUNCTION)
        assert [*books.errors()] == []
        model = self.model
        assert books.on_stream == model.on_stream
        assert books.pending == model.owners
        assert books.parked == {origin: progress for origin, (_, progress) in model.parked.items()}
        assert books.delayed == {origin: due for origin, (due, _) in model.parked.items()}
        ended = {entry.progress.origin: (entry.state, entry.progress) for entry in books.ledger}
        assert ended == model.ends
        assert books.outbox == len(model.outbox)
        assert self.redis.xlen(keys.bus_entries(BUS)) == len(model.told)
        metered = read_books(self.redis, METERED)
        assert metered.readings.total() == metered.billed["requests"] == model.metered
        ids = {entry.progress.origin: entry.request_id for entry in books.ledger}
        assert ids == {origin: self.request_ids[origin] for origin in ids}
