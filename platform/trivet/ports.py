"""Ports: what an adapter may ask of the platform. The composition roots hand one in."""

from __future__ import annotations

from typing import Protocol

from trivet.core.invocations import Event, Match, Reply


class Platform(Protocol):
    """The platform as an adapter sees it: no stream, no pool, no environment."""

    @property
    def region(self) -> str: ...

    @property
    def account(self) -> str: ...

    def match(self, host: str, method: str, path: str) -> Match | None:
        """The configured Route that this request meets, or None. `path` is percent-decoded."""
        ...

    async def invoke(self, event: Event) -> Reply:
        """Run `event` now and wait for its Reply.

        Raises FunctionNotFound, RequestTooLarge (payload over 6 MB), Throttled (nobody had room
        in time) and PlatformError (the platform could not run it, or could not tell).
        """
        ...
