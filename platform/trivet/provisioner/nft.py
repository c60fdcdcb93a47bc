"""Nft: transactions of nf_tables, as far as the firewall needs them.

pyroute2 knows these messages too, but sends each alone, and a firewall must change as a whole. The
numbers are those of linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable

from trivet.provisioner import netlink
from trivet.provisioner.netlink import attribute as _raw
from trivet.provisioner.netlink import nest as _nest
from trivet.provisioner.netlink import text as _name

INET = 1  # the family of tables that see both IPv4 and IPv6

NEW_TABLE, _GET_TABLE, DELETE_TABLE = 0, 1, 2
NEW_CHAIN, _GET_CHAIN = 3, 4
NEW_RULE = 6
NEW_SET = 9
NEW_ELEMENT, DELETE_ELEMENT = 12, 14

# Nobody else may change it, not even who flushes all tables, and it outlives its owner.
OWNED_AND_PERSISTENT = 0x2 | 0x4

INTERVAL, MAP, TIMEOUT, CONCATENATED = 0x4, 0x8, 0x10, 0x80

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11

_FAMILY = struct.Struct(">BBH")

# A change: what to do, and the attributes that say to what.
Change = tuple[int, bytes]


class Tables:
    """A socket to nf_tables; tables that it owns are its own until it closes."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._sequence = 0

    def commit(self, *changes: Change) -> None:
        """Make all of these changes, or none. Raises OSError, with the first one's errno."""
        batch = [self._message(_BATCH_BEGIN, netlink.REQUEST, b"", 0, _SUBSYSTEM)]
        for index, (kind, attributes) in enumerate(changes):
            flags = netlink.REQUEST
            if kind in (NEW_TABLE, NEW_CHAIN, NEW_RULE, NEW_SET, NEW_ELEMENT):
                flags |= netlink.CREATE | (netlink.APPEND if kind == NEW_RULE else 0)
            if index == len(changes) - 1:
                flags |= netlink.ACK
            batch.append(self._message(_SUBSYSTEM << 8 | kind, flags, attributes))
        batch.append(self._message(_BATCH_END, netlink.REQUEST, b"", 0, _SUBSYSTEM))
        self._socket.send(b"".join(batch))
        if failures := netlink.failures(self._socket):
            raise OSError(failures[0], f"nf_tables: {os.strerror(failures[0])}")

    def chains(self) -> list[tuple[str, str]]:
        """All tables' names, each with a chain's name."""
        flags = netlink.REQUEST | netlink.DUMP
        self._socket.send(self._message(_SUBSYSTEM << 8 | _GET_CHAIN, flags, b""))
        found = []
        for kind, body in netlink.answers(self._socket):
            if kind in (netlink.DONE, netlink.ERROR):
                break
            if kind == _SUBSYSTEM << 8 | NEW_CHAIN:
                texts = dict(netlink.attributes(body[_FAMILY.size :]))
                found.append((_text(texts.get(1, b"")), _text(texts.get(3, b""))))
        return found

    def close(self) -> None:
        self._socket.close()

    def _message(
        self, kind: int, flags: int, attributes: bytes, family: int = INET, resource: int = 0
    ) -> bytes:
        self._sequence += 1
        body = _FAMILY.pack(family, 0, resource) + attributes
        return netlink.message(kind, flags, body, self._sequence)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


# ------------------------------------------------------------------------------- attributes


def _number(kind: int, value: int) -> bytes:
    return _raw(kind, struct.pack(">I", value & 0xFFFF_FFFF))


def _data(kind: int, value: bytes) -> bytes:
    return _nest(kind, _raw(1, value))


# ---------------------------------------------------------------------------------- changes


def table(kind: int, name: str, flags: int = 0) -> Change:
    return kind, _name(1, name) + _number(2, flags)


def chain(table: str, name: str, hook: tuple[str, int, int] | None = None) -> Change:
    """`hook`: type, number of the hook, priority; without it others have to jump here."""
    attributes = _name(1, table) + _name(3, name)
    if hook is not None:
        kind, number, priority = hook
        attributes += _nest(4, _number(1, number), _number(2, priority))
        attributes += _number(5, 1) + _name(7, kind)  # what no rule says anything of goes on
    return NEW_CHAIN, attributes


def rule(table: str, chain: str, *expressions: bytes) -> Change:
    return NEW_RULE, _name(1, table) + _name(2, chain) + _nest(4, *expressions)


def named_set(
    table: str,
    name: str,
    number: int,
    fields: Iterable[tuple[int, int]],
    flags: int = 0,
    data: tuple[int, int] | None = None,
) -> Change:
    """A set whose keys have these fields: nft's number of the type, and bytes."""
    kinds, sizes = zip(*fields, strict=True)
    kind = 0
    for one in kinds:
        kind = kind << 6 | one
    attributes = _name(1, table) + _name(2, name) + _number(10, number)
    if len(sizes) > 1:
        flags |= CONCATENATED
        attributes += _nest(9, _nest(2, *(_nest(1, _number(1, size)) for size in sizes)))
    attributes += _number(3, flags) + _number(4, kind)
    # Fields of a concatenation begin at whole registers.
    attributes += _number(5, sizes[0] if len(sizes) == 1 else sum(-(-s // 4) * 4 for s in sizes))
    if data is not None:
        attributes += _number(6, data[0]) + _number(7, data[1])
    return NEW_SET, attributes


def element(
    kind: int,
    table: str,
    name: str,
    key: bytes,
    *,
    key_end: bytes | None = None,
    data: bytes | None = None,
    timeout_ms: int = 0,
) -> Change:
    """`kind` is NEW_ELEMENT or DELETE_ELEMENT; `key_end` the last key of an interval of many."""
    members = _data(1, key)
    if data is not None:
        members += _data(2, data)
    if timeout_ms:
        members += _raw(4, struct.pack(">Q", timeout_ms))
    if key_end is not None:
        members += _data(10, key_end)
    return kind, _name(1, table) + _name(2, name) + _nest(3, _nest(1, members))


def interval(table: str, name: str, first: bytes, beyond: bytes | None) -> list[Change]:
    """Elements of a set of intervals of one field; `beyond` None: to the end of all keys."""
    changes = [element(NEW_ELEMENT, table, name, first)]
    if beyond is not None:
        ends = _nest(1, _data(1, beyond), _number(3, 1))
        changes.append((NEW_ELEMENT, _name(1, table) + _name(2, name) + _nest(3, ends)))
    return changes


# ------------------------------------------------------------------------------ expressions

# Registers of 4 bytes: what is loaded one after the other is one key.
_FIRST_REGISTER = 8
_VERDICT = 0

_META_IN, _META_OUT, _META_FAMILY, _META_TRANSPORT = 6, 7, 15, 16
_CT_STATE, _CT_MARK = 0, 3
_ADDRESS_TYPE = 3
_OF_DESTINATION = 2

ESTABLISHED, RELATED = 2, 4


def _expression(name: str, *attributes: bytes) -> bytes:
    return _nest(1, _name(1, name), _nest(2, *attributes))


def _register(word: int) -> int:
    return _FIRST_REGISTER + word


def _meta(key: int, word: int = 0) -> bytes:
    return _expression("meta", _number(1, _register(word)), _number(2, key))


def _payload(base: int, offset: int, size: int, word: int) -> bytes:
    return _expression(
        "payload",
        _number(1, _register(word)),
        _number(2, base),
        _number(3, offset),
        _number(4, size),
    )


def _compare(value: bytes, *, differs: bool = False) -> bytes:
    return _expression("cmp", _number(1, _register(0)), _number(2, differs), _data(3, value))


def load_in_name(word: int = 0) -> bytes:
    """The name of the device that the packet came by: four words."""
    return _meta(_META_IN, word)


def load_source(word: int = 0) -> bytes:
    return _payload(1, 12, 4, word)


def load_destination(word: int = 0) -> bytes:
    return _payload(1, 16, 4, word)


def load_port(word: int) -> bytes:
    """The port it goes to, of TCP and UDP."""
    return _payload(2, 2, 2, word)


def load_mark(word: int) -> bytes:
    """The connection's mark."""
    return _expression("ct", _number(1, _register(word)), _number(2, _CT_MARK))


def set_mark() -> bytes:
    """Mark the connection with what was looked up."""
    return _expression("ct", _number(2, _CT_MARK), _number(4, _register(0)))


def came_by(prefix: str) -> bytes:
    return _meta(_META_IN) + _compare(prefix.encode())


def goes_by(prefix: str, *, differs: bool = False) -> bytes:
    return _meta(_META_OUT) + _compare(prefix.encode(), differs=differs)


def is_ipv4(*, differs: bool = False) -> bytes:
    return _meta(_META_FAMILY) + _compare(bytes([socket.AF_INET]), differs=differs)


def is_not_unicast() -> bytes:
    """To this host itself, to all, to many, or to nowhere."""
    kind = _expression(
        "fib",
        _number(1, _register(0)),
        _number(2, _ADDRESS_TYPE),
        _number(3, _OF_DESTINATION),
    )
    return kind + _compare(struct.pack("=I", 1), differs=True)


def has_state(bits: int) -> bytes:
    load = _expression("ct", _number(1, _register(0)), _number(2, _CT_STATE))
    nothing = struct.pack("=I", 0)
    return load + _masked(struct.pack("=I", bits)) + _compare(nothing, differs=True)


def is_from(network: bytes, mask: bytes) -> bytes:
    return load_source() + _masked(mask) + _compare(network)


def load_transport() -> bytes:
    return _meta(_META_TRANSPORT)


def is_in(name: str, *, differs: bool = False) -> bytes:
    """What was loaded is a key of the set."""
    return _expression("lookup", _name(1, name), _number(2, _register(0)), _number(5, int(differs)))


def look_up(name: str) -> bytes:
    """Load what the map has for the key that was loaded."""
    register = _register(0)
    return _expression("lookup", _name(1, name), _number(2, register), _number(3, register))


def masquerade() -> bytes:
    return _expression("masq")


def _verdict(code: int, chain: str = "") -> bytes:
    members = _number(1, code) + (_name(2, chain) if chain else b"")
    return _expression("immediate", _number(1, _VERDICT), _nest(2, _nest(2, members)))


def accept() -> bytes:
    return _verdict(1)


def drop() -> bytes:
    return _verdict(0)


def is_tcp() -> bytes:
    return load_transport() + _compare(b"\6")


def reset() -> bytes:
    """Drop it, a packet of TCP, and end the sender's connection: the kernel sends as many of these
    as are due, unlike what `refuse` sends."""
    return _expression("reject", _number(1, 1), _raw(2, bytes([0])))


def refuse() -> bytes:
    """Drop it, and tell the sender at once that no way leads there."""
    return _expression("reject", _number(1, 2), _raw(2, bytes([3])))


def go_to(chain: str) -> bytes:
    return _verdict(-4, chain)


def _masked(mask: bytes) -> bytes:
    return _expression(
        "bitwise",
        _number(1, _register(0)),
        _number(2, _register(0)),
        _number(3, len(mask)),
        _data(4, mask),
        _data(5, bytes(len(mask))),
    )
