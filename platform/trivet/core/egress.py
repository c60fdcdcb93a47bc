"""Egress: what a function may reach beyond its own machine, as a value.

    none                                       nothing
    internet                                   every public address
    api.example.com *.s3.example.com           names, and the addresses that DNS gives for them
    198.51.100.0/24:443 10.0.0.0/8:5432-5433   networks, with one port, a span of ports, or all

Names and networks may stand in one list. A private address is reached only where the operator
opened it as well, see `opened`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What is nowhere in the internet, or one link's alone. The firewall keeps functions out of it, and
# no name may lead there.
PRIVATE: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/3",
        "::/96",
        "fc00::/7",
        "fe80::/10",
        "ff00::/8",
    )
)

LAST_PORT = 65_535
MOST_ENTRIES = 64

# A name with a dot in it, so that a misspelt word is an error and not a name nobody answers to;
# tags cannot hold the star of "*.example.com", so ".example.com" says the same.
_NAME = re.compile(
    r"(?=.{1,255}\Z)(?:\*?\.)?(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z][a-z0-9-]{0,62}\.?",
)
_NETWORK = re.compile(r"(?:\[([0-9a-f:.]+(?:/\d+)?)\]|([0-9.]+(?:/\d+)?))(?::(\d+)(?:-(\d+))?)?")


class Kind(StrEnum):
    NONE = "none"
    INTERNET = "internet"
    LISTED = "listed"


@dataclass(frozen=True, slots=True)
class Rule:
    """Addresses that may be reached on TCP and UDP ports, first and last included."""

    network: Network
    first_port: int = 0
    last_port: int = LAST_PORT

    def __str__(self) -> str:
        """As `parse` reads it."""
        address = f"[{self.network}]" if self.network.version == 6 else str(self.network)
        if (self.first_port, self.last_port) == (0, LAST_PORT):
            return address
        if self.first_port == self.last_port:
            return f"{address}:{self.first_port}"
        return f"{address}:{self.first_port}-{self.last_port}"


@dataclass(frozen=True, slots=True)
class Egress:
    """What may be reached. `rules` and `names` say it when it is LISTED, and are empty else.

    A name is in lower case, without a dot at its end; "*.example.com" is every name below
    example.com, and not example.com itself.
    """

    kind: Kind
    rules: tuple[Rule, ...] = ()
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As `parse` reads it."""
        if self.kind is not Kind.LISTED:
            return str(self.kind)
        return " ".join([*self.names, *map(str, self.rules)])

    def allows_name(self, name: str) -> bool:
        """Whether DNS may be asked for `name`: any letters' case, a dot at its end or none."""
        if self.kind is not Kind.LISTED:
            return self.kind is Kind.INTERNET
        name = name.lower().removesuffix(".")
        return any(_covers(pattern, name) for pattern in self.names)


NONE = Egress(Kind.NONE)
INTERNET = Egress(Kind.INTERNET)


def parse(text: str) -> Egress:
    """The egress that a setting or a tag describes. Raises ValueError, in words."""
    words = text.lower().split()
    if not words:
        raise ValueError('egress must be "none", "internet", or a list of names and networks')
    if words == ["none"]:
        return NONE
    if words == ["internet"]:
        return INTERNET
    if len(words) > MOST_ENTRIES:
        raise ValueError(f"egress lists {len(words)} destinations; {MOST_ENTRIES} is the most")
    rules: dict[Rule, None] = {}
    names: dict[str, None] = {}
    for word in words:
        if word in ("none", "internet"):
            raise ValueError(f'egress "{word}" stands alone; it cannot be part of a list')
        if _NAME.fullmatch(word):
            names["*" * word.startswith(".") + word.removesuffix(".")] = None
        else:
            rules[_rule(word)] = None
    return Egress(Kind.LISTED, tuple(rules), tuple(names))


def parse_networks(text: str) -> tuple[Rule, ...]:
    """The networks in a setting that takes only such, or nothing. Raises ValueError, in words."""
    return tuple(dict.fromkeys(_rule(word) for word in text.lower().split()))


def narrowed(most: Egress, wanted: Egress) -> Egress:
    """What `most` and `wanted` both allow.

    A name is never matched with a network: whose addresses a name has is not known here.
    """
    if most.kind is Kind.INTERNET:
        return wanted
    if wanted.kind is Kind.INTERNET:
        return most
    rules = [_common(*pair) for pair in product(most.rules, wanted.rules)]
    names = [
        *(name for name in wanted.names if any(_covers(other, name) for other in most.names)),
        *(name for name in most.names if any(_covers(other, name) for other in wanted.names)),
    ]
    both = Egress(
        Kind.LISTED, tuple(dict.fromkeys(filter(None, rules))), tuple(dict.fromkeys(names))
    )
    return both if both.rules or both.names else NONE


def opened(most: Egress, allow: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The networks that the operator named: only these may be private ones.

    `most` and `allow` are the settings `egress` and `egress_allow`.
    """
    return tuple(dict.fromkeys([*allow, *most.rules]))


def _covers(pattern: str, name: str) -> bool:
    """Whether `pattern` stands for `name`, or for all that the pattern `name` stands for."""
    return name == pattern or (pattern.startswith("*") and name.endswith(pattern[1:]))


def _common(one: Rule, other: Rule) -> Rule | None:
    first = max(one.first_port, other.first_port)
    last = min(one.last_port, other.last_port)
    if first > last or not one.network.overlaps(other.network):
        return None
    smaller = max(one.network, other.network, key=lambda network: network.prefixlen)
    return Rule(smaller, first, last)


def _rule(word: str) -> Rule:
    match = _NETWORK.fullmatch(word)
    try:
        if match is None:
            bare = ipaddress.ip_network(word)  # an IPv6 address needs its brackets for a port only
            return Rule(bare)
        bracketed, plain, first, last = match.groups()
        network = ipaddress.ip_network(bracketed or plain)
    except ValueError as error:
        reason = f": {error}" if match else ""
        message = f'egress cannot be "{word}", which is neither a name nor a network{reason}'
        raise ValueError(message) from None
    if bracketed and network.version == 4:
        raise ValueError(f'egress cannot be "{word}": an IPv4 network takes no brackets')
    if first is None:
        return Rule(network)
    ports = int(first), int(last or first)
    if not 1 <= ports[0] <= ports[1] <= LAST_PORT:
        raise ValueError(f'egress cannot be "{word}": ports lie between 1 and {LAST_PORT}')
    return Rule(network, *ports)
