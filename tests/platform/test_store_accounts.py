"""Access keys: made once, in AWS's form."""

from __future__ import annotations

import re

import anyio
import pytest
from redis.asyncio import Redis

from trivet.bus import keys
from trivet.store.accounts import AccountStore

pytestmark = pytest.mark.anyio


async def test_a_key_is_made_once(durable: Redis) -> None:
    key_id, secret = await AccountStore(durable).ensure()
    assert re.fullmatch(r"AKIA[A-Z2-7]{16}", key_id)
    assert re.fullmatch(r"[A-Za-z0-9]{40}", secret)
    assert await AccountStore(durable).ensure() == (key_id, secret)
    assert await AccountStore(durable).secrets() == {key_id: secret}


async def test_two_starters_agree(durable: Redis) -> None:
    made: list[tuple[str, str]] = []

    async def start() -> None:
        made.append(await AccountStore(durable).ensure())

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(start)
    assert len(made) == 8
    assert len(set(made)) == 1
    assert await durable.hlen(keys.ACCESS_KEYS) == 1


async def test_no_key_yet(durable: Redis) -> None:
    assert await AccountStore(durable).secrets() == {}
