"""Probes: how soon a platform serves again after one of its parts was struck."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
from redis.asyncio import Redis
from tests.chaos.accepted import Accepted, AcceptedFile
from tests.chaos.functions import COLD, ECHO, TICK
from tests.e2e.conftest import Running

from trivet.bus import keys
from trivet.client import AsyncClient

LANES = ("express", "durable")

ASK_EVERY_S = 0.01
ANSWER_WITHIN_S = 2.0
GIVE_UP_S = 30.0


class NotRecovered(Exception):
    """It does not serve again."""


class Probes:
    """Each probe returns the instant (of time.monotonic) at which its part served again."""

    def __init__(
        self,
        running: Running,
        client: AsyncClient,
        file: AcceptedFile,
        servers: dict[str, Redis],
    ) -> None:
        """`servers`: the lanes', reached past everything that stands between them and us."""
        self._running = running
        self._client = client
        self._file = file
        self._servers = servers
        self._count = 0
        self.refused = 0  # connections
        self.doubtful: set[int] = set()  # events that may have been accepted
        where = urlsplit(running.env["AWS_ENDPOINT_URL"])
        self._address = (where.hostname or "", where.port or 0)
        self._lambda: Any = running.client("lambda", read_timeout=5, connect_timeout=5)

    def after(self, part: str) -> Callable[[], Awaitable[float]]:
        """What to ask after this part was struck."""
        return {
            "gateway": self.answers,
            "adapters": self.adapts,
            "zygote": self.starts_cold,
            "durable": self.runs_events,
            "disk": self.runs_events,
        }.get(part, self.calls)

    async def calls(self) -> float:
        """A synchronous call is answered."""

        async def once() -> bool:
            self._count += 1
            given = {"n": self._count, "kind": "echo"}
            result = await self._client.invoke(ECHO, given, timeout=ANSWER_WITHIN_S)
            return result.function_error is None

        return await self._until(once)

    async def answers(self) -> float:
        """The listener takes connections, and none is refused; a request is answered."""

        async def once() -> bool:
            try:
                stream = await anyio.connect_tcp(*self._address)
            except OSError:
                self.refused += 1
                raise
            async with stream:
                await stream.send(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                with anyio.fail_after(ANSWER_WITHIN_S):
                    return (await stream.receive()).startswith(b"HTTP/1.1 ")

        return await self._until(once)

    async def adapts(self) -> float:
        """The schedule of each second fires: its last slot is of now."""
        since = time.time()

        async def once() -> bool:
            last: Any = await self._servers["durable"].xrevrange(keys.ledger(TICK), count=1)
            return bool(last) and int(last[0][0].partition(b"-")[0]) > since * 1000

        return await self._until(once)

    async def starts_cold(self) -> float:
        """A changed function is called: no environment of it is there, so one is started."""
        self._count += 1
        variables = {"CHAOS": str(self._count)}

        def change() -> None:
            self._lambda.update_function_configuration(
                FunctionName=COLD, Environment={"Variables": variables}
            )

        is_changed = False

        async def once() -> bool:
            nonlocal is_changed
            if not is_changed:
                await anyio.to_thread.run_sync(change)
                is_changed = True
            given = {"n": self._count, "kind": "echo"}
            result = await self._client.invoke(COLD, given, timeout=ANSWER_WITHIN_S)
            return result.function_error is None

        return await self._until(once)

    async def runs_events(self) -> float:
        """An event is accepted, and has ended."""
        before = 0

        async def accepted() -> bool:
            nonlocal before
            before = await self._ended(COLD)
            self._count += 1
            n = -self._count  # which another probe counts on meanwhile
            self.doubtful.add(n)
            given = {"n": n, "kind": "ok"}
            event_id = await self._client.publish(COLD, given, timeout=ANSWER_WITHIN_S)
            self._file.add([Accepted(event_id, n, COLD, "ok")])
            return True

        async def ended() -> bool:
            return await self._ended(COLD) > before

        await self._until(accepted)
        return await self._until(ended)

    async def pings(self, lane: str) -> float:
        """The server of a lane answers."""

        async def once() -> bool:
            with anyio.fail_after(0.5):
                return bool(await self._servers[lane].ping())

        return await self._until(once)

    async def _ended(self, function: str) -> int:
        found = await self._servers["durable"].hget(keys.totals(function), "success")
        return int(found or 0)

    async def _until(self, once: Callable[[], Awaitable[bool]]) -> float:
        ends = time.monotonic() + GIVE_UP_S
        said = ""
        while time.monotonic() < ends:
            try:
                if await once():
                    return time.monotonic()
            except Exception as error:  # whatever it is, it does not serve yet
                said = repr(error)
            await anyio.sleep(ASK_EVERY_S)
        raise NotRecovered(f"not after {GIVE_UP_S:g} s: {once.__qualname__} {said}")
