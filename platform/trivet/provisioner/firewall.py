"""Firewall: what each network may reach, as one table of nf_tables.

Every packet of a network comes by a device of its own, whose name begins with `prefix`:

    prerouting   leaving     is it the network's own address, TCP or UDP, to a public address, or
                             to one that the operator opened? This host is never one of them.
    forward      passing     is the destination one of those that this network may reach?
    input        entering    the same, for what the operator opened on this host
    forward      arriving    to a network only come answers

Connections are marked with the mark of the network's one life: the next network at its address
inherits none of them.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import struct
from collections.abc import Iterable, Iterator

from trivet.core.egress import PRIVATE
from trivet.provisioner import nft
from trivet.provisioner.nft import Change, Tables
from trivet.provisioner.spans import Span
from trivet.provisioner.wire import INTERNET

# No network has another address.
_PRIVATE = tuple(each for each in PRIVATE if isinstance(each, ipaddress.IPv4Network))

# nft's numbers of the types of keys, and their bytes.
_ADDRESS, _PORT, _MARK, _DEVICE, _TRANSPORT = (7, 4), (13, 2), (19, 4), (41, 16), (12, 1)

_PREROUTING, _INPUT, _FORWARD, _POSTROUTING = 0, 1, 2, 4
_BEFORE_TRACKING, _FILTER, _TRANSLATE = -300, -1, 100

# A chain that says that this host forwarded nothing before the first platform here had it to.
FORWARDING_WAS_OFF = "forwarding_was_off"

_FAMILY_OF_TABLES = "trivet_"


class Firewall:
    """The table of one platform. Every call raises OSError."""

    def __init__(self, name: str, prefix: str, network: ipaddress.IPv4Network) -> None:
        self._table = f"{_FAMILY_OF_TABLES}{name}"
        self._prefix = prefix
        self._network = network
        self._tables = Tables()
        self._rules: dict[bytes, list[Change]] = {}  # by address: how to take its own back
        self._listed: dict[bytes, list[Span]] = {}
        self._permits: dict[bytes, set[bytes]] = {}

    def build(self, opened: Iterable[Span]) -> None:
        """Make the table anew; a predecessor's ends in the same instant.

        `opened`: the private networks that the operator opened.
        """
        flags = self._own()
        changes = [
            nft.table(nft.DELETE_TABLE, self._table),
            nft.table(nft.NEW_TABLE, self._table, flags),
            *self._sets(),
            *self._chains(),
            *self._paths(),
        ]
        for transport in (6, 17):
            changes.append(self._element("transports", bytes([transport])))
        for network in _PRIVATE:
            beyond = int(network.broadcast_address) + 1
            end = struct.pack(">I", beyond) if beyond <= 0xFFFF_FFFF else None
            start = network.network_address.packed
            changes += nft.interval(self._table, "private", start, end)
        pieces: list[Span] = []
        for span in opened:
            pieces += span.without(pieces)
        for first, last in (piece.keys for piece in pieces):
            changes.append(self._element("opened", first, key_end=last))
        self._tables.commit(*changes)

    def _own(self) -> int:
        """Take the table, which a predecessor may have left. The flags that it has."""
        for flags in (nft.OWNED_AND_PERSISTENT, 0):
            try:
                self._tables.commit(nft.table(nft.NEW_TABLE, self._table, flags))
                return flags
            except OSError as error:
                # Linux 5.12 and 6.9 brought the two flags.
                if flags == 0 or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
        raise AssertionError

    def _sets(self) -> Iterator[Change]:
        table = self._table
        yield nft.named_set(table, "transports", 1, [_TRANSPORT])
        yield nft.named_set(table, "private", 2, [_ADDRESS], nft.INTERVAL)
        yield nft.named_set(table, "opened", 3, [_ADDRESS, _PORT], nft.INTERVAL)
        yield nft.named_set(table, "own", 4, [_DEVICE, _ADDRESS])
        yield nft.named_set(table, "marks", 5, [_ADDRESS], nft.MAP, data=_MARK)
        yield nft.named_set(table, "lives", 6, [_ADDRESS, _MARK])
        yield nft.named_set(table, "internet", 7, [_ADDRESS])
        yield nft.named_set(table, "listed", 8, [_ADDRESS, _ADDRESS, _PORT], nft.INTERVAL)
        yield nft.named_set(table, "permitted", 9, [_ADDRESS, _ADDRESS], nft.TIMEOUT)

    def _chains(self) -> Iterator[Change]:
        for name in ("refusing", "leaving", "passing", "marking", "entering", "arriving"):
            yield nft.chain(self._table, name)
        for name, kind, hook, priority in (
            ("prerouting", "filter", _PREROUTING, _BEFORE_TRACKING),
            ("input", "filter", _INPUT, _FILTER),
            ("forward", "filter", _FORWARD, _FILTER),
            ("postrouting", "nat", _POSTROUTING, _TRANSLATE),
        ):
            yield nft.chain(self._table, name, (kind, hook, priority))

    def _paths(self) -> Iterator[Change]:
        def rule(chain: str, *expressions: bytes) -> Change:
            return nft.rule(self._table, chain, *expressions)

        ours = nft.came_by(self._prefix)
        source, destination = nft.load_source(), nft.load_destination()
        to_port = destination + nft.load_port(1)

        yield rule("refusing", nft.is_tcp(), nft.reset())
        yield rule("refusing", nft.refuse())

        yield rule("prerouting", ours, nft.go_to("leaving"))
        yield rule("leaving", nft.is_ipv4(differs=True), nft.drop())
        own = nft.load_in_name() + nft.load_source(4)
        yield rule("leaving", own, nft.is_in("own", differs=True), nft.drop())
        transport = nft.load_transport()
        yield rule("leaving", transport, nft.is_in("transports", differs=True), nft.drop())
        yield rule("leaving", to_port, nft.is_in("opened"), nft.accept())
        # Before any translation: a port that this host passes on to a container is this host.
        yield rule("leaving", nft.is_not_unicast(), nft.go_to("refusing"))
        yield rule("leaving", destination, nft.is_in("private"), nft.go_to("refusing"))

        yield rule("input", ours, nft.go_to("entering"))
        yield rule("entering", to_port, nft.is_in("opened"), nft.go_to("passing"))
        yield rule("entering", nft.go_to("refusing"))

        yield rule("forward", nft.goes_by(self._prefix), nft.go_to("arriving"))
        yield rule("forward", ours, nft.go_to("passing"))
        answers = nft.has_state(nft.ESTABLISHED | nft.RELATED)
        yield rule("arriving", answers, nft.accept())
        yield rule("arriving", nft.drop())

        life = source + nft.load_mark(1) + nft.is_in("lives")
        yield rule("passing", nft.has_state(nft.ESTABLISHED), life, nft.accept())
        yield rule("passing", source, nft.is_in("internet"), nft.go_to("marking"))
        both = source + nft.load_destination(1)
        yield rule("passing", both, nft.load_port(2), nft.is_in("listed"), nft.go_to("marking"))
        yield rule("passing", both, nft.is_in("permitted"), nft.go_to("marking"))
        yield rule("passing", nft.go_to("refusing"))
        yield rule("marking", source, nft.look_up("marks"), nft.set_mark(), nft.accept())

        address, mask = self._network.network_address.packed, self._network.netmask.packed
        elsewhere = nft.goes_by(self._prefix, differs=True)
        yield rule(
            "postrouting", nft.is_ipv4(), nft.is_from(address, mask), elsewhere, nft.masquerade()
        )

    # ------------------------------------------------------------------------- networks

    def admit(self, device: str, address: bytes, kind: int, mark: int) -> None:
        """Let a network at `address` (4 bytes) out by `device`."""
        marked = struct.pack("=I", mark)
        named = device.encode().ljust(16, b"\0")
        keys = [("own", named + address), ("lives", address + marked)]
        if kind == INTERNET:
            keys.append(("internet", address))
        self._tables.commit(
            *(self._element(name, key) for name, key in keys),
            self._element("marks", address, data=marked),
        )
        taken = [nft.element(nft.DELETE_ELEMENT, self._table, name, key) for name, key in keys]
        taken.append(nft.element(nft.DELETE_ELEMENT, self._table, "marks", address, data=marked))
        self._rules[address] = taken

    def dismiss(self, address: bytes) -> None:
        """Forget the network at `address`."""
        self._listed.pop(address, None)
        changes = self._rules.pop(address, [])
        if changes:
            self._tables.commit(*changes)
        for destination in self._permits.pop(address, ()):
            self._forbid(address + destination)

    def allow(self, address: bytes, span: Span) -> None:
        """Let the listed network at `address` reach another."""
        known = self._listed.setdefault(address, [])
        pieces = span.without(known)
        keys = [(address + first, address + last) for first, last in (p.keys for p in pieces)]
        if keys:
            self._tables.commit(*(self._element("listed", k, key_end=end) for k, end in keys))
        known += pieces
        self._rules[address] += [
            nft.element(nft.DELETE_ELEMENT, self._table, "listed", key, key_end=end)
            for key, end in keys
        ]

    def permit(self, address: bytes, destination: bytes, seconds: int) -> None:
        """Let the network at `address` reach one other address, for so long."""
        key = address + destination
        permit = self._element("permitted", key, timeout_ms=seconds * 1000)
        permits = self._permits.setdefault(address, set())
        if destination in permits:
            # An older permit would keep its own end, and must not end before this one begins.
            older = nft.element(nft.DELETE_ELEMENT, self._table, "permitted", key)
            with contextlib.suppress(FileNotFoundError):  # its time was over
                self._tables.commit(older, permit)
                return
        self._tables.commit(permit)
        permits.add(destination)

    def permits(self, address: bytes) -> int:
        """How many addresses the network at `address` was ever permitted."""
        return len(self._permits.get(address, ()))

    def _forbid(self, key: bytes) -> None:
        removal = nft.element(nft.DELETE_ELEMENT, self._table, "permitted", key)
        with contextlib.suppress(FileNotFoundError):  # its time was over
            self._tables.commit(removal)

    def _element(
        self,
        name: str,
        key: bytes,
        *,
        key_end: bytes | None = None,
        data: bytes | None = None,
        timeout_ms: int = 0,
    ) -> Change:
        return nft.element(
            nft.NEW_ELEMENT,
            self._table,
            name,
            key,
            key_end=key_end,
            data=data,
            timeout_ms=timeout_ms,
        )

    # ----------------------------------------------------------------------- forwarding

    def note_that_forwarding_was_off(self) -> None:
        self._tables.commit(nft.chain(self._table, FORWARDING_WAS_OFF))

    def noted_that_forwarding_was_off(self) -> bool:
        """Whether this platform, a predecessor of it, or another one here noted it."""
        return any(
            table.startswith(_FAMILY_OF_TABLES) and chain == FORWARDING_WAS_OFF
            for table, chain in self._tables.chains()
        )

    def is_there(self) -> bool:
        """Whether the table is there, from a predecessor or from `build`."""
        return any(table == self._table for table, _ in self._tables.chains())

    def are_others_there(self) -> bool:
        """Whether another platform has a table here."""
        return any(
            table.startswith(_FAMILY_OF_TABLES) and table != self._table
            for table, _ in self._tables.chains()
        )

    def remove(self) -> None:
        self._tables.commit(nft.table(nft.DELETE_TABLE, self._table))

    def close(self) -> None:
        self._tables.close()
