"""Resolvers: the DNS servers that are asked on behalf of functions."""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import ip_address

Resolver = tuple[str, int]
"""Address and port."""

PORT = 53
MOST = 3  # as the C library bounds them

_WITH_PORT = re.compile(r"(?:\[(?P<long>[^]]+)\]|(?P<short>[0-9.]+))(?::(?P<port>\d{1,5}))?")


def parse_resolvers(text: str) -> tuple[Resolver, ...]:
    """The setting `resolvers`: "192.0.2.53 192.0.2.54:5353 [2001:db8::53]:5353", or nothing.

    Raises ValueError, in words.
    """
    words = text.split()
    if len(words) > MOST:
        raise ValueError(f"{len(words)} are named, and {MOST} are the most")
    return tuple(_resolver(word) for word in words)


def resolvers_in(text: str) -> tuple[Resolver, ...]:
    """Those that a resolv.conf names, as far as they can be used."""
    found: list[Resolver] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            with suppress(ValueError):
                ip_address(words[1].partition("%")[0])
                found.append((words[1], PORT))
    return tuple(found[:MOST])


def _resolver(word: str) -> Resolver:
    match = _WITH_PORT.fullmatch(word)
    address = (match["long"] or match["short"]) if match else word
    port = int(match["port"] or PORT) if match else PORT
    try:
        ip_address(address.partition("%")[0])
    except ValueError:
        port = 0
    if not 1 <= port <= 65_535:
        raise ValueError(f'"{word}" is not an address, with a port or without')
    return address, port
