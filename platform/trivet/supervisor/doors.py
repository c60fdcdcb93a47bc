"""Doors: what environments say to the AWS endpoint and to their resolver reaches the gateway.

Both are sockets inside an environment's own network. The supervisor accepts what comes there and
hands the connection over, with the name of the function: it reads none of its bytes. While there
is no gateway, or it does not keep up, connections wait in the kernel's queue of their listener.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from trivet.core.egress import Egress, Kind
from trivet.gateway.passages import CONNECTION, GONE, NAMES, PERMIT, PERMITTED, Passage

log = structlog.get_logger()

# Taken from one door before the others have their turn.
ACCEPTS_IN_A_TURN = 8
# An environment that connects faster than this waits: each connection costs everybody's supervisor
# and gateway a little, and SDKs keep theirs open.
CONNECTIONS_PER_S = 200.0
BURST = 100.0
ERROR_REST_S = 0.1


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose door it is."""

    function: str
    version: str
    role_arn: str
    network_number: int  # as the provisioner counts networks
    egress: Egress


class Doors:
    """The doors of all environments, and the link with the gateway behind them."""

    def __init__(self) -> None:
        # Told network number, address and seconds, when DNS gave an address of an allowed name.
        self.on_permit: Callable[[int, str, int], None] = lambda number, address, ttl_s: None
        # Whether `permitted` will be called for each of those, once it holds. If not, a function
        # may hear of an address a moment before it can reach it.
        self.confirms_permits = False
        self._passage: Passage | None = None
        self._doors: dict[int, Door] = {}
        self._ids = itertools.count(1)
        # Who waits for an address to be permitted: door and ticket, by network and address.
        self._waiting: dict[tuple[int, str], list[tuple[int, int]]] = {}

    def __repr__(self) -> str:
        return f"<Doors {len(self._doors)} open, {self._passage or 'no gateway'}>"

    @property
    def passage(self) -> Passage | None:
        """The link, if there is a gateway that keeps up."""
        return None if self._passage is None or self._passage.is_stuck else self._passage

    def attach(self, link: socket.socket) -> None:
        """Use a new gateway; the one before is gone."""
        if self._passage is not None:
            self._passage.close()
        self._waiting.clear()
        self._passage = Passage(link, heard=self._heard, lost=self._on_lost, drained=self._resume)
        for door in self._doors.values():
            door.forget()
        self._resume()

    def open(self, caller: Caller, *, aws: int, names: int) -> Door:
        """Watch the door of an environment that starts. Owns both descriptors; -1: there is none.

        `aws` is a TCP listener, `names` a UDP socket, both bound in the environment's network.
        """
        door = Door(self, next(self._ids), caller, aws, names)
        self._doors[door.number] = door
        door.watch()
        return door

    def permitted(self, network_number: int, address: str) -> None:
        """`address` can be reached from that network now."""
        for number, ticket in self._waiting.pop((network_number, address), ()):
            if self._passage is not None and number in self._doors:
                self._passage.send(PERMITTED, number, ticket)

    def close(self) -> None:
        """Close every door and leave the gateway."""
        for door in list(self._doors.values()):
            door.close()
        if self._passage is not None:
            self._passage.close()
            self._passage = None

    def closed(self, door: Door) -> None:
        """Told by a door that closes itself."""
        if self._doors.pop(door.number, None) is None:
            return
        for key, waiting in list(self._waiting.items()):
            self._waiting[key] = [each for each in waiting if each[0] != door.number]
            if not self._waiting[key]:
                del self._waiting[key]
        if door.is_known and self._passage is not None:
            self._passage.send(GONE, door.number)

    def _resume(self) -> None:
        for door in self._doors.values():
            door.watch()

    def _on_lost(self, passage: Passage) -> None:
        if self._passage is passage:
            log.warning("gateway.lost", doors=len(self._doors))
            self._passage = None

    def _heard(self, message: list[object], fd: int) -> None:
        if fd >= 0:
            os.close(fd)
        match message:
            case [int(kind), int(number), int(ticket), str(address), int(ttl_s)] if kind == PERMIT:
                door = self._doors.get(number)
                if door is None:
                    return  # it ended; its network may be another's by now
                network = door.caller.network_number
                self._waiting.setdefault((network, address), []).append((number, ticket))
                self.on_permit(network, address, ttl_s)
                if not self.confirms_permits:
                    self.permitted(network, address)


class Door:
    """One environment's way to the gateway."""

    def __init__(self, doors: Doors, number: int, caller: Caller, aws: int, names: int) -> None:
        self.number = number
        self.caller = caller
        self.is_known = False  # to the gateway that is there now
        self._doors = doors
        self._loop = asyncio.get_running_loop()
        self._listener = socket.socket(fileno=aws) if aws >= 0 else None
        self._names = names
        self._is_resolver_handed = False
        self._allowance = BURST
        self._allowed_at = self._loop.time()
        self._pause: asyncio.TimerHandle | None = None
        if self._listener is not None:
            self._listener.setblocking(False)
        if not self._may_ask():
            self._close_names()  # a query is then refused at once, by the kernel inside

    def __repr__(self) -> str:
        return f"<Door {self.number} of {self.caller.function}>"

    def forget(self) -> None:
        """The gateway is another one, which knows nothing."""
        self.is_known = self._is_resolver_handed = False

    def watch(self) -> None:
        """Wait for somebody to come; again after the gateway was away."""
        if self._listener is not None and self._pause is None:
            self._loop.add_reader(self._listener.fileno(), self._accept)
        if self._names >= 0 and not self._is_resolver_handed:
            self._loop.add_reader(self._names, self._hand_resolver)

    def close(self) -> None:
        """The environment has ended. May be called again."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        self._close_names()
        self._doors.closed(self)

    def _may_ask(self) -> bool:
        egress = self.caller.egress
        return egress.kind is Kind.INTERNET or bool(egress.names)

    def _close_names(self) -> None:
        if self._names >= 0:
            self._loop.remove_reader(self._names)
            os.close(self._names)
            self._names = -1

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(ACCEPTS_IN_A_TURN):
            passage = self._doors.passage
            if passage is None:
                self._loop.remove_reader(self._listener.fileno())
                return
            wait_s = self._wait_s()
            if wait_s:
                self._rest(wait_s)
                return
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                self._rest(ERROR_REST_S)  # no descriptor is left just now, say
                return
            self._allowance -= 1.0
            self.is_known = True
            passage.send(CONNECTION, self.number, self.caller.function, fd=connection.detach())

    def _wait_s(self) -> float:
        """How long until this door may take one more."""
        now = self._loop.time()
        earned = (now - self._allowed_at) * CONNECTIONS_PER_S
        self._allowance = min(BURST, self._allowance + earned)
        self._allowed_at = now
        if self._allowance >= 1.0:
            return 0.0
        return ACCEPTS_IN_A_TURN / CONNECTIONS_PER_S  # several at once again, not one by one

    def _rest(self, wait_s: float) -> None:
        assert self._listener is not None
        self._loop.remove_reader(self._listener.fileno())
        self._pause = self._loop.call_later(wait_s, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self.watch()

    def _hand_resolver(self) -> None:
        self._loop.remove_reader(self._names)
        passage = self._doors.passage
        if passage is None:
            return
        with suppress(OSError):
            passage.send(NAMES, self.number, str(self.caller.egress), fd=os.dup(self._names))
            self._is_resolver_handed = self.is_known = True
