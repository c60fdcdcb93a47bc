"""Networks: namespaces with loopback, and those of them that reach beyond by a device of their own.

Each of the latter is one end of a pair of devices; the other is here, named by the platform's hash
and the network's number. Nothing is shared between two of them: no bridge, so no limit of 1,024
ports, and no address resolution, so nobody can take another's packets: neighbours are written down.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from trivet.provisioner import kernel, links
from trivet.provisioner.firewall import Firewall
from trivet.provisioner.links import Links
from trivet.provisioner.spans import Span
from trivet.provisioner.wire import NONE

# Of the operator's range one platform takes this much: 4,000 networks.
_PART_PREFIX = 20
_MOST_PERMITS = 1024  # of one network; DNS gave them, for names that the operator listed
_MOST_ANNOUNCED = 4096  # rules in all

_INSIDE = "eth0"
_OURS = b"\x02\x54\x52"  # hardware addresses begin so, and end as the network's own does
_OUR_SIDE = _OURS + b"\x56\0\0"
_MOST_AT_ONCE = 64  # requests in one go, for a socket holds but so much of them
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_IPV6 = Path("/proc/sys/net/ipv6/conf")

# Of linux/rtnetlink.h.
_IPV4 = 2
_BLACKHOLE = 6


@dataclass(frozen=True, slots=True)
class Kept:
    """A network that a predecessor made, and that somebody is in."""

    number: int
    kind: int
    mark: int


class Networks:
    """The networks of one platform. Every call raises OSError."""

    def __init__(
        self, name: str, network_range: ipaddress.IPv4Network, opened: list[Span], *, egress: bool
    ) -> None:
        """`name`: hexadecimal digits that no other platform on this machine has."""
        self._name = name
        self._prefix = f"tv{name[:8]}x"
        # Tells the route that claims our part, and the group of devices that nobody needs.
        self._metric = int(name[:8], 16) or 1
        self._range = network_range
        self._opened = opened
        self._egress = egress
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._routes = IPRoute()
        self._links = Links()
        self._firewall: Firewall | None = None
        self._part = network_range
        self._numbers: set[int] = set()
        self._left: set[int] = set()  # released, and their devices perhaps not gone
        self._announced: dict[int, list[Span]] = {}  # rules of networks that are yet to come

    def begin(self, kept: list[Kept]) -> None:
        """End what a predecessor left, but for these."""
        devices = self._devices()
        alive = [one for one in kept if one.number in devices]
        self._delete(devices - {one.number for one in alive})
        if not alive:
            self._end_sharing()
            return
        firewall = self._sharing()
        for one in alive:
            self._numbers.add(one.number)
            firewall.admit(self._device(one.number), self._address(one.number), one.kind, one.mark)

    def make(self, number: int, kind: int, mark: int) -> int:
        """A descriptor of a new network namespace; the caller's to close."""
        spans = self._announced.pop(number, [])
        if kind == NONE:
            return self._unconnected()
        if number in self._numbers:
            raise FileExistsError(errno.EEXIST, f"network {number} is in use")
        if number in self._left:
            self.sweep()
        firewall = self._sharing()
        address = self._address(number)
        self._numbers.add(number)
        try:
            firewall.admit(self._device(number), address, kind, mark)
            for span in spans:
                firewall.allow(address, span)
            return self._connected(number, address)
        except BaseException:
            with contextlib.suppress(OSError):
                self.release(number)
            raise

    def release(self, number: int) -> None:
        """Nobody is in the network any more, and nothing of it passes. `sweep` ends it."""
        self._announced.pop(number, None)
        if number not in self._numbers:
            return
        self._numbers.remove(number)
        self._left.add(number)
        self._sharing().dismiss(self._address(number))

    @property
    def is_to_be_swept(self) -> bool:
        return bool(self._left)

    def sweep(self) -> None:
        """End what was released: the kernel takes long, but for all of them as long as for one.

        Most have gone with their namespace by the time that one asks.
        """
        left, self._left = self._left, set()
        self._delete(left)

    def allow(self, number: int, span: Span) -> None:
        """Let a listed network reach another, on these ports; it may be made only then."""
        if number in self._numbers:
            self._sharing().allow(self._address(number), span)
        elif sum(map(len, self._announced.values())) < _MOST_ANNOUNCED:
            self._announced.setdefault(number, []).append(span)

    def permit(self, number: int, destination: bytes, seconds: int) -> None:
        """Let a listed network reach one address (4 bytes), for so long."""
        if number in self._numbers:
            address = self._address(number)
            if self._sharing().permits(address) >= _MOST_PERMITS:
                raise OSError(errno.ENOSPC, "too many addresses for one network")
            self._sharing().permit(address, destination, max(1, seconds))

    def end(self) -> None:
        """Leave nothing behind, of this and of its predecessors."""
        self._delete(self._devices())
        self._numbers.clear()
        self._end_sharing()
        self._links.close()
        self._routes.close()
        os.close(self._home)

    # ------------------------------------------------------------------ what networks share

    def _sharing(self) -> Firewall:
        """Make, once, what the networks share: addresses, rules, and that this host forwards."""
        if self._firewall is None:
            if not self._egress:
                raise PermissionError(errno.EPERM, "the operator wants no egress")
            self._part = self._take_part()
            firewall = Firewall(self._name, self._prefix, self._part)
            try:
                was_off = firewall.noted_that_forwarding_was_off()
                firewall.build(self._opened)
                if was_off or _FORWARDING.read_text().strip() == "0":
                    firewall.note_that_forwarding_was_off()
                    _FORWARDING.write_text("1")
            except BaseException:
                firewall.close()
                raise
            self._firewall = firewall
        return self._firewall

    def _end_sharing(self) -> None:
        """Remove what `_sharing` made, here or in a predecessor."""
        try:
            firewall = self._firewall or Firewall(self._name, self._prefix, self._part)
        except OSError:
            return  # no nf_tables, so nobody made anything
        self._firewall = None
        try:
            if firewall.is_there():
                was_off = firewall.noted_that_forwarding_was_off()
                firewall.remove()
                # The last platform here has it as it was before the first.
                if was_off and not firewall.are_others_there():
                    _FORWARDING.write_text("0")
        finally:
            firewall.close()
        with _as_os_errors():
            for part in self._taken()[1]:
                self._claim("del", part)

    def _take_part(self) -> ipaddress.IPv4Network:
        """The part of the range that is this platform's: this host has nothing else in it.

        A route to nowhere claims it, and keeps what goes to addresses without a network from the
        wide world.
        """
        prefix = max(_PART_PREFIX, self._range.prefixlen)
        parts = list(self._range.subnets(new_prefix=prefix))
        first = int(self._name, 16) % len(parts)
        with _as_os_errors():
            taken, mine = self._taken()
            if mine:
                return mine[0]
            for part in [*parts[first:], *parts[:first]]:
                if not any(part.overlaps(other) for other in taken):
                    self._claim("add", part)
                    return part
        raise OSError(errno.EADDRINUSE, f"all of {self._range} is in use on this machine")

    def _claim(self, command: str, part: ipaddress.IPv4Network) -> None:
        self._routes.route(command, dst=str(part), type="blackhole", priority=self._metric)

    def _taken(self) -> tuple[list[ipaddress.IPv4Network], list[ipaddress.IPv4Network]]:
        """Networks that this host has a route to or an address in; and those we claimed."""
        taken: list[ipaddress.IPv4Network] = []
        mine: list[ipaddress.IPv4Network] = []
        for route in self._routes.get_routes(family=_IPV4):
            destination = route.get_attr("RTA_DST")
            if destination is None:
                continue  # the way to everything else
            network = ipaddress.IPv4Network(f"{destination}/{route['dst_len']}")
            is_claim = route["type"] == _BLACKHOLE
            is_ours = is_claim and route.get_attr("RTA_PRIORITY") == self._metric
            (mine if is_ours else taken).append(network)
        return taken, [part for part in mine if part.subnet_of(self._range)]

    # ----------------------------------------------------------------------------- devices

    def _unconnected(self) -> int:
        with kernel.new_network_namespace(self._home) as namespace:
            inside = Links()
        with _closing_on_error(namespace), contextlib.closing(inside):
            inside.send(links.up(links.LOOPBACK))
        return namespace

    def _connected(self, number: int, address: bytes) -> int:
        """A namespace with the inner end of a pair of devices, all addresses set."""
        name, inner = self._device(number), _OURS + address[1:]
        gateway = (self._part.network_address + 1).packed  # for the wire alone: no device has it
        with kernel.new_network_namespace(self._home) as namespace:
            inside = Links()
            _turn_ipv6_off("default")
        with _closing_on_error(namespace), contextlib.closing(inside):
            self._links.send(links.pair(name, _OUR_SIDE, _INSIDE, inner, namespace))
            _turn_ipv6_off(name)
            device = self._links.index(name)
            self._links.send(
                links.up(device),
                links.route_to(address, device),
                links.neighbour(device, address, inner),
            )
            device = inside.index(_INSIDE)
            inside.send(
                links.up(links.LOOPBACK),
                links.up(device),
                links.address(device, address),
                links.neighbour(device, gateway, _OUR_SIDE),
                links.default_route(gateway, device),
            )
            self._links.connect(name)
        return namespace

    def _address(self, number: int) -> bytes:
        if number + 3 >= self._part.num_addresses:
            raise OSError(errno.ERANGE, f"{self._part} has no address for network {number}")
        return (self._part.network_address + 2 + number).packed

    def _device(self, number: int) -> str:
        return f"{self._prefix}{number}"

    def _devices(self) -> set[int]:
        """The numbers of all networks that have a device here."""
        found = set()
        with _as_os_errors():
            for link in self._routes.get_links():
                match = re.fullmatch(rf"{self._prefix}(\d+)", link.get_attr("IFLA_IFNAME") or "")
                if match:
                    found.add(int(match[1]))
        return found

    def _delete(self, numbers: set[int]) -> None:
        """The devices of these networks, unless they went with their namespaces."""
        if not numbers:
            return
        moves = [links.put_into_group(self._device(each), self._metric) for each in numbers]
        for first in range(0, len(moves), _MOST_AT_ONCE):
            some = moves[first : first + _MOST_AT_ONCE]
            self._links.send(*some, suffering=(errno.ENODEV,))
        self._links.send(links.delete_group(self._metric), suffering=(errno.ENODEV,))


def _turn_ipv6_off(device: str) -> None:
    with contextlib.suppress(OSError):  # a host without IPv6 has none to turn off
        (_IPV6 / device / "disable_ipv6").write_text("1")


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, f"netlink: {os.strerror(error.code)}") from error


@contextlib.contextmanager
def _closing_on_error(descriptor: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise
