"""`from trivet import Client, AsyncClient` against a whole platform."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import anyio
import pytest
from tests.e2e.conftest import Deployed, Running

from trivet import AsyncClient, Client, FunctionNotFound, LogLine, Unavailable

SOURCE = """
def handler(event, context):
    print("got", event)
    return {"echo": event}
"""


@pytest.fixture
def client(platform: Running) -> Iterator[Client]:
    """The client of whoever names a data folder only."""
    with Client(data=str(platform.data)) as client:
        yield client


def said(line: LogLine) -> str | None:
    return line.text.removeprefix("got ") if line.text.startswith("got ") else None


def test_invoke_tells_what_the_report_tells(
    client: Client, deploy: Callable[..., Deployed]
) -> None:
    function = deploy(SOURCE)
    first, second = (client.invoke(function.name, number) for number in (1, 2))
    assert (first.payload, second.payload) == ({"echo": 1}, {"echo": 2})
    assert (first.cold, second.cold) == (True, False)
    assert first.billed_ms > first.duration_ms > 0
    assert f"RequestId: {second.request_id}" in second.logs
    assert "got 2" in second.logs
    with pytest.raises(FunctionNotFound):
        client.invoke("nobody")


def test_what_is_published_runs_once_for_each_key(
    client: Client, deploy: Callable[..., Deployed]
) -> None:
    function = deploy(SOURCE)
    assert client.publish(function.name, "a", once="key")
    assert client.publish(function.name, "b", once="key") == ""
    assert client.publish(function.name, "c")
    heard: list[str] = []
    for line in client.logs(function.name, follow=True):
        if text := said(line):
            heard.append(text)
        if len(heard) == 2:
            break
    assert sorted(heard) == ["a", "c"]
    with pytest.raises(FunctionNotFound):
        client.publish("nobody")


def test_many_events_are_all_run(platform: Running, deploy: Callable[..., Deployed]) -> None:
    function = deploy(SOURCE)
    count = 1_200

    async def publish() -> Counter[str]:
        async with AsyncClient(data=str(platform.data)) as client:
            ids = await client.publish_many((function.name, number) for number in range(count))
            assert len(set(ids)) == count
            heard: Counter[str] = Counter()
            with anyio.fail_after(30):
                async for line in client.logs(function.name, follow=True):
                    if text := said(line):
                        heard[text] += 1
                    if len(heard) == count:
                        break
            return heard

    assert set(anyio.run(publish)) == {str(number) for number in range(count)}


@pytest.mark.slow
def test_a_platform_that_ended_is_unavailable(start_platform: Callable[..., Running]) -> None:
    running = start_platform()
    with Client(data=str(running.data)) as client:
        assert client.invoke("welcome", {}).function_error is None
        running.down()
        with pytest.raises(Unavailable, match="no platform answers") as told:
            client.invoke("welcome", {})
        assert told.value.hint.endswith(" up --detach")
    with pytest.raises(Unavailable, match="no platform is running"):
        Client(data=str(running.data))
