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

from trivet.provisioner import kernel
from trivet.provisioner.firewall import Firewall
from trivet.provisioner.spans import Span
from trivet.provisioner.wire import NONE

# Of the operator's range one platform takes this much: 4,000 networks.
_PART_PREFIX = 20
_MOST_PERMITS = 1024  # of one network; DNS gave them, for names that the operator listed
_MOST_ANNOUNCED = 4096  # rules in all

_LOOPBACK = 1
_INSIDE = "eth0"
_OUR_SIDE = "02:54:52:56:00:00"
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_IPV6 = Path("/proc/sys/net/ipv6/conf")

# Of linux/rtnetlink.h and linux/neighbour.h.
_IPV4 = 2
_BLACKHOLE = 6
_SCOPE_LINK = 253
_ONLINK = 4
_PERMANENT = 0x80


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
        self._metric = int(name[:8], 16) or 1  # tells the route that claims our part
        self._range = network_range
        self._opened = opened
        self._egress = egress
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._links = IPRoute()
        self._firewall: Firewall | None = None
        self._part = network_range
        self._numbers: set[int] = set()
        self._announced: dict[int, list[Span]] = {}  # rules of networks that are yet to come

    def begin(self, kept: list[Kept]) -> None:
        """End what a predecessor left, but for these."""
        devices = self._devices()
        alive = [one for one in kept if one.number in devices]
        for number in devices.keys() - {one.number for one in alive}:
            self._delete(devices[number])
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
        """Nobody is in the network any more."""
        self._announced.pop(number, None)
        if number not in self._numbers:
            return
        self._numbers.remove(number)
        device = self._found(self._device(number))
        if device:
            self._delete(device)
        self._sharing().dismiss(self._address(number))

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
        for device in self._devices().values():
            self._delete(device)
        self._numbers.clear()
        self._end_sharing()
        self._links.close()
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
        self._links.route(command, dst=str(part), type="blackhole", priority=self._metric)

    def _taken(self) -> tuple[list[ipaddress.IPv4Network], list[ipaddress.IPv4Network]]:
        """Networks that this host has a route to or an address in; and those we claimed."""
        taken: list[ipaddress.IPv4Network] = []
        mine: list[ipaddress.IPv4Network] = []
        for route in self._links.get_routes(family=_IPV4):
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
            inside = IPRoute()
        with inside, _closing_on_error(namespace), _as_os_errors():
            inside.link("set", index=_LOOPBACK, state="up")
        return namespace

    def _connected(self, number: int, address: bytes) -> int:
        """A namespace with the inner end of a pair of devices, all addresses set."""
        name, text = self._device(number), str(ipaddress.IPv4Address(address))
        gateway = str(self._part.network_address + 1)  # for the wire alone: no device has it
        inner = "02:54:52:" + ":".join(f"{byte:02x}" for byte in address[1:])
        with kernel.new_network_namespace(self._home) as namespace:
            inside = IPRoute()
            _turn_ipv6_off("default")
        with inside, _closing_on_error(namespace), _as_os_errors():
            end = {"ifname": _INSIDE, "net_ns_fd": namespace, "address": inner}
            self._links.link("add", ifname=name, kind="veth", address=_OUR_SIDE, peer=end)
            _turn_ipv6_off(name)
            device = self._found(name)
            self._links.link("set", index=device, state="up")
            self._links.route("add", dst=f"{text}/32", oif=device, scope=_SCOPE_LINK)
            self._links.neigh("add", dst=text, lladdr=inner, ifindex=device, state=_PERMANENT)
            inside.link("set", index=_LOOPBACK, state="up")
            device = inside.link_lookup(ifname=_INSIDE)[0]
            inside.link("set", index=device, state="up")
            inside.addr("add", index=device, address=text, prefixlen=32)
            inside.neigh("add", dst=gateway, lladdr=_OUR_SIDE, ifindex=device, state=_PERMANENT)
            inside.route("add", dst="0.0.0.0/0", gateway=gateway, oif=device, flags=_ONLINK)
        return namespace

    def _address(self, number: int) -> bytes:
        if number + 3 >= self._part.num_addresses:
            raise OSError(errno.ERANGE, f"{self._part} has no address for network {number}")
        return (self._part.network_address + 2 + number).packed

    def _device(self, number: int) -> str:
        return f"{self._prefix}{number}"

    def _devices(self) -> dict[int, int]:
        """The index of each device of ours, by its network's number."""
        found = {}
        with _as_os_errors():
            for link in self._links.get_links():
                match = re.fullmatch(rf"{self._prefix}(\d+)", link.get_attr("IFLA_IFNAME") or "")
                if match:
                    found[int(match[1])] = link["index"]
        return found

    def _found(self, name: str) -> int:
        with _as_os_errors():
            found = self._links.link_lookup(ifname=name)
        return int(found[0]) if found else 0

    def _delete(self, device: int) -> None:
        try:
            with _as_os_errors():
                self._links.link("del", index=device)
        except OSError as error:
            if error.errno != errno.ENODEV:  # it went with its namespace
                raise


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
