"""Rooms: the network and the scratch space of an environment, from the provisioner, ahead of need.

The provisioner may die and come back: what it gave lives on, and its successor is told of it. A
supervisor without one gives empty rooms, and a zygote then makes the environment a network with
nothing in it and its /tmp in memory.
"""

from __future__ import annotations

import asyncio
import heapq
import ipaddress
import itertools
import os
import random
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from trivet.core.egress import Egress, Kind
from trivet.provisioner import wire
from trivet.provisioner.wire import Message

log = structlog.get_logger()

# A room takes a hundredth of this on a busy machine, and a provisioner's restart a tenth.
ANSWER_WITHIN_S = 5.0
REFILL_AFTER_S = 0.1

AWS_SCRATCH_MB = 512
_MOST_PERMITS = 1024  # of one network, as the provisioner bounds them

_KINDS = {Kind.NONE: wire.NONE, Kind.INTERNET: wire.INTERNET, Kind.LISTED: wire.LISTED}


@dataclass(frozen=True, slots=True)
class Room:
    """What was taken. The descriptors are the taker's to close; -1: there is none."""

    network: int = -1  # a network namespace
    network_number: int = -1  # for `permit`; -1: a network that reaches nothing
    scratch: int = -1  # a detached mount


@dataclass(slots=True)
class _Network:
    """A network from the moment it is asked for until it is left."""

    egress: Egress
    mark: int
    permits: dict[str, float] = field(default_factory=dict)  # address: when it ends
    is_there: bool = False


@dataclass(slots=True, eq=False)
class _Order:
    """A room that somebody waits for."""

    got: Callable[[Room], None]
    network: tuple[int, int] | None = None  # descriptor and number, once known
    scratch: int | None = None
    timer: asyncio.TimerHandle | None = None

    def deliver(self) -> None:
        """Hand the room over if it is complete."""
        if self.network is not None and self.scratch is not None:
            if self.timer is not None:
                self.timer.cancel()
            self.got(Room(*self.network, self.scratch))


class Rooms:
    """All rooms of one supervisor. Wants a running event loop."""

    def __init__(
        self,
        default: Egress,
        *,
        on_disk: bool = True,
        spares: int = 2,
        is_expected: bool = True,
    ) -> None:
        """`default` is the platform's egress, for which `spares` rooms are kept ready.

        `is_expected`: a provisioner will come, so that who asks before it waits a little.
        """
        self._default = default
        self._on_disk = on_disk
        self._spares = spares
        self._is_worth_waiting = is_expected
        # Told network number and address once a `permit` of them holds, or never will.
        self.on_permitted: Callable[[int, str], None] = lambda number, address: None
        self._link: socket.socket | None = None
        self._is_ready = False
        self._unsent: deque[bytes] = deque()
        self._networks: dict[int, _Network] = {}
        self._free: list[int] = []  # numbers below the highest ever used
        self._numbers = itertools.count()
        # No connection of a network that ever was here may pass for one of a later network.
        self._marks = itertools.count(random.getrandbits(31) + 1)
        self._ready_networks: deque[tuple[int, int]] = deque()  # descriptor and number
        self._ready_scratch: deque[int] = deque()
        # What was asked for: who waits for it, or nobody, which makes it a spare.
        self._asked_networks: dict[int, _Order | None] = {}
        self._asked_scratch: dict[int, tuple[int, _Order | None]] = {}  # also its MB
        self._scratch_numbers = itertools.count(1)
        self._orders: set[_Order] = set()
        self._refilling: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "up" if self._is_ready else "down"
        return f"<Rooms {state}, {len(self._networks)} networks, {len(self._orders)} waiting>"

    @property
    def is_attached(self) -> bool:
        return self._link is not None

    def attach(self, link: socket.socket) -> None:
        """Use a new provisioner, over a SOCK_SEQPACKET socket that is closed here."""
        if self._link is not None:
            self._lose()
        link.setblocking(False)
        self._link = link
        self._is_worth_waiting = True
        asyncio.get_running_loop().add_reader(link.fileno(), self._readable)

    def close(self) -> None:
        """Let go of the provisioner, which ends all networks, and of what was kept ready."""
        self._detach()
        if self._refilling is not None:
            self._refilling.cancel()
        for descriptor, _ in self._ready_networks:
            os.close(descriptor)
        for descriptor in self._ready_scratch:
            os.close(descriptor)
        self._ready_networks.clear()
        self._ready_scratch.clear()
        for order in self._orders:
            if order.timer is not None:
                order.timer.cancel()
        self._orders.clear()

    # ----------------------------------------------------------------------- the taker's

    def take(self, egress: Egress, scratch_mb: int, got: Callable[[Room], None]) -> None:
        """Call `got(room)`: at once if one is ready, else soon, whatever becomes of it."""
        order = _Order(got)
        if egress == self._default and self._ready_networks:
            order.network = self._ready_networks.popleft()
        if not self._on_disk:
            order.scratch = -1
        elif scratch_mb == AWS_SCRATCH_MB and self._ready_scratch:
            order.scratch = self._ready_scratch.popleft()
        if not self.is_attached and not self._is_worth_waiting:
            order.network = order.network or (-1, -1)
            order.scratch = -1 if order.scratch is None else order.scratch
        if order.network is None:
            self._ask_network(egress, order)
        if order.scratch is None:
            self._ask_scratch(scratch_mb, order)
        if order.network is None or order.scratch is None:
            self._orders.add(order)
            loop = asyncio.get_running_loop()
            order.timer = loop.call_later(ANSWER_WITHIN_S, self._give_up, order)
        if self._is_ready and self._refilling is None:
            # Later: to make a network takes the processor that a cold start needs now.
            loop = asyncio.get_running_loop()
            self._refilling = loop.call_later(REFILL_AFTER_S, self._refill)
        order.deliver()

    def permit(self, network_number: int, address: str, ttl_s: int) -> None:
        """Let a listed network reach an address that DNS gave, for so long."""
        network = self._networks.get(network_number)
        destination = ipaddress.ip_address(address)
        if network is None or destination.version != 4:
            self.on_permitted(network_number, address)
            return
        now = asyncio.get_running_loop().time()
        if len(network.permits) >= _MOST_PERMITS:
            network.permits = {a: end for a, end in network.permits.items() if end > now}
        if len(network.permits) < _MOST_PERMITS or address in network.permits:
            network.permits[address] = now + ttl_s
        self._send_permit(network_number, address, ttl_s)

    def leave(self, room: Room) -> None:
        """The environment has ended: nobody is in the room's network any more."""
        if self._networks.pop(room.network_number, None) is not None:
            self._send(Message(wire.RELEASE, room.network_number))
            heapq.heappush(self._free, room.network_number)

    # ------------------------------------------------------------------------ what it asks

    def _ask_network(self, egress: Egress, order: _Order | None) -> None:
        number = heapq.heappop(self._free) if self._free else next(self._numbers)
        self._networks[number] = _Network(egress, next(self._marks) & 0xFFFF_FFFF or 1)
        self._asked_networks[number] = order
        self._send_network(number, wire.NETWORK)

    def _ask_scratch(self, size_mb: int, order: _Order | None) -> None:
        number = next(self._scratch_numbers) & 0xFFFF_FFFF
        self._asked_scratch[number] = size_mb, order
        self._send(Message(wire.SCRATCH, number, size_mb))

    def _refill(self) -> None:
        """Ask for what is missing among the spares."""
        self._refilling = None
        if not self._is_ready:
            return
        asked = sum(order is None for order in self._asked_networks.values())
        for _ in range(self._spares - len(self._ready_networks) - asked):
            self._ask_network(self._default, None)
        if self._on_disk:
            asked = sum(order is None for _, order in self._asked_scratch.values())
            for _ in range(self._spares - len(self._ready_scratch) - asked):
                self._ask_scratch(AWS_SCRATCH_MB, None)

    def _give_up(self, order: _Order) -> None:
        """Nothing came in time: the room is what there is of it."""
        log.error("room.late", within_s=ANSWER_WITHIN_S, attached=self.is_attached)
        self._is_worth_waiting = self.is_attached
        self._orders.discard(order)
        for number, waiting in self._asked_networks.items():
            if waiting is order:
                self._asked_networks[number] = None
        for number, (size_mb, waiting) in self._asked_scratch.items():
            if waiting is order:
                self._asked_scratch[number] = size_mb, None
        order.network = order.network or (-1, -1)
        order.scratch = -1 if order.scratch is None else order.scratch
        order.deliver()

    # ----------------------------------------------------------------------- what it hears

    def _readable(self) -> None:
        while self._link is not None:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._link, wire.SIZE, 2)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self._lose()
                return
            message = Message.unpack(data)
            if message.kind == wire.READY:
                self._greet()
                continue
            if message.kind == wire.PERMITTED:
                self.on_permitted(message.number, str(ipaddress.ip_address(message.address)))
                continue
            descriptor = descriptors[0] if descriptors else -1
            if message.kind == wire.REFUSED:
                what = "scratch" if message.detail == wire.SCRATCH else "network"
                log.error("room.refused", what=what, error=os.strerror(message.value))
            if message.detail == wire.SCRATCH:
                self._scratch_came(message.number, descriptor)
            else:
                self._network_came(message.number, descriptor)

    def _greet(self) -> None:
        """Tell a new provisioner what is in use, and ask for all that was not answered."""
        now = asyncio.get_running_loop().time()
        self._is_ready = True
        for number, network in self._networks.items():
            if network.is_there:
                self._send_network(number, wire.KEEP)
                for address, end in network.permits.items():
                    if end > now:
                        self._send_permit(number, address, int(end - now) + 1)
        self._send(Message(wire.BEGIN))
        for number in self._asked_networks:
            self._send_network(number, wire.NETWORK)
        for number, (size_mb, _) in self._asked_scratch.items():
            self._send(Message(wire.SCRATCH, number, size_mb))
        self._refill()

    def _network_came(self, number: int, descriptor: int) -> None:
        order = self._asked_networks.pop(number)
        network = self._networks[number]
        reaches_out = descriptor >= 0 and network.egress.kind is not Kind.NONE
        network.is_there = reaches_out
        if not reaches_out:
            # The provisioner knows nothing of it, or gave it when our descriptors were all used.
            self._send(Message(wire.RELEASE, number))
            del self._networks[number]
            heapq.heappush(self._free, number)
            number = -1
        if order is not None:
            order.network = descriptor, number
            self._complete(order)
        elif descriptor < 0:
            return
        elif network.egress == self._default and len(self._ready_networks) < self._spares:
            self._ready_networks.append((descriptor, number))
        else:
            os.close(descriptor)
            self.leave(Room(network_number=number))

    def _scratch_came(self, number: int, descriptor: int) -> None:
        size_mb, order = self._asked_scratch.pop(number)
        if order is not None:
            order.scratch = descriptor
            self._complete(order)
        elif descriptor < 0:
            return
        elif size_mb == AWS_SCRATCH_MB and len(self._ready_scratch) < self._spares:
            self._ready_scratch.append(descriptor)
        else:
            os.close(descriptor)

    def _complete(self, order: _Order) -> None:
        if order.network is not None and order.scratch is not None:
            self._orders.discard(order)
        order.deliver()

    # ---------------------------------------------------------------------------- the link

    def _lose(self) -> None:
        log.warning("provisioner.lost", networks=len(self._networks))
        self._detach()

    def _detach(self) -> None:
        if self._link is not None:
            asyncio.get_running_loop().remove_reader(self._link.fileno())
            asyncio.get_running_loop().remove_writer(self._link.fileno())
            self._link.close()
            self._link = None
        self._is_ready = False
        self._unsent.clear()  # a new one is told all that counts

    def _send_network(self, number: int, kind: int) -> None:
        network = self._networks[number]
        # Rules first: whoever gets the network finds it complete.
        for rule in network.egress.rules:
            self._send(
                Message(
                    wire.RULE,
                    number,
                    family=rule.network.version,
                    prefix=rule.network.prefixlen,
                    address=rule.network.network_address.packed,
                    first_port=rule.first_port,
                    last_port=rule.last_port,
                )
            )
        self._send(Message(kind, number, network.mark, _KINDS[network.egress.kind]))

    def _send_permit(self, number: int, address: str, ttl_s: int) -> None:
        packed = ipaddress.IPv4Address(address).packed
        self._send(Message(wire.PERMIT, number, ttl_s, family=4, prefix=32, address=packed))

    def _send(self, message: Message) -> None:
        if self._is_ready:
            self._unsent.append(message.pack())
            self._flush()

    def _flush(self) -> None:
        while self._unsent and self._link is not None:
            try:
                self._link.send(self._unsent[0])
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                loop.add_writer(self._link.fileno(), self._writable)
                return
            except OSError:
                return  # it died, as the next read says
            self._unsent.popleft()

    def _writable(self) -> None:
        if self._link is not None:
            asyncio.get_running_loop().remove_writer(self._link.fileno())
        self._flush()
