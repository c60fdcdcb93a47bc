"""Accounts: the access keys that requests are signed with."""

from __future__ import annotations

import base64
import secrets
import string
from typing import Any

from redis.asyncio import Redis

from trivet.bus import keys
from trivet.bus.scripts import script
from trivet.store.durable import durable_call

_LETTERS = string.ascii_letters + string.digits


class AccountStore:
    """The account's access keys."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._ensure = redis.register_script(script("ensure_access_key").source)

    async def secrets(self) -> dict[str, str]:
        """Every access key id, with its secret."""
        with durable_call():
            pairs: Any = await self._redis.hgetall(keys.ACCESS_KEYS)
        return {key_id.decode(): secret.decode() for key_id, secret in pairs.items()}

    async def ensure(self) -> tuple[str, str]:
        """An access key id and its secret; made now if there is none.

        Two that start at once agree on one.
        """
        with durable_call():
            key_id, secret = await self._ensure(
                keys=[keys.ACCESS_KEYS], args=[_new_key_id(), _new_secret()]
            )
        return key_id.decode(), secret.decode()


def _new_key_id() -> str:
    """In AWS's form: AKIA, then sixteen letters and digits of base32."""
    return "AKIA" + base64.b32encode(secrets.token_bytes(10)).decode()


def _new_secret() -> str:
    """Forty letters and digits: nothing that a shell or a settings file would take for more."""
    return "".join(secrets.choice(_LETTERS) for _ in range(40))
