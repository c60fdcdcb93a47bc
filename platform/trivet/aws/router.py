"""Router: which operation of a REST service a method and a path mean."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from .model import Model

_LABEL = re.compile(r"\{([^{}+]+)(\+?)\}\Z")


@dataclass(frozen=True, slots=True)
class Found:
    operation: str
    labels: dict[str, str]  # percent-decoded


@dataclass(frozen=True, slots=True)
class _Endpoint:
    operation: str
    labels: tuple[str, ...]
    query: tuple[tuple[str, str], ...]  # what the query must hold: ("List", "ALL")


@dataclass(slots=True)
class _Node:
    literals: dict[str, _Node] = field(default_factory=dict)
    label: _Node | None = None
    greedy: _Node | None = None  # takes the rest of the path
    endpoints: dict[str, list[_Endpoint]] = field(default_factory=dict)  # by method


class Router:
    """A tree of path segments. A literal goes before a label, a label before a greedy one."""

    def __init__(self, model: Model) -> None:
        self._root = _Node()
        for name, operation in model.operations.items():
            self._add(name, operation["http"]["method"], operation["http"]["requestUri"])

    def find(self, method: str, path: str, query: bytes) -> Found | None:
        """The operation meant, or None. `path` is still percent-encoded."""
        segments = path.strip("/").split("/")
        return _walk(self._root, segments, 0, [], lambda node: _endpoint(node, method, query))

    def _add(self, operation: str, method: str, uri: str) -> None:
        path, _, query = uri.partition("?")
        node, labels = self._root, []
        for segment in path.strip("/").split("/"):
            match = _LABEL.match(segment)
            if match is None:
                node = node.literals.setdefault(segment, _Node())
                continue
            labels.append(match[1])
            if match[2]:
                node.greedy = node.greedy or _Node()
                node = node.greedy
            else:
                node.label = node.label or _Node()
                node = node.label
        demands = tuple(parse_qsl(query, keep_blank_values=True))
        endpoints = node.endpoints.setdefault(method, [])
        endpoints.append(_Endpoint(operation, tuple(labels), demands))
        endpoints.sort(key=lambda endpoint: -len(endpoint.query))


def _walk(
    node: _Node,
    segments: list[str],
    index: int,
    values: list[str],
    endpoint_of: Callable[[_Node], _Endpoint | None],
) -> Found | None:
    if index == len(segments):
        return _found(endpoint_of(node), values)
    segment = segments[index]
    following = node.literals.get(segment)
    if following is not None:
        found = _walk(following, segments, index + 1, values, endpoint_of)
        if found is not None:
            return found
    if node.label is not None and segment:
        found = _walk(node.label, segments, index + 1, [*values, segment], endpoint_of)
        if found is not None:
            return found
    if node.greedy is not None:
        rest = "/".join(segments[index:])
        return _found(endpoint_of(node.greedy), [*values, rest])
    return None


def _found(endpoint: _Endpoint | None, values: list[str]) -> Found | None:
    if endpoint is None:
        return None
    labels = {
        name: unquote(value) if "%" in value else value
        for name, value in zip(endpoint.labels, values, strict=True)
    }
    return Found(endpoint.operation, labels)


def _endpoint(node: _Node, method: str, query: bytes) -> _Endpoint | None:
    for endpoint in node.endpoints.get(method, ()):
        if not endpoint.query:
            return endpoint
        given = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        if all(demand in given for demand in endpoint.query):
            return endpoint
    return None
