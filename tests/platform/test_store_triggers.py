"""Triggers on a real durable server, and the memories that go with them."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from trivet.core.triggers import FileTrigger, Schedule, TriggerSet, own_name
from trivet.store.triggers import TriggerStore

pytestmark = pytest.mark.anyio

SCHEDULE = Schedule(name="b", id="1", function="f", expression="rate(1 minute)", created_ms=5)
FILES = FileTrigger(name="a", id="2", function="f", folder="/srv/in\nbox", created_ms=6)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_what_is_put_is_there_for_others_until_it_is_deleted(durable: Redis) -> None:
    store, other = TriggerStore(durable), TriggerStore(durable)
    assert await other.all() == TriggerSet()
    versions = {await other.version()}
    await store.put(SCHEDULE)
    versions.add(await other.version())
    await store.put(FILES)
    versions.add(await other.version())
    assert await other.all() == TriggerSet((SCHEDULE,), (FILES,))
    assert await other.get("a") == FILES
    assert await store.delete("b")
    versions.add(await other.version())
    assert not await store.delete("b")
    assert await other.all() == TriggerSet((), (FILES,))
    assert len(versions) == 4


async def test_a_memory_is_kept_while_its_trigger_is_and_goes_with_it(durable: Redis) -> None:
    store = TriggerStore(durable)
    await store.put(FILES)
    await store.remember(FILES, {b"a\n\xff": b"1", b"b": b"2"})
    await store.remember(FILES, {b"b": None, b"c": b"3"})
    assert await TriggerStore(durable).recall(FILES) == {b"a\n\xff": b"1", b"c": b"3"}
    await store.delete(FILES.name)
    await store.remember(FILES, {b"late": b"1"})
    assert await store.recall(FILES) == {}
    assert await durable.keys("*memory*") == []


async def test_a_trigger_in_the_place_of_another_remembers_nothing_of_it(durable: Redis) -> None:
    store = TriggerStore(durable)
    await store.put(SCHEDULE)
    await store.remember(SCHEDULE, {b"last": b"1"})
    successor = Schedule(name="b", id="9", function="f", expression="rate(2 minutes)", created_ms=7)
    await store.put(successor)
    await store.remember(SCHEDULE, {b"last": b"2"})
    assert await store.recall(successor) == {}
    assert await store.recall(SCHEDULE) == {}


async def test_a_large_memory_is_kept_whole(durable: Redis) -> None:
    store = TriggerStore(durable)
    await store.put(FILES)
    many = {b"%d" % n: b"%d" % n for n in range(1_700)}
    await store.remember(FILES, many)
    assert await store.recall(FILES) == many
    await store.remember(FILES, dict.fromkeys(list(many)[:1_300]))
    assert await store.recall(FILES) == dict(list(many.items())[1_300:])


def test_the_name_of_a_trigger_that_was_given_none_says_what_it_binds() -> None:
    assert own_name("f", "files", "/srv/a") == own_name("f", "files", "/srv/a")
    assert own_name("f", "files", "/srv/a") != own_name("f", "files", "/srv/b")
    assert len(own_name("f" * 64, "files", "/srv/a")) == 64
