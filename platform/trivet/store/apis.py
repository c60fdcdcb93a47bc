"""APIs: HTTP APIs with their routes and integrations, and what a public request meets.

All of them are in memory: the gateway that holds this store is the only writer, and matching a
request asks nobody. A write whose fate is unknown makes the next write read everything again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import anyio
import msgpack
from redis.asyncio import Redis

from trivet.bus import keys
from trivet.core.invocations import Match
from trivet.core.routes import Found, RouteTable, parse_route_key
from trivet.store.durable import durable_call

DEFAULT_API = "default"
"""Id of the API that belongs to the platform: its routes stand on the listener as they are."""

FALLBACK = "/_api/"
"""Reaches an API by its id where its host name does not resolve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Integration:
    """What a route leads to: a function, and the form of the event it is given."""

    id: str
    function: str  # name
    payload_format: str  # "1.0" or "2.0"
    uri: str = ""  # as the caller wrote it; empty: the function's ARN
    description: str = ""
    is_managed: bool = False  # made by quick create


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route key, and the integration that it leads to."""

    id: str
    key: str
    integration_id: str | None = None
    operation_name: str | None = None
    is_managed: bool = False  # made by quick create


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What makes an API reachable. The only name is `$default`, and changes show at once."""

    created_ms: int
    updated_ms: int
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    is_managed: bool = False  # made by quick create


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """An HTTP API. Without a stage nothing reaches it, as at AWS."""

    id: str
    name: str
    created_ms: int
    description: str | None = None
    version: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    quick_function: str | None = None  # the function that quick create made it for
    integrations: tuple[Integration, ...] = ()
    routes: tuple[Route, ...] = ()
    stage: Stage | None = None

    def integration(self, integration_id: str | None) -> Integration | None:
        return next((i for i in self.integrations if i.id == integration_id), None)

    def route(self, route_id: str) -> Route | None:
        return next((r for r in self.routes if r.id == route_id), None)


class ApiStore:
    """All APIs of the account."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._apis: dict[str, Api] = {}
        self._tables: dict[str, RouteTable[Integration]] = {}
        self._quick: dict[str, str] = {}  # function: id of its first quick-created API
        self._writing = anyio.Lock()
        self._is_stale = False

    def __repr__(self) -> str:
        return f"<ApiStore {len(self._apis)} APIs>"

    async def load(self) -> None:
        """Read all APIs. Until then there are none."""
        with durable_call():
            await self._load()

    async def ensure_default(self) -> None:
        """Make the platform's own API if it is not there."""
        if self.get(DEFAULT_API) is None:
            now_ms = time.time_ns() // 1_000_000
            stage = Stage(created_ms=now_ms, updated_ms=now_ms)
            await self.create(Api(id=DEFAULT_API, name=DEFAULT_API, created_ms=now_ms, stage=stage))

    def get(self, api_id: str) -> Api | None:
        return self._apis.get(api_id)

    def all(self) -> list[Api]:
        """In the order in which they were made."""
        return sorted(self._apis.values(), key=lambda api: (api.created_ms, api.id))

    async def create(self, api: Api) -> None:
        """Keep a new API. Its id must be new."""
        async with self._writes():
            await self._write(api)

    async def change(self, api_id: str, edit: Callable[[Api], Api]) -> Api | None:
        """Keep what `edit` makes of an API; what it raises changes nothing. None: no such API."""
        async with self._writes():
            before = self._apis.get(api_id)
            if before is None:
                return None
            after = edit(before)
            await self._write(after)
            return after

    async def add_route(
        self, *, route_key: str, function: str, payload_format: str, route_id: str
    ) -> None:
        """Let a route of the platform's own API lead to a function; once, if called again."""

        def edit(api: Api) -> Api:
            if any(route.key == route_key for route in api.routes):
                return api
            integration = Integration(id=route_id, function=function, payload_format=payload_format)
            route = Route(id=route_id, key=route_key, integration_id=route_id)
            return replace(
                api,
                integrations=(*api.integrations, integration),
                routes=(*api.routes, route),
            )

        await self.change(DEFAULT_API, edit)

    async def delete(self, api_id: str) -> bool:
        """Delete an API with all its routes. False if there was none."""
        async with self._writes():
            if api_id not in self._apis:
                return False
            self._is_stale = True
            await self._redis.hdel(keys.APIS, api_id)
            self._is_stale = False
            self._show({id: api for id, api in self._apis.items() if id != api_id})
            return True

    def match(self, host: str, method: str, path: str) -> Match | None:
        """The configured route that a public request meets. `path` is percent-decoded.

        A host name that names an API means that API and no other. Else the path may name one
        (/_api/ID/path), or meet a route of the platform's own API, or begin with the name of a
        function for which an API was quick-created; and last the platform's own `$default`.
        """
        labels = host.lower().split(".", 2)
        if len(labels) > 1 and labels[1].split(":")[0] == "execute-api":
            return self._match_in(labels[0], method, path)
        if path.startswith(FALLBACK):
            api_id, _, rest = path[len(FALLBACK) :].partition("/")
            if api_id in self._tables:
                return self._match_in(api_id, method, f"/{rest}")
        table = self._tables.get(DEFAULT_API)
        if table is not None and (found := table.match_path(method, path)):
            return _match(DEFAULT_API, found, path)
        quick = self._quick.get(path[1:].partition("/")[0])
        if quick is not None and (match := self._match_in(quick, method, path)):
            return match
        if table is not None and (found := table.match_default()):
            return _match(DEFAULT_API, found, path)
        return None

    def _match_in(self, api_id: str, method: str, path: str) -> Match | None:
        table = self._tables.get(api_id)
        found = table.match(method, path) if table is not None else None
        return _match(api_id, found, path) if found is not None else None

    @asynccontextmanager
    async def _writes(self) -> AsyncIterator[None]:
        """One write at a time, on top of what is really there."""
        with durable_call():
            async with self._writing:
                if self._is_stale:
                    await self._load()
                yield

    async def _write(self, api: Api) -> None:
        self._is_stale = True
        # redis-py's own type for a field's value leaves bytes out, which it takes.
        fields: Any = {api.id: msgpack.packb(asdict(api))}
        await self._redis.hset(keys.APIS, mapping=fields)
        self._is_stale = False
        self._show({**self._apis, api.id: api})

    async def _load(self) -> None:
        records: Any = await self._redis.hvals(keys.APIS)
        apis = (_api_from_record(msgpack.unpackb(record)) for record in records)
        self._show({api.id: api for api in apis})
        self._is_stale = False

    def _show(self, apis: dict[str, Api]) -> None:
        """Make these the APIs that requests meet; compile only what changed."""
        self._tables = {
            id: self._tables[id] if self._apis.get(id) is api else _table(api)
            for id, api in apis.items()
            if api.stage is not None
        }
        self._apis = apis
        self._quick = {}
        for api in self.all():
            if api.quick_function is not None:
                self._quick.setdefault(api.quick_function, api.id)


def _table(api: Api) -> RouteTable[Integration]:
    """Routes that lead nowhere are left out: nothing could answer for them."""
    routes = []
    for route in api.routes:
        key, integration = parse_route_key(route.key), api.integration(route.integration_id)
        if key is not None and integration is not None:
            routes.append((key, integration))
    return RouteTable(routes)


def _match(api_id: str, found: Found[Integration], path: str) -> Match:
    return Match(
        function=found.target.function,
        payload_format=found.target.payload_format,
        route_key=found.key.text,
        api_id=api_id,
        path=path,
        path_parameters=found.parameters,
    )


def _api_from_record(record: Mapping[str, Any]) -> Api:
    fields = dict(record)
    fields["integrations"] = tuple(Integration(**each) for each in record["integrations"])
    fields["routes"] = tuple(Route(**each) for each in record["routes"])
    fields["stage"] = Stage(**record["stage"]) if record["stage"] is not None else None
    return Api(**fields)
