"""Names: the resolver that functions see, which asks the host's.

Its socket is bound inside an environment's own network. A function is told only of names that it
may reach, and of no private address: a name of the world that leads to one is a trick. Where a
function has a list of names, the addresses they have are permitted before it hears of them.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from trivet.core.dns import (
    NO_SUCH_NAME,
    REFUSED,
    SERVER_FAILED,
    Answer,
    Malformed,
    Question,
    is_private,
    read_answer,
    read_question,
)
from trivet.core.egress import Egress, Kind, Rule
from trivet.core.resolvers import PORT, Resolver, resolvers_in

DEADLINE_S = 2.0
# Until the next resolver is asked, or the only one again: a packet may get lost.
ASK_AGAIN_S = 0.7
# An address that is not confirmed by then is told of all the same.
PERMIT_WITHIN_S = 0.5

QUERIES_OF_ONE = 64  # in flight, of one environment
QUERIES_OF_ALL = 2_048
QUERIES_WHEN_CROWDED = 4  # so many environments of one function cannot hold them all
QUERIES_IN_A_TURN = 16
QUERIES_PER_S = 500.0  # read of one environment, and as many at once; the others wait
REST_S = 0.05

# How long a function may use an address it was told: caches of clients outlive a short TTL.
LEAST_PERMIT_S = 60
MOST_PERMIT_S = 3_600
MOST_PERMITS = 16  # of one answer
# A permit lasts for so many times as long as it is needed, and is not asked for again before.
LASTS = 2
# New permits of one environment, and as many at once: each takes the provisioner milliseconds, in
# which nobody else's network is made.
PERMITS_PER_S = 5.0
PERMITS_AT_ONCE = 128.0
MOST_KNOWN = 1_024  # permits of one environment that are remembered

_RESOLVERS = Path("/etc/resolv.conf")
_LARGEST = 65_535

Permit = Callable[[int, int, str, int], None]
"""Takes door, ticket, address and seconds; `Forwarder.permitted` is told the ticket once done."""


class HostResolvers:
    """The resolvers of this machine, as they are now."""

    def __init__(self, path: Path = _RESOLVERS) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None  # what changes when the file does
        self._found: Sequence[Resolver] = ()

    def __call__(self) -> Sequence[Resolver]:
        with suppress(OSError):
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen != self._seen:
                self._found = resolvers_in(self._path.read_text(errors="replace"))
                self._seen = seen
        return self._found or (("127.0.0.1", PORT),)


class Forwarder:
    """Answers the queries of all environments. `opened`: private networks that may be named."""

    def __init__(
        self,
        *,
        opened: Sequence[Rule] = (),
        permit: Permit,
        resolvers: Callable[[], Sequence[Resolver]] | None = None,
    ) -> None:
        self.opened = tuple(opened)
        self.permit = permit
        self.resolvers = resolvers or HostResolvers()
        self.in_flight = 0
        self._desks: dict[int, _Desk] = {}

    def __repr__(self) -> str:
        return f"<Forwarder {len(self._desks)} environments, {self.in_flight} queries>"

    @property
    def share(self) -> int:
        """How many queries one environment may have in flight. Few once there are many."""
        if self.in_flight >= QUERIES_OF_ALL:
            return 0
        return QUERIES_OF_ONE if self.in_flight < QUERIES_OF_ALL // 2 else QUERIES_WHEN_CROWDED

    def serve(self, door: int, fd: int, egress: Egress) -> None:
        """Answer what comes to the UDP socket `fd`, which is owned from now on."""
        self.forget(door)
        self._desks[door] = _Desk(self, door, fd, egress)

    def permitted(self, door: int, ticket: int) -> None:
        desk = self._desks.get(door)
        if desk is not None:
            desk.permitted(ticket)

    def forget(self, door: int) -> None:
        """The environment has ended."""
        desk = self._desks.pop(door, None)
        if desk is not None:
            desk.close()

    def close(self) -> None:
        for door in list(self._desks):
            self.forget(door)


class _Allowance:
    """So many in each second, and so many at once."""

    def __init__(self, per_s: float, at_once: float) -> None:
        self._per_s = per_s
        self._most = self._left = at_once
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()

    def take(self, count: int = 1) -> bool:
        now = self._loop.time()
        self._left = min(self._most, self._left + (now - self._since) * self._per_s)
        self._since = now
        if self._left < count:
            return False
        self._left -= count
        return True


@dataclass(frozen=True, slots=True)
class _Ticket:
    """An address that is to be permitted before an answer is told."""

    query: _Query
    address: str
    until: float  # loop time


class _Desk:
    """The queries of one environment."""

    def __init__(self, forwarder: Forwarder, door: int, fd: int, egress: Egress) -> None:
        self.forwarder = forwarder
        self.door = door
        self._egress = egress
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._queries: set[_Query] = set()
        self._tickets: dict[int, _Ticket] = {}
        self._next_ticket = 1
        self._permitted: dict[str, float] = {}  # address: until when, as loop time
        self._may_ask = _Allowance(QUERIES_PER_S, QUERIES_PER_S)
        self._may_permit = _Allowance(PERMITS_PER_S, PERMITS_AT_ONCE)
        self._pause: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for query in list(self._queries):
            query.end()

    def permitted(self, ticket: int) -> None:
        found = self._tickets.pop(ticket, None)
        if found is not None:
            self._remember(found.address, found.until)
            found.query.permitted(ticket)

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def _readable(self) -> None:
        for _ in range(QUERIES_IN_A_TURN):
            if not self._may_ask.take():
                # The kernel keeps a few and drops the rest: refusing them would cost as much.
                self._loop.remove_reader(self._socket.fileno())
                self._pause = self._loop.call_later(REST_S, self._listen)
                return
            try:
                message, client = self._socket.recvfrom(_LARGEST)
            except OSError:
                return
            with suppress(Malformed):  # what is no question gets no answer
                self._asked(read_question(message), client)

    def _asked(self, question: Question, client: Any) -> None:
        if not question.is_answerable:
            self.reply(question.answered_with(REFUSED), client)
        elif not self._egress.allows_name(question.name):
            self.reply(question.answered_with(NO_SUCH_NAME), client)
        elif len(self._queries) >= self.forwarder.share:
            self.reply(question.answered_with(SERVER_FAILED), client)
        else:
            query = _Query(self, question, client)
            self._queries.add(query)
            self.forwarder.in_flight += 1
            query.ask()

    def answered(self, query: _Query, answer: Answer) -> None:
        """A resolver has answered: see to what the answer may lead, and pass it on."""
        if any(is_private(each, self.forwarder.opened) for each, _ in answer.addresses):
            query.finish(query.question.answered_with(NO_SUCH_NAME))
            return
        missing = self._missing(answer) if self._egress.kind is Kind.LISTED else {}
        if missing and not self._may_permit.take(len(missing)):
            query.finish(query.question.answered_with(SERVER_FAILED))
            return
        query.answer = answer.given_to(query.question)
        permits: list[tuple[int, str, int]] = []
        for address, seconds in missing.items():
            ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
            self._tickets[ticket] = _Ticket(query, address, self._loop.time() + seconds)
            query.tickets.add(ticket)
            permits.append((ticket, address, seconds))
        for permit in permits:
            self.forwarder.permit(self.door, *permit)
        query.wait_for_permits()

    def _missing(self, answer: Answer) -> dict[str, int]:
        """Addresses that are not permitted for as long as they may be used: for how long to."""
        # Environments have no IPv6 of their own, so nothing is there to permit.
        reachable = [pair for pair in answer.addresses if isinstance(pair[0], IPv4Address)]
        now = self._loop.time()
        missing: dict[str, int] = {}
        for address, ttl_s in reachable[:MOST_PERMITS]:
            good_s = min(max(ttl_s, LEAST_PERMIT_S), MOST_PERMIT_S)
            if self._permitted.get(str(address), 0.0) < now + good_s:
                missing[str(address)] = LASTS * good_s
        return missing

    def _remember(self, address: str, until: float) -> None:
        if len(self._permitted) >= MOST_KNOWN:
            now = self._loop.time()
            self._permitted = {a: end for a, end in self._permitted.items() if end > now}
        if len(self._permitted) < MOST_KNOWN or address in self._permitted:
            self._permitted[address] = until

    def reply(self, message: bytes, client: Any) -> None:
        with suppress(OSError):  # it asked and left, or does not read: its own loss
            self._socket.sendto(message, client)

    def over(self, query: _Query) -> None:
        self._queries.discard(query)
        self.forwarder.in_flight -= 1
        for ticket in query.tickets:
            self._tickets.pop(ticket, None)


class _Query:
    """One question on its way to the host's resolvers and back."""

    def __init__(self, desk: _Desk, question: Question, client: Any) -> None:
        self.question = question
        self.answer = b""
        self.tickets: set[int] = set()  # addresses of the answer that are not permitted yet
        self._desk = desk
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + DEADLINE_S
        self._resolvers = list(desk.forwarder.resolvers())
        self._asked: list[tuple[socket.socket, int]] = []  # with the id it was asked by
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False

    def ask(self) -> None:
        """Ask the next resolver; each one from a port of its own, which a forger must guess."""
        left_s = self._due - self._loop.time()
        if left_s <= 0.01:
            self.finish(self.question.answered_with(SERVER_FAILED))
            return
        host, port = self._resolvers[len(self._asked) % len(self._resolvers)]
        id = secrets.randbits(16)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            asked = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError:
            self.finish(self.question.answered_with(SERVER_FAILED))
            return
        self._asked.append((asked, id))
        with suppress(OSError):  # as good as no answer
            asked.connect((host, port))
            asked.send(self.question.asked_anew(id))
            self._loop.add_reader(asked.fileno(), self._readable, asked, id)
        self._timer = self._loop.call_later(min(ASK_AGAIN_S, left_s), self.ask)

    def _readable(self, asked: socket.socket, id: int) -> None:
        try:
            answer = read_answer(asked.recv(_LARGEST))
        except Malformed:
            return
        except OSError:
            self._loop.remove_reader(asked.fileno())  # nobody is there: ask another one
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(ASK_AGAIN_S / 10, self.ask)
            return
        if answer.answers(self.question, id):
            self._stop_asking()
            self._desk.answered(self, answer)

    def wait_for_permits(self) -> None:
        if not self.tickets:
            self.finish(self.answer)
        elif not self._is_over:
            self._timer = self._loop.call_later(PERMIT_WITHIN_S, self.finish, self.answer)

    def permitted(self, ticket: int) -> None:
        self.tickets.discard(ticket)
        if not self.tickets and self.answer:
            self.finish(self.answer)

    def finish(self, message: bytes) -> None:
        if not self._is_over:
            self._desk.reply(message, self._client)
            self.end()

    def end(self) -> None:
        """Let go of everything, answered or not."""
        if self._is_over:
            return
        self._is_over = True
        self._stop_asking()
        self._desk.over(self)

    def _stop_asking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for asked, _ in self._asked:
            self._loop.remove_reader(asked.fileno())
            asked.close()
        self._asked.clear()
