"""DNS: as much of its messages as is needed to pass them on, and no more.

A question comes from hostile code: only its header and its one question are read, within bounds,
and what is asked outside is written anew. An answer comes from a resolver: its records are walked
for the addresses in them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from trivet.core.egress import PRIVATE, Rule

Address = IPv4Address | IPv6Address

MAX_QUESTION_BYTES = 512
MAX_RECORDS = 256
ANSWER_BYTES = 1_232  # what fits into one packet everywhere: the size that is offered to resolvers

SERVER_FAILED = 2
NO_SUCH_NAME = 3
REFUSED = 5

_HEAD = struct.Struct(">HHHHHH")  # id, flags, counts: questions, answers, authorities, additionals
_TAIL = struct.Struct(">HH")  # type, class
_RECORD = struct.Struct(">HHIH")  # type, class, time to live, length
_RESPONSE, _OPCODE, _TRUNCATED, _DESIRED, _AVAILABLE = 0x8000, 0x7800, 0x0200, 0x0100, 0x0080
_INTERNET, _A, _AAAA, _OPT = 1, 1, 28, 41
# Transfers, and the question for everything: an amplifier's tools, and no client's.
_UNASKED = frozenset({251, 252, 253, 254, 255})
_OFFER = b"\0" + _RECORD.pack(_OPT, ANSWER_BYTES, 0, 0)


class Malformed(ValueError):
    """These bytes are not a message of the kind they should be."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a client wants to know."""

    id: int
    name: str  # in lower case, without a dot at its end; "" is the root
    kind: int  # the type of record: 1 is an IPv4 address
    raw: bytes  # name, type and class as they came
    is_extended: bool  # the client takes answers of more than 512 bytes

    @property
    def is_answerable(self) -> bool:
        return self.kind not in _UNASKED and self.raw.endswith(b"\0\1")

    def asked_anew(self, id: int) -> bytes:
        """The message for a resolver, with another id."""
        head = _HEAD.pack(id, _DESIRED, 1, 0, 0, int(self.is_extended))
        return head + self.raw + (_OFFER if self.is_extended else b"")

    def answered_with(self, code: int) -> bytes:
        """An answer without records."""
        flags = _RESPONSE | _DESIRED | _AVAILABLE | code
        return _HEAD.pack(self.id, flags, 1, 0, 0, 0) + self.raw


@dataclass(frozen=True, slots=True)
class Answer:
    """What a resolver said."""

    id: int
    raw: bytes
    question: bytes
    addresses: tuple[tuple[Address, int], ...]  # with the seconds they are good for
    is_truncated: bool

    def answers(self, question: Question, id: int) -> bool:
        """Whether it is for `question`, asked under `id`."""
        return self.id == id and self.question.lower() == question.raw.lower()

    def given_to(self, question: Question) -> bytes:
        """The message for who asked: as it came, under the id it was asked by."""
        raw = bytearray(self.raw)
        raw[0:2] = question.id.to_bytes(2, "big")
        if self.is_truncated and self.addresses:
            raw[2] &= ~(_TRUNCATED >> 8)  # some addresses are enough, and there is no other way
        return bytes(raw)


def read_question(message: bytes) -> Question:
    """The one question in `message`. Raises Malformed."""
    if not _HEAD.size < len(message) <= MAX_QUESTION_BYTES:
        raise Malformed("length")
    id, flags, questions, answers, authorities, additionals = _HEAD.unpack_from(message)
    if flags & (_RESPONSE | _OPCODE) or (questions, answers, authorities) != (1, 0, 0):
        raise Malformed("header")
    name, end = _plain_name(message, _HEAD.size)
    if end + _TAIL.size > len(message):
        raise Malformed("question")
    kind, _ = _TAIL.unpack_from(message, end)
    end += _TAIL.size
    is_extended = additionals > 0 and message[end : end + 3] == _OFFER[:3]
    return Question(id, name, kind, message[_HEAD.size : end], is_extended)


def read_answer(message: bytes) -> Answer:
    """What a resolver answered, with all addresses in it. Raises Malformed."""
    if len(message) < _HEAD.size:
        raise Malformed("length")
    id, flags, questions, *counts = _HEAD.unpack_from(message)
    records = sum(counts)
    if not flags & _RESPONSE or questions != 1 or records > MAX_RECORDS:
        raise Malformed("header")
    at = _skip_name(message, _HEAD.size) + _TAIL.size
    question = message[_HEAD.size : at]
    addresses: list[tuple[Address, int]] = []
    for _ in range(records):
        if at >= len(message) and flags & _TRUNCATED:
            break
        at = _skip_name(message, at)
        if at + _RECORD.size > len(message):
            raise Malformed("record")
        kind, _, ttl_s, length = _RECORD.unpack_from(message, at)
        at += _RECORD.size + length
        data = message[at - length : at]
        if len(data) != length:
            raise Malformed("record")
        if kind == _A and length == 4:
            addresses.append((IPv4Address(data), ttl_s))
        elif kind == _AAAA and length == 16:
            addresses.append((IPv6Address(data), ttl_s))
    return Answer(id, message, question, tuple(addresses), bool(flags & _TRUNCATED))


def is_private(address: Address, opened: Sequence[Rule]) -> bool:
    """Whether no name of the world's DNS may lead there, unless it is in a network of `opened`."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None and is_private(inner, opened):
            return True
    if any(address in rule.network for rule in opened):
        return False
    return any(address in network for network in PRIVATE)


def _plain_name(message: bytes, at: int) -> tuple[str, int]:
    """A name that is written out, and where it ends."""
    labels: list[str] = []
    start = at
    while at < len(message):
        length = message[at]
        at += 1
        if length == 0:
            return ".".join(labels).lower(), at
        if length > 63 or at + length - start > 254:
            break
        label = message[at : at + length]
        if b"." in label or len(label) != length:
            break  # two names would look alike
        labels.append(label.decode("latin-1"))
        at += length
    raise Malformed("name")


def _skip_name(message: bytes, at: int) -> int:
    while at < len(message):
        length = message[at]
        if length >= 0xC0:
            return at + 2
        if length > 63:
            break
        at += 1 + length
        if length == 0:
            return at
    raise Malformed("name")
