"""Headroom: what the durable server may still take before memory or disk runs out.

Events are refused while there is still room, so that those which were accepted can end.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import anyio
import redis.asyncio
import structlog

from trivet.errors import Unavailable
from trivet.settings import Settings
from trivet.store.durable import durable_call

log = structlog.get_logger()

LOOK_EVERY_S = 1.0
MOST_MEMORY = 0.8  # of maxmemory


class Headroom:
    """Looks once a second. `full()` says why nothing is to be accepted now."""

    def __init__(self, durable: redis.asyncio.Redis, settings: Settings) -> None:
        self._durable = durable
        # Where the server writes, if that can be seen from here.
        self._folder = None if settings.durable_url else settings.data_path
        self._reserve_bytes = settings.disk_reserve_mb * 2**20
        self._reason = ""

    def __repr__(self) -> str:
        return f"<Headroom {self._reason or 'enough'}>"

    def full(self) -> str:
        """Why nothing is to be accepted; empty while there is room."""
        return self._reason

    async def run(self) -> None:
        while True:
            try:
                with durable_call():
                    memory: Mapping[str, Any] = await self._durable.info("memory")
            except Unavailable:
                memory = {}  # publishers find out for themselves
            self._tell(self._look(memory))
            await anyio.sleep(LOOK_EVERY_S)

    def _look(self, memory: Mapping[str, Any]) -> str:
        used, most = memory.get("used_memory", 0), memory.get("maxmemory", 0)
        if most and used > MOST_MEMORY * most:
            return (
                f"The durable lane holds {used // 2**20} of {most // 2**20} MB; "
                "try again when its backlog is shorter."
            )
        if self._folder is not None:
            disk = os.statvfs(self._folder)
            free = disk.f_bavail * disk.f_frsize
            if free < self._reserve_bytes:
                return (
                    f"The disk of the durable lane has {free // 2**20} MB left; "
                    "free some space, or lower disk_reserve_mb."
                )
        return ""

    def _tell(self, reason: str) -> None:
        if bool(reason) != bool(self._reason):
            if reason:
                log.error("durable.full", reason=reason)
            else:
                log.info("durable.has_room")
        self._reason = reason
