"""Ports: what an adapter may ask of the platform. The composition roots hand one in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from trivet.core.invocations import Event, Match, Reply
from trivet.core.triggers import Trigger, TriggerSet
from trivet.core.urls import FunctionUrl, Presented, Signer


class Platform(Protocol):
    """The platform as an adapter sees it: no stream, no pool, no environment."""

    @property
    def region(self) -> str: ...

    @property
    def account(self) -> str: ...

    def match(self, host: str, method: str, path: str) -> Match | None:
        """The configured Route that this request meets, or None. `path` is percent-decoded.

        A Match with a `url` came to a function URL: `authorize` it before it is invoked.
        """
        ...

    async def authorize(self, url: FunctionUrl, request: Presented) -> Signer | None:
        """Who signed this request to a function URL, or None if anybody may use it.

        Raises Forbidden, or the error that AWS answers a bad signature with.
        """
        ...

    async def invoke(self, event: Event) -> Reply:
        """Run `event` now and wait for its Reply.

        Raises FunctionNotFound, RequestTooLarge (payload over 6 MB), Throttled (nobody had room
        in time) and PlatformError (the platform could not run it, or could not tell).
        """
        ...


class Publisher(Protocol):
    """The durable lane as an adapter sees it."""

    async def publish(self, event: Event, *, once: str = "") -> bool:
        """Accept `event` for asynchronous invocation: returns when it is on disk.

        `once` is an idempotency key of the function: a second event with the same key within 24
        hours is dropped, and False returned. Raises FunctionNotFound, RequestTooLarge (payload
        over 1 MB), Throttled (the lane is full: try again later) and Unavailable.
        """
        ...


class Triggers(Protocol):
    """The schedules and watched folders of the account, as an adapter sees them."""

    async def other_than(self, seen: TriggerSet | None) -> TriggerSet:
        """All triggers, as soon as they are others than `seen`; at once for None."""
        ...


class Memory(Protocol):
    """What an adapter remembers of each of its triggers, over restarts."""

    async def recall(self, trigger: Trigger) -> dict[bytes, bytes]:
        """Everything remembered of `trigger`. Raises Unavailable."""
        ...

    async def remember(self, trigger: Trigger, values: Mapping[bytes, bytes | None]) -> None:
        """Keep `values`, none of whose names is empty; forget those that are None.

        On disk when it returns; nothing is kept of a trigger that went. Raises Unavailable.
        """
        ...


class Host(Protocol):
    """What an adapter with a process of its own is given: one that listens to no listener."""

    @property
    def region(self) -> str: ...

    @property
    def account(self) -> str: ...

    @property
    def publisher(self) -> Publisher: ...

    @property
    def triggers(self) -> Triggers: ...

    @property
    def memory(self) -> Memory: ...
