"""Spares: bodies that were forked and jailed ahead of need, and wait for their function's start.

A spare is made for one version and has run nothing of it. It takes a place that nobody needs just
now, and is the first to give it up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from trivet.core.functions import FunctionVersion
from trivet.supervisor.bodies import Body

# The answer that made a version known as used leaves first, and so do events that follow at once.
AFTER_S = 0.005
# A spare that ended by itself was refused, say, and so would be the next.
REST_S = 1.0


class Spares:
    """Those of all versions, by the key of their version."""

    def __init__(
        self,
        most: int,
        loop: asyncio.AbstractEventLoop,
        make: Callable[[FunctionVersion], Body | None],
    ) -> None:
        """`most`: spares of one version at a time. `make` starts one, or sees no place for it."""
        self._most = most
        self._loop = loop
        self._make = make
        self._by_version: dict[str, deque[Body]] = {}
        self._wanted: dict[str, FunctionVersion] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._not_before = 0.0  # loop time

    def __repr__(self) -> str:
        return f"<Spares {len(self)} of {len(self._by_version)} versions>"

    def __len__(self) -> int:
        return sum(map(len, self._by_version.values()))

    def lacks(self, key: str) -> bool:
        return len(self._by_version.get(key, ())) < self._most

    def want(self, version: FunctionVersion) -> None:
        """Have one made as soon as there is time for it. Asked again whenever it is still lacking,
        so that nothing has to be kept in mind here."""
        if self._loop.time() < self._not_before:
            return
        self._wanted[version.key] = version
        if self._timer is None:
            self._timer = self._loop.call_later(AFTER_S, self._fire)

    def take(self, key: str) -> Body | None:
        """The oldest of a version: the one that is surely there already."""
        bodies = self._by_version.get(key)
        if not bodies:
            return None
        body = bodies.popleft()
        if not bodies:
            del self._by_version[key]
        return body

    def give_up(self) -> Body | None:
        """One that must make room: of the version whose spare has waited longest."""
        return self.take(next(iter(self._by_version))) if self._by_version else None

    def forget(self, key: str) -> list[Body]:
        """Those of a version that is in use no longer, now the caller's."""
        self._wanted.pop(key, None)
        return list(self._by_version.pop(key, ()))

    def discard(self, body: Body) -> bool:
        """It ended by itself. False if it is none of these."""
        for key, bodies in self._by_version.items():
            if body in bodies:
                bodies.remove(body)
                if not bodies:
                    del self._by_version[key]
                self._not_before = self._loop.time() + REST_S
                return True
        return False

    def _fire(self) -> None:
        self._timer = None
        wanted, self._wanted = self._wanted, {}
        for version in wanted.values():
            if self.lacks(version.key) and (body := self._make(version)) is not None:
                self._by_version.setdefault(version.key, deque()).append(body)
