"""A zygote that is told anything at all: it answers what is well-formed, and keeps nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.workers import driver
from tests.workers.conftest import needs_root
from tests.workers.driver import FIRST_UID, Zygote

from trivet_worker import wire
from trivet_worker.wire import ADOPT, COMMAND, FILL, KILL, SPAWN, WITH_CODE, WITH_LAYERS

pytestmark = needs_root  # for uids to adopt by, and to be refused

# Says at its end how many commands it ignored.
_COUNTING = """
import sys; sys.path.insert(0, {root!r})
from trivet_worker import zygote
class Counting(zygote.Zygote):
    def _end(self):
        print("malformed:", self.malformed, file=sys.stderr, flush=True)
        super()._end()
zygote.Zygote = Counting
zygote.main(sys.argv[1:])
"""

VICTIM_UID = FIRST_UID + 5_000
_DESCRIPTORS = ("null", "socket", "pipe", "folder", "process", "victim")
_ONE_EACH = (wire.WITH_CODE, wire.WITH_LAYERS, wire.WITH_NETWORK, wire.WITH_SCRATCH)


@dataclass(frozen=True)
class Order:
    """A message, with what comes beside it by name."""

    message: bytes
    beside: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        return len(self.message) == COMMAND.size and len(self.beside) <= wire.MOST_DESCRIPTORS

    @property
    def kind(self) -> int:
        return self.message[0] if len(self.message) == COMMAND.size else 0

    def numbered(self, fresh: int, spawned: int) -> Order:
        """With a number of its own; or, what acts on others, sometimes with the last SPAWN's."""
        if not self.kind:
            return self
        kind, chance, first, second = COMMAND.unpack(self.message)
        number = spawned if kind in (KILL, FILL) and chance % 2 else fresh
        return Order(COMMAND.pack(kind, number, first, second), self.beside)


_uids = st.sampled_from([0, 1, -1, 1_000, FIRST_UID, FIRST_UID + 1, VICTIM_UID])
_firsts = st.one_of(
    _uids,
    st.sampled_from([signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM]),
    st.integers(-(2**31), 2**31 - 1),
)
_kinds = st.one_of(st.sampled_from([SPAWN, FILL, KILL, ADOPT]), st.integers(0, 255))
_seconds = st.one_of(st.integers(0, 63), st.integers(0, 2**32 - 1))
_fields = st.tuples(_kinds, st.integers(0, 3), _firsts, _seconds)
_beside = st.lists(st.sampled_from(_DESCRIPTORS), max_size=wire.MOST_DESCRIPTORS).map(tuple)


def _well_formed(draw: st.DrawFn) -> Order:
    """What a supervisor might say, if not what it would beside it."""
    kind = draw(st.sampled_from([SPAWN, SPAWN, FILL, KILL, ADOPT]))
    number, first, second = draw(st.integers(0, 3)), draw(_firsts), draw(_seconds)
    if kind == ADOPT:
        return Order(COMMAND.pack(kind, number, VICTIM_UID, second), ("victim",))
    if kind == KILL:
        return Order(COMMAND.pack(kind, number, draw(st.sampled_from([0, 9, 18, 19])), second), ())
    second = draw(st.sampled_from([WITH_CODE, WITH_CODE | WITH_LAYERS]))
    right = ["socket", "pipe", *["folder"] * 2]
    if kind == SPAWN:
        first = draw(st.sampled_from([FIRST_UID, FIRST_UID + 1, first]))
        second |= draw(st.sampled_from([0, wire.AS_CUSTOM, wire.WITH_NETWORK, wire.WITH_CGROUP]))
    right = right if kind == SPAWN else right[2:]
    count = len(right) - 2 + sum(bool(second & bit) for bit in _ONE_EACH)
    wrong = [draw(st.sampled_from(_DESCRIPTORS)) for _ in range(count)]
    is_right = draw(st.sampled_from([True, True, False]))
    beside = tuple(right[: len(wrong)] + wrong[len(right) :]) if is_right else tuple(wrong)
    return Order(COMMAND.pack(kind, number, first, second), beside)


_orders = st.one_of(
    st.composite(_well_formed)(),
    st.builds(lambda fields, beside: Order(COMMAND.pack(*fields), beside), _fields, _beside),
    st.builds(Order, st.binary(max_size=64), _beside),
    st.builds(Order, st.just(b""), _beside),
)


class Supervisor:
    """Sends orders to a zygote, knows what must come of each, and keeps count."""

    def __init__(self, zygote: Zygote, stack: ExitStack) -> None:
        self.malformed = self.started = 0
        self._zygote = zygote
        self._next = self._spawned = 10
        victim = subprocess.Popen(["sleep", "600"], user=VICTIM_UID, group=0, extra_groups=[])
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        folder = driver.write_code({"index.py": ""})
        stack.callback(driver.remove_code, folder)
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe()
        self.victim = os.pidfd_open(victim.pid)
        self._beside = {
            "null": os.open(os.devnull, os.O_RDWR),
            "socket": theirs.detach(),
            "pipe": writer,
            "folder": os.open(folder, os.O_PATH | os.O_DIRECTORY),
            "process": os.pidfd_open(os.getpid()),
            "victim": self.victim,
        }
        for descriptor in (ours.detach(), reader, *self._beside.values()):
            stack.callback(os.close, descriptor)
        self._descriptors = self.count_descriptors()

    def count_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self._zygote.process.pid}/fd"))

    def give(self, orders: list[Order]) -> None:
        """Send them and see them answered. Nothing is left of them then, but what was adopted."""
        expected: Counter[int] = Counter()
        for order in orders:
            self._next += 1
            numbered = order.numbered(self._next, self._spawned)
            if numbered.kind == SPAWN:
                self._spawned = self._next
            self._judge(numbered, expected)
            beside = [self._beside[name] for name in numbered.beside]
            socket.send_fds(self._zygote.commands, [numbered.message], beside)
        started = self._answers(expected)
        for number in started:
            self._zygote.command(KILL, number)
        while started:
            message = self._zygote.receive()
            assert message.kind == wire.EXITED
            started.remove(message.number)
        driver.until(lambda: not self._zygote.children())
        driver.until(lambda: self.count_descriptors() == self._descriptors)

    def _judge(self, order: Order, expected: Counter[int]) -> None:
        """What the zygote must make of it: one more answer, or one more that it ignores."""
        if not order.is_whole:
            self.malformed += 1
            return
        kind, number, first, second = COMMAND.unpack(order.message)
        given = sum(bool(second & bit) for bit in _ONE_EACH)
        is_node = self._zygote.kind == "node"
        if kind == SPAWN:
            has_code = is_node or second & (WITH_CODE | wire.AS_CUSTOM)
            is_answered = bool(has_code and len(order.beside) == 2 + given)
            expected[number] += is_answered
            self.malformed += not is_answered
        elif kind == FILL:
            has_code = second in (WITH_CODE, WITH_CODE | WITH_LAYERS)
            is_answered = bool(is_node and has_code and len(order.beside) == given)
            expected[number] += is_answered
            self.malformed += not is_answered
        elif kind == KILL:
            self.malformed += first not in (0, 9, 18, 19) or bool(order.beside)
        elif kind == ADOPT and (first, order.beside) == (VICTIM_UID, ("victim",)):
            self._descriptors += 1
        else:
            self.malformed += 1

    def _answers(self, expected: Counter[int]) -> set[int]:
        """Await them, and one to an order that comes last. The numbers of what was started."""
        for number in expected:
            self._zygote.command(KILL, number, signal.SIGCONT)  # it may have been stopped before
        self._next += 1
        null = self._beside["null"]
        self._zygote.command(SPAWN, self._next, -1, (null, null, null), WITH_CODE)
        expected[self._next] += 1
        started: set[int] = set()
        exited: set[int] = set()
        while +expected:
            message = self._zygote.receive()
            for descriptor in message.descriptors:
                os.close(descriptor)
            if message.kind == wire.EXITED:
                exited.add(message.number)
                continue
            assert message.kind in (wire.STARTED, wire.REFUSED, wire.FILLED)
            expected[message.number] -= 1
            assert expected[message.number] >= 0
            if message.kind == wire.STARTED:
                self.started += 1
                started.add(message.number)
        assert exited <= started
        return started - exited


def _fuzzed(kind: str, orders: st.SearchStrategy[list[Order]], most: int) -> str:
    """Whether a zygote lives through them. What it says at its end, beside what was expected."""
    zygote = driver.start_zygote(kind=kind, entry=_COUNTING.format(root=str(driver.WORKERS)))
    with ExitStack() as stack:
        stack.callback(zygote.close)
        supervisor = Supervisor(zygote, stack)

        # Not smaller and smaller: the zygote would not be the same any more.
        @settings(max_examples=most, database=None, phases=[Phase.generate])
        @given(orders)
        def fuzz(sequence: list[Order]) -> None:
            supervisor.give(sequence)

        fuzz()
        assert supervisor.started > 0  # so not all of it was nonsense
        zygote.parent.close()
        assert zygote.process.wait(driver.DEADLINE_S) == 0
        # The end of what it has adopted is its own end's affair.
        assert driver.has_ended(supervisor.victim)
        return f"malformed: {supervisor.malformed}\n"


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        pytest.param("python", 60, id="python"),
        pytest.param("node", 40, id="node", marks=pytest.mark.slow),
    ],
)
def test_any_sequence_of_messages_is_survived(
    kind: str, most: int, capfd: pytest.CaptureFixture[str]
) -> None:
    adopting = Order(COMMAND.pack(ADOPT, 0, VICTIM_UID, 0), ("victim",))
    sequences = st.lists(_orders, max_size=16).map(lambda orders: [adopting, *orders])
    expected = _fuzzed(kind, sequences, most)
    assert capfd.readouterr().err.endswith(expected)
