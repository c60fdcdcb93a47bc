"""Inside: connections that functions make to the AWS endpoint of their own network.

The supervisor hands them over, and says whose they are. One to 127.0.0.1 is served by the AWS
door, which knows the function by its `INSIDE`; one to 127.0.1.N is relayed to the Nth service that
the operator serves elsewhere. Queries for names come by the same link.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Any

import anyio
import anyio.abc
import structlog
from uvicorn.config import Config
from uvicorn.server import ServerState

from trivet.aws.door import INSIDE
from trivet.core.egress import Rule, parse
from trivet.core.endpoints import ServiceEndpoint
from trivet.core.resolvers import Resolver
from trivet.gateway.connection import Connection, Limits
from trivet.gateway.exchange import Application
from trivet.gateway.listener import Connections
from trivet.gateway.names import Forwarder
from trivet.gateway.passages import CONNECTION, GONE, NAMES, PERMIT, PERMITTED, Passage
from trivet.gateway.relays import Relay

log = structlog.get_logger()

# Connections of one environment, of one function's, and of all. An SDK keeps ten unless told
# otherwise. No function with many environments may take the place of all others.
GUESTS_OF_ONE = 128
GUESTS_OF_FUNCTION = 1_024
GUESTS_OF_ALL = 4_096

_AWS = IPv4Address("127.0.0.1")
_RELAYED = IPv4Address("127.0.1.0")


class Inside:
    """Everything that functions say to this gateway from inside."""

    def __init__(
        self,
        door: Application,
        endpoints: Sequence[ServiceEndpoint] = (),
        *,
        opened: Sequence[Rule] = (),
        limits: Limits | None = None,
        resolvers: Callable[[], Sequence[Resolver]] | None = None,
    ) -> None:
        """`opened`: private networks that names may lead to. `resolvers`: or this machine's."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = GUESTS_OF_ALL if soft < 0 else min(GUESTS_OF_ALL, soft // 8)
        self._limits = limits or Limits()
        self._guests = _Guests(door, self._limits)
        self._targets = {_RELAYED + e.number: e for e in endpoints if e.number}
        self._names = Forwarder(opened=opened, permit=self._permit, resolvers=resolvers)
        self._passage: Passage | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._visits: dict[int, set[_Visit]] = {}  # by door
        self._count = 0
        self._counts: Counter[str] = Counter()  # by function

    def __repr__(self) -> str:
        return f"<Inside {self._count} connections, {self._names}>"

    def attach(self, link: socket.socket) -> None:
        """Use a new supervisor; the one before is gone, and its environments with it."""
        if self._passage is not None:
            self._passage.close()
        self._forget_all()
        self._passage = Passage(link, heard=self._heard, lost=self._on_lost)

    async def run(self, stop: anyio.Event) -> None:
        """Serve until `stop` is set; then answer what is in flight, and return."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                while not stop.is_set():
                    self._guests.sweep()
                    with anyio.move_on_after(self._guests.sweep_s):
                        await stop.wait()
                self._leave()
                with anyio.move_on_after(self._limits.drain_ms / 1000):
                    await self._guests.drained()
                tasks.cancel_scope.cancel()
        finally:
            self._tasks = None
            self._leave()
            with anyio.CancelScope(shield=True):
                await self._guests.cut()

    def _leave(self) -> None:
        if self._passage is not None:
            self._passage.close()
            self._passage = None
        self._names.close()

    # ------------------------------------------------------------------ what the supervisor says

    def _heard(self, message: list[Any], fd: int) -> None:
        match message:
            case [kind, door, str(function)] if kind == CONNECTION and fd >= 0:
                self._take(door, function, socket.socket(fileno=fd))
                return
            case [kind, door, str(egress)] if kind == NAMES and fd >= 0:
                self._names.serve(door, fd, parse(egress))
                return
            case [kind, door] if kind == GONE:
                self._forget(door)
            case [kind, door, ticket] if kind == PERMITTED:
                self._names.permitted(door, ticket)
        if fd >= 0:
            os.close(fd)

    def _permit(self, door: int, ticket: int, address: str, ttl_s: int) -> None:
        if self._passage is not None:
            self._passage.send(PERMIT, door, ticket, address, ttl_s)

    def _on_lost(self, passage: Passage) -> None:
        if self._passage is passage:
            self._passage = None
            self._forget_all()

    def _forget(self, door: int) -> None:
        self._names.forget(door)
        for visit in list(self._visits.get(door, ())):
            visit.cut()

    def _forget_all(self) -> None:
        self._names.close()
        for door in list(self._visits):
            self._forget(door)

    # ------------------------------------------------------------------ connections

    def _take(self, door: int, function: str, connection: socket.socket) -> None:
        visits = self._visits.setdefault(door, set())
        address = _local_address(connection)
        target = self._targets.get(address)
        is_crowded = (
            len(visits) >= GUESTS_OF_ONE
            or self._counts[function] >= GUESTS_OF_FUNCTION
            or self._count >= self._most
        )
        is_known = address == _AWS or target is not None
        if self._tasks is None or is_crowded or not is_known:
            connection.close()
            if not visits:
                del self._visits[door]
            return
        connection.setblocking(False)
        visit = _Visit(self._left, door, function)
        visits.add(visit)
        self._count += 1
        self._counts[function] += 1
        if target is None:
            guest = self._guests.welcome(function, visit)
            self._tasks.start_soon(_join, guest, connection, visit)
        else:
            self._tasks.start_soon(_relay, target, connection, visit)

    def _left(self, visit: _Visit) -> None:
        visits = self._visits.get(visit.door, set())
        if visit in visits:
            visits.remove(visit)
            self._count -= 1
            self._counts[visit.function] -= 1
            if not self._counts[visit.function]:
                del self._counts[visit.function]
            if not visits:
                del self._visits[visit.door]


class _Visit:
    """One connection that is open, however it is served."""

    def __init__(self, left: Callable[[_Visit], None], door: int, function: str) -> None:
        self.door = door
        self.function = function
        self.is_cut = False
        self._left = left
        self._how: Callable[[], None] | None = None

    def cut_by(self, how: Callable[[], None]) -> None:
        """`how` ends it; at once, if that was asked for before anybody knew how."""
        self._how = how
        if self.is_cut:
            how()

    def cut(self) -> None:
        """The environment has ended."""
        self.is_cut = True
        if self._how is not None:
            self._how()

    def end(self) -> None:
        self._left(self)


class _Guest(Connection):
    """A function's connection, served as any other, but known by whose it is."""

    def __init__(
        self, config: Config, state: ServerState, limits: Limits, function: str, visit: _Visit
    ) -> None:
        super().__init__(config, state, limits)
        self.app_state = {INSIDE: function}
        self._visit = visit

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._visit.end()


class _Guests(Connections):
    def welcome(self, function: str, visit: _Visit) -> _Guest:
        return _Guest(self._config, self._state, self._limits, function, visit)


async def _join(guest: _Guest, connection: socket.socket, visit: _Visit) -> None:
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.connect_accepted_socket(lambda: guest, sock=connection)
    except OSError:
        connection.close()
        visit.end()
        return
    visit.cut_by(transport.abort)


async def _relay(target: ServiceEndpoint, connection: socket.socket, visit: _Visit) -> None:
    with anyio.CancelScope() as scope:
        visit.cut_by(scope.cancel)
        try:
            await Relay().run(connection, target)
        except OSError as error:
            log.info("relay.broken", service=target.name, error=str(error))
        finally:
            visit.end()


def _local_address(connection: socket.socket) -> IPv4Address:
    try:
        return IPv4Address(connection.getsockname()[0])
    except (OSError, ValueError, IndexError):
        return IPv4Address(0)
