"""Roles: the key from which the credentials of all functions follow."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis

from trivet.bus import keys
from trivet.core.roles import KEY_BYTES, Credentials, Session, issue, recognise
from trivet.store.durable import durable_call


class Roles:
    """Issues and recognises the credentials of functions, without asking anybody."""

    def __init__(self, key: bytes, *, now_s: Callable[[], float] = time.time) -> None:
        self._key = key
        self._now_s = now_s

    def __repr__(self) -> str:
        return "<Roles>"

    def issue(self, function: str, role: str) -> Credentials:
        """Credentials for an environment that starts now. `role`: the function's role ARN."""
        return issue(self._key, Session(function, role, int(self._now_s())))

    def recognise(self, access_key: str, token: str) -> tuple[str, Session] | None:
        """Secret and session of credentials that were issued here, expired or not."""
        return recognise(self._key, access_key, token)


class RoleStore:
    """The platform's role key, on the durable server: all of its nodes share it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def ensure(self) -> Roles:
        """Roles by the key that is there; made now if there is none.

        Two that start at once agree on one. Raises Unavailable when the server does not answer.
        """
        with durable_call():
            await self._redis.set(keys.ROLE_KEY, secrets.token_bytes(KEY_BYTES), nx=True)
            key: Any = await self._redis.get(keys.ROLE_KEY)
        return Roles(key)
