"""Client: the platform as functions that return when it is done."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from typing import Any, Self, TypeVar

from trivet.client.answers import LogLine, Result
from trivet.client.flights import Connections
from trivet.client.operations import (
    INVOKE_TIMEOUT_S,
    PUBLISH_TIMEOUT_S,
    Operations,
    Publication,
)
from trivet.client.places import find_place
from trivet.client.wires import BlockingNetwork

T = TypeVar("T")


class Client:
    """A platform, for code that waits. Threads may share one; a fork needs one of its own."""

    def __init__(
        self,
        endpoint: str = "",
        *,
        access_key: str = "",
        secret: str = "",
        region: str = "",
        data: str = "",
        connections: int = 32,
    ) -> None:
        """Without `endpoint` ("http://127.0.0.1:4566"), the platform that AWS_ENDPOINT_URL names,
        with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; without that, or with `data`, the one that
        runs on that data folder (else on TRIVET_DATA).

        At most `connections` requests are on their way at once; further ones wait. Raises
        SettingsError, and Unavailable where no platform runs.
        """
        place = find_place(endpoint, access_key, secret, region, data)
        network = BlockingNetwork(connections)
        self._connections = Connections(place, network)
        self._operations = Operations(self._connections, network)

    def __repr__(self) -> str:
        return f"<Client {self._connections}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. What another thread is waiting for still comes."""
        _done(self._operations.close())

    def invoke(
        self, function: str, payload: Any = None, *, timeout: float = INVOKE_TIMEOUT_S
    ) -> Result:
        """Run a function and wait for its Result, an error of its own included.

        `function` is a name or an ARN, `payload` anything that JSON can hold (at most 6 MB), or
        bytes that are JSON already. `timeout` in seconds is only for the waiting: the function runs
        on. Raises FunctionNotFound, Throttled (nobody had room: try again later), RequestTooLarge,
        NoAnswer (the timeout, also a TimeoutError), and Unavailable (no platform there, or lost on
        the way). It is never sent twice.
        """
        return _done(self._operations.invoke(function, payload, timeout))

    def publish(
        self,
        function: str,
        payload: Any = None,
        *,
        once: str = "",
        timeout: float = PUBLISH_TIMEOUT_S,
    ) -> str:
        """Have a function run later, at least once. Returns when the event is on disk: its id.

        With `once`, an idempotency key, a second event of the function with the same key within 24
        hours is dropped, and "" returned. `payload` is at most 1 MB. Raises as `invoke` does;
        Throttled says that the lane is full. After NoAnswer or Unavailable it may have been
        accepted: with `once` it can safely be published again.
        """
        events: list[Publication] = [(function, payload, once)]
        return _done(self._operations.publish_many(events, timeout))[0]

    def publish_many(
        self, events: Iterable[Publication], *, timeout: float = PUBLISH_TIMEOUT_S
    ) -> list[str]:
        """Publish (function, payload) or (function, payload, once), many in a request.

        Returns their ids, in order, when all are on disk. `events` may be a generator: it is read
        as they leave. Raises as `publish` does; nothing more is sent then, and the error's
        `members["ids"]` tells the ids of those that were answered, "" for each that was not taken.
        `timeout` in seconds is for one request of up to 1,000 events.
        """
        return _done(self._operations.publish_many(events, timeout))

    def logs(
        self,
        function: str,
        *,
        follow: bool = False,
        since: float = 600.0,
        timeout: float = PUBLISH_TIMEOUT_S,
    ) -> Iterator[LogLine]:
        """The lines of a function's log of the last `since` seconds; with `follow`, on and on.

        Raises FunctionNotFound and Unavailable. `timeout` in seconds is for one look.
        """
        lines = self._operations.logs(function, follow, since, timeout)
        try:
            while (line := _done(_next(lines))) is not None:
                yield line
        finally:
            _done(lines.aclose())


async def _next(lines: AsyncGenerator[LogLine, None]) -> LogLine | None:
    return await anext(lines, None)


def _done(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine over a blocking network, which never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("a blocking client waited for an event loop")
