"""AsyncClient: the platform as coroutines, on asyncio or trio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Any, Self

from trivet.client.answers import LogLine, Result
from trivet.client.flights import Connections
from trivet.client.operations import (
    INVOKE_TIMEOUT_S,
    PUBLISH_TIMEOUT_S,
    Operations,
    Publication,
)
from trivet.client.places import find_place
from trivet.client.wires import AsyncNetwork


class AsyncClient:
    """A platform, for code on an event loop. Tasks may share one; its names are `Client`'s."""

    def __init__(
        self,
        endpoint: str = "",
        *,
        access_key: str = "",
        secret: str = "",
        region: str = "",
        data: str = "",
        connections: int = 64,
    ) -> None:
        """Finds its platform as `Client` does, when it is made."""
        place = find_place(endpoint, access_key, secret, region, data)
        network = AsyncNetwork(connections)
        self._connections = Connections(place, network)
        self._operations = Operations(self._connections, network)

    def __repr__(self) -> str:
        return f"<AsyncClient {self._connections}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. What other tasks are waiting for still comes."""
        await self._operations.close()

    async def invoke(
        self,
        function: str,
        payload: Any = None,
        *,
        timeout: float = INVOKE_TIMEOUT_S,  # noqa: ASYNC109  # as in `Client`, so that one reads like the other
    ) -> Result:
        """Run a function and wait for its Result; see `Client.invoke`.

        A cancelled call stops waiting; the function runs on.
        """
        return await self._operations.invoke(function, payload, timeout)

    async def publish(
        self,
        function: str,
        payload: Any = None,
        *,
        once: str = "",
        timeout: float = PUBLISH_TIMEOUT_S,  # noqa: ASYNC109  # as in `Client`, so that one reads like the other
    ) -> str:
        """Have a function run later, at least once; see `Client.publish`."""
        events: list[Publication] = [(function, payload, once)]
        return (await self._operations.publish_many(events, timeout))[0]

    async def publish_many(
        self,
        events: Iterable[Publication],
        *,
        timeout: float = PUBLISH_TIMEOUT_S,  # noqa: ASYNC109  # as in `Client`, so that one reads like the other
    ) -> list[str]:
        """Publish (function, payload) or (function, payload, once); see `Client.publish_many`."""
        return await self._operations.publish_many(events, timeout)

    def logs(
        self,
        function: str,
        *,
        follow: bool = False,
        since: float = 600.0,
        timeout: float = PUBLISH_TIMEOUT_S,
    ) -> AsyncGenerator[LogLine, None]:
        """The lines of a function's log; see `Client.logs`. For `async for`."""
        return self._operations.logs(function, follow, since, timeout)
