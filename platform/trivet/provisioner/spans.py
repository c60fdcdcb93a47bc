"""Spans: networks with ports, cut so that no two overlap.

A set of nf_tables refuses an interval that overlaps another of the set; operators and tags may
well name 10.0.0.0/8 and, of the same, 10.1.0.0/16:443.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    network: ipaddress.IPv4Network
    first_port: int
    last_port: int

    @property
    def keys(self) -> tuple[bytes, bytes]:
        """The first and the last key, of an address and a port in four bytes each."""
        first = self.network.network_address.packed + struct.pack(">Hxx", self.first_port)
        return first, self.network.broadcast_address.packed + struct.pack(">Hxx", self.last_port)

    def without(self, others: Iterable[Span]) -> list[Span]:
        """What of it is in none of the others, in pieces that do not overlap."""
        pieces = [self]
        for other in others:
            pieces = [rest for piece in pieces for rest in _cut(piece, other)]
        return pieces


def _cut(span: Span, other: Span) -> list[Span]:
    first = max(span.first_port, other.first_port)
    last = min(span.last_port, other.last_port)
    if first > last or not span.network.overlaps(other.network):
        return [span]
    pieces = []
    if span.first_port < first:
        pieces.append(Span(span.network, span.first_port, first - 1))
    if last < span.last_port:
        pieces.append(Span(span.network, last + 1, span.last_port))
    if not span.network.subnet_of(other.network):
        rest = span.network.address_exclude(other.network)
        pieces += [Span(network, first, last) for network in rest]
    return pieces
