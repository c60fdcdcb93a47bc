"""Routes: which configured route an HTTP request meets, with AWS's precedence.

A route key is "METHOD /path", where a segment may be a variable ("/users/{id}") and the last one
may be greedy ("/files/{proxy+}"), or "$default". A full match comes before a greedy one, and that
before `$default`; among full matches a written segment comes before a variable, and on one and
the same path a method's own route before ANY.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

ANY = "ANY"
DEFAULT = "$default"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", ANY})

_VARIABLE = re.compile(r"\{([A-Za-z0-9._-]+)(\+?)\}\Z")
_WRITTEN = re.compile(r"[^\s{}?#\x00-\x1f\x7f]*\Z")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RouteKey:
    """A route key taken apart. `$default` has no method and no segments."""

    text: str
    method: str = ""
    segments: tuple[str, ...] = ()  # "" where a variable stands
    variables: tuple[tuple[int, str], ...] = ()  # position of the segment, name
    is_greedy: bool = False  # the last segment is a variable that takes all that is left

    @property
    def is_default(self) -> bool:
        return not self.method

    @property
    def shape(self) -> tuple[str, tuple[str | None, ...], bool]:
        """Equal for two keys that meet the same requests, whatever their variables are called."""
        places = {position for position, _ in self.variables}
        written = tuple(None if i in places else s for i, s in enumerate(self.segments))
        return self.method, written, self.is_greedy


def parse_route_key(text: str) -> RouteKey | None:
    """The route key that `text` writes, or None where AWS would call it malformed."""
    if text == DEFAULT:
        return RouteKey(text)
    method, space, path = text.partition(" ")
    if not space or method not in METHODS or not path.startswith("/"):
        return None
    segments: list[str] = []
    variables: list[tuple[int, str]] = []
    is_greedy = False
    for position, segment in enumerate(path[1:].split("/")):
        variable = _VARIABLE.match(segment)
        if is_greedy or (variable is None and not _WRITTEN.match(segment)):
            return None
        if variable is not None:
            variables.append((position, variable[1]))
            is_greedy = variable[2] == "+"
        segments.append("" if variable else segment)
    if len({name for _, name in variables}) < len(variables):
        return None
    return RouteKey(text, method, tuple(segments), tuple(variables), is_greedy)


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What a request met, and the path parameters of that meeting."""

    key: RouteKey
    target: T
    parameters: dict[str, str]


@dataclass(slots=True)
class _Node(Generic[T]):
    """A place in the tree of paths: one level is one segment."""

    written: dict[str, _Node[T]] = field(default_factory=dict)
    variable: _Node[T] | None = None
    full: dict[str, tuple[RouteKey, T]] = field(default_factory=dict)  # by method
    greedy: dict[str, tuple[RouteKey, T]] = field(default_factory=dict)  # by method


class RouteTable(Generic[T]):
    """Routes compiled for matching. Of two keys with one shape the first wins."""

    def __init__(self, routes: Iterable[tuple[RouteKey, T]]) -> None:
        self._root: _Node[T] = _Node()
        self._default: tuple[RouteKey, T] | None = None
        for key, target in routes:
            self._add(key, target)

    def _add(self, key: RouteKey, target: T) -> None:
        if key.is_default:
            self._default = self._default or (key, target)
            return
        node = self._root
        places = {position for position, _ in key.variables}
        for position, segment in enumerate(key.segments[:-1] if key.is_greedy else key.segments):
            if position in places:
                node.variable = node.variable or _Node()
                node = node.variable
            else:
                node = node.written.setdefault(segment, _Node())
        (node.greedy if key.is_greedy else node.full).setdefault(key.method, (key, target))

    def match(self, method: str, path: str) -> Found[T] | None:
        """The route that a request meets. `path` is percent-decoded and begins with "/"."""
        return self.match_path(method, path) or self.match_default()

    def match_path(self, method: str, path: str) -> Found[T] | None:
        """As `match`, without `$default`."""
        if not path.startswith("/"):
            return None
        segments = path[1:].split("/")
        met = next(_full(self._root, segments, 0, method), None)
        met = met or next(_greedy(self._root, segments, 0, method), None)
        if met is None:
            return None
        key, target = met
        parameters = {name: segments[position] for position, name in key.variables}
        if key.is_greedy:
            position, name = key.variables[-1]
            parameters[name] = "/".join(segments[position:])
        return Found(key, target, parameters)

    def match_default(self) -> Found[T] | None:
        return self._default and Found(*self._default, {})


# A place in the tree is reached in one way only, so a search visits each place at most once:
# however a path is made, the cost is bounded by the number of routes.


def _full(
    node: _Node[T], segments: list[str], depth: int, method: str
) -> Iterator[tuple[RouteKey, T]]:
    if depth == len(segments):
        met = node.full.get(method) or node.full.get(ANY)
        if met is not None:
            yield met
        return
    segment = segments[depth]
    written = node.written.get(segment)
    if written is not None:
        yield from _full(written, segments, depth + 1, method)
    if node.variable is not None and segment:
        yield from _full(node.variable, segments, depth + 1, method)


def _greedy(
    node: _Node[T], segments: list[str], depth: int, method: str
) -> Iterator[tuple[RouteKey, T]]:
    if depth == len(segments):
        return
    segment = segments[depth]
    written = node.written.get(segment)
    if written is not None:
        yield from _greedy(written, segments, depth + 1, method)
    if node.variable is not None and segment:
        yield from _greedy(node.variable, segments, depth + 1, method)
    if segment or depth + 1 < len(segments):
        met = node.greedy.get(method) or node.greedy.get(ANY)
        if met is not None:
            yield met
