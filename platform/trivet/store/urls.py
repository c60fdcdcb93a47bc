"""Urls: the function URLs of the account, and which of them a public request means.

All of them are in memory: the gateway that holds this store is the only writer, and matching a
request asks nobody. Each write first reads again what its function has, so one whose fate is
unknown leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgpack
from redis.asyncio import Redis

from trivet.bus import keys
from trivet.bus.scripts import script
from trivet.core.invocations import Match
from trivet.core.urls import FunctionUrl, addressed, url_from_record, url_to_record
from trivet.store.durable import durable_call

_UNQUALIFIED = ""  # the URL of the function itself; those of aliases are kept beside it
_PAGE = 500


class UrlStore:
    """All function URLs of the account. A function has at most one."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._set = redis.register_script(script("set_url").source)
        self._by_id: dict[str, FunctionUrl] = {}
        self._by_function: dict[str, FunctionUrl] = {}
        self._writing = anyio.Lock()

    def __repr__(self) -> str:
        return f"<UrlStore {len(self._by_id)} URLs>"

    async def load(self) -> None:
        """Read all function URLs. Until then there are none."""
        with durable_call():
            members: Any = await self._redis.smembers(keys.URLS)
        functions = sorted(name.decode() for name in members)
        for start in range(0, len(functions), _PAGE):
            page = functions[start : start + _PAGE]
            with durable_call():
                pipeline = self._redis.pipeline(transaction=False)
                for function in page:
                    pipeline.hgetall(keys.function_urls(function))
                for function, records in zip(page, await pipeline.execute(), strict=True):
                    self._show(function, records)

    def get(self, function: str) -> FunctionUrl | None:
        return self._by_function.get(function)

    def match(self, host: str, path: str) -> Match | None:
        """What a request means that names a function URL, by its host or its path."""
        meant = addressed(host, path)
        url = self._by_id.get(meant[0]) if meant is not None else None
        if url is None or meant is None:
            return None
        return Match(
            function=url.function,
            payload_format="2.0",
            route_key="$default",
            api_id=url.id,
            path=meant[1],
            path_parameters={},
            url=url,
        )

    async def put(
        self, function: str, edit: Callable[[FunctionUrl | None], FunctionUrl]
    ) -> FunctionUrl | None:
        """Keep what `edit` makes of the function's URL; what it raises changes nothing.

        None: there is no such function.
        """
        async with self._writes_to(function):
            url = edit(self.get(function))
            # Named before it is there: a function that is named and has none is looked up in
            # vain, but one that has a URL and is not named would lose it at the next start.
            await self._redis.sadd(keys.URLS, function)
            is_kept = await self._set(
                keys=[keys.function_record(function), keys.function_urls(function)],
                args=[_UNQUALIFIED, msgpack.packb(url_to_record(url))],
            )
            if not is_kept:
                return None
            self._keep(url)
            return url

    async def delete(self, function: str) -> bool:
        """Delete the URL of a function. False if it has none."""
        async with self._writes_to(function):
            is_there = self.get(function) is not None
            if is_there:
                await self._redis.hdel(keys.function_urls(function), _UNQUALIFIED)
                await self._forget(function)
            return is_there

    async def refresh(self, function: str) -> None:
        """See what the server keeps for a function, which may be gone."""
        async with self._writes_to(function):
            if self.get(function) is None:
                await self._forget(function)

    @asynccontextmanager
    async def _writes_to(self, function: str) -> AsyncIterator[None]:
        """One write at a time, on top of what is really there."""
        with durable_call():
            async with self._writing:
                records: Any = await self._redis.hgetall(keys.function_urls(function))
                self._show(function, records)
                yield

    def _show(self, function: str, records: Mapping[bytes, bytes]) -> None:
        """Make these the URLs that requests to `function` can have."""
        before = self._by_function.pop(function, None)
        if before is not None:
            del self._by_id[before.id]
        packed = records.get(_UNQUALIFIED.encode())
        if packed is not None:
            self._keep(url_from_record(msgpack.unpackb(packed)))

    def _keep(self, url: FunctionUrl) -> None:
        self._by_function[url.function] = url
        self._by_id[url.id] = url

    async def _forget(self, function: str) -> None:
        self._show(function, {})
        await self._redis.srem(keys.URLS, function)
