"""The store of functions, against a real server."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest
from redis.asyncio import Redis

from trivet.bus import keys
from trivet.core.functions import Function, FunctionVersion, changed
from trivet.errors import Conflict, FunctionNotFound, PreconditionFailed, Unavailable
from trivet.store.functions import FunctionStore

pytestmark = pytest.mark.anyio


def function(name: str = "hello", *, revision: str = "r1", memory_mb: int = 128) -> Function:
    return Function(
        latest=FunctionVersion(
            function=name,
            runtime="python3.11",
            handler="app.handler",
            code_sha256="ab" * 32,
            memory_mb=memory_mb,
            environment={"KEY": "välue"},
        ),
        code_bytes=10,
        revision_id=revision,
        last_modified_ms=1_795_000_000_123,
        tags={"team": "a"},
        echoed={"Architectures": ["x86_64"]},
    )


async def test_a_function_is_there_for_the_next_gateway(durable: Redis) -> None:
    first = FunctionStore(durable)
    await first.create(function())
    assert first.cached("hello") == function()

    second = FunctionStore(durable)
    assert second.cached("hello") is None
    assert await second.get("hello") == function()
    assert second.cached("hello") == function()
    assert repr(second) == "<FunctionStore 1 in memory>"


async def test_what_is_not_there_is_none(durable: Redis) -> None:
    store = FunctionStore(durable)
    assert await store.get("nobody") is None
    assert await store.version("nobody", "0") is None
    assert await store.list(None, 10) == []
    with pytest.raises(FunctionNotFound):
        await store.delete("nobody")
    with pytest.raises(FunctionNotFound):
        await store.replace(function("nobody"), "r1")


async def test_a_name_is_taken_once(durable: Redis) -> None:
    store = FunctionStore(durable)
    await store.create(function())
    with pytest.raises(Conflict) as conflict:
        await store.create(function(revision="r2"))
    assert conflict.value.message == "Function already exist: hello"
    assert await store.get("hello") == function()
    assert await durable.ttl(keys.version_record("hello", function().latest.key)) == -1


async def test_a_write_that_is_repeated_because_its_answer_was_lost_succeeds(
    durable: Redis,
) -> None:
    store = FunctionStore(durable)
    await store.create(function())
    await FunctionStore(durable).create(function())
    changed_once = replace(function(), revision_id="r2")
    await store.replace(changed_once, "r1")
    await FunctionStore(durable).replace(changed_once, "r1")
    assert await FunctionStore(durable).get("hello") == changed_once


async def test_the_version_can_be_read_by_its_key(durable: Redis) -> None:
    store = FunctionStore(durable)
    await store.create(function())
    latest = function().latest
    assert await FunctionStore(durable).version("hello", latest.key) == latest


async def test_a_superseded_version_expires_and_comes_back_whole(durable: Redis) -> None:
    store = FunctionStore(durable)
    old, new = function(), function(revision="r2", memory_mb=256)
    await store.create(old)
    await store.replace(new, "r1")
    assert await store.get("hello") == new
    assert await store.version("hello", old.latest.key) == old.latest
    assert 0 < await durable.ttl(keys.version_record("hello", old.latest.key)) <= 3_600
    assert await durable.ttl(keys.version_record("hello", new.latest.key)) == -1

    await store.replace(replace(old, revision_id="r3"), "r2")
    assert await durable.ttl(keys.version_record("hello", old.latest.key)) == -1
    assert 0 < await durable.ttl(keys.version_record("hello", new.latest.key)) <= 3_600


async def test_the_same_version_again_does_not_expire(durable: Redis) -> None:
    store = FunctionStore(durable)
    await store.create(function())
    await store.replace(replace(function(), revision_id="r2", description="new"), "r1")
    assert await durable.ttl(keys.version_record("hello", function().latest.key)) == -1


async def test_of_two_writers_the_second_is_told(durable: Redis) -> None:
    first, second = FunctionStore(durable), FunctionStore(durable)
    await first.create(function())
    seen = await second.get("hello")
    assert seen is not None
    await first.replace(replace(function(), revision_id="r2"), "r1")
    with pytest.raises(PreconditionFailed):
        await second.replace(replace(changed(seen, memory_mb=512), revision_id="x"), "r1")
    # Having lost, it reads again what the other wrote.
    after = await second.get("hello")
    assert after is not None
    assert after.revision_id == "r2"


async def test_deleted_is_gone_and_its_version_expires(durable: Redis) -> None:
    store = FunctionStore(durable)
    await store.create(function())
    await store.delete("hello")
    assert store.cached("hello") is None
    assert await store.get("hello") is None
    assert await store.list(None, 10) == []
    assert await store.count() == 0
    assert 0 < await durable.ttl(keys.version_record("hello", function().latest.key)) <= 3_600


async def test_functions_list_in_order_page_by_page(durable: Redis) -> None:
    store = FunctionStore(durable)
    for name in ("b", "a", "B", "a1", "c"):
        await store.create(function(name))
    fresh = FunctionStore(durable)
    first = await fresh.list(None, 3)
    rest = await fresh.list(first[-1].name, 3)
    assert [f.name for f in first] == ["B", "a", "a1"]
    assert [f.name for f in rest] == ["b", "c"]
    assert await fresh.count() == 5


async def test_the_index_repairs_itself(durable: Redis) -> None:
    store = FunctionStore(durable)
    await store.create(function("kept"))
    await store.create(function("also"))
    await durable.zadd(keys.FUNCTIONS, {"ghost": 0})
    await durable.zrem(keys.FUNCTIONS, "kept")

    fresh = FunctionStore(durable)
    assert [f.name for f in await fresh.list(None, 2)] == ["also"]
    assert await durable.zrange(keys.FUNCTIONS, 0, -1) == [b"also"]
    await fresh.get("kept")
    assert [f.name for f in await fresh.list(None, 2)] == ["also", "kept"]


async def test_records_are_plain_msgpack(durable: Redis) -> None:
    await FunctionStore(durable).create(function())
    record = msgpack.unpackb(await durable.get(keys.function_record("hello")))
    assert record["latest"]["environment"] == {"KEY": "välue"}
    assert record["revision_id"] == "r1"


async def test_a_server_that_is_away_is_unavailable_but_memory_answers(durable: Redis) -> None:
    away = Redis(unix_socket_path="/nonexistent/s")
    store = FunctionStore(away)
    with pytest.raises(Unavailable):
        await store.get("hello")
    with pytest.raises(Unavailable):
        await store.create(function())
    store._known["hello"] = function()
    assert await store.get("hello") == function()
    await away.aclose()


async def test_a_server_that_stands_still_is_given_up_and_then_used_again(
    durable: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FunctionStore(durable)
    await store.create(function())
    fresh = FunctionStore(durable)
    await durable.client_pause(1_500)
    monkeypatch.setattr("trivet.store.durable.DEADLINE_S", 0.01)
    with pytest.raises(Unavailable):
        await fresh.get("hello")
    with pytest.raises(Unavailable):
        await store.replace(replace(function(), revision_id="r2"), "r1")
    assert store.cached("hello") is None  # nobody knows whether it was replaced
    monkeypatch.setattr("trivet.store.durable.DEADLINE_S", 10.0)
    # An answer that came too late is not taken for the next one.
    assert await fresh.get("nobody") is None
    read = await fresh.get("hello")
    assert read is not None
    assert read.revision_id in ("r1", "r2")


async def test_a_server_that_refuses_writes_is_unavailable(durable: Redis) -> None:
    await durable.config_set("maxmemory", "1")
    try:
        with pytest.raises(Unavailable):
            await FunctionStore(durable).create(function())
    finally:
        await durable.config_set("maxmemory", "0")
