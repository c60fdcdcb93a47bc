"""/health and /metrics in front of the door, over a real server."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import msgpack
import pytest
from redis.asyncio import Redis

from trivet.bus import keys
from trivet.bus.reports import report
from trivet.bus.resp import Address, connected
from trivet.core.measures import family_to_record
from trivet.gateway.metrics import GatewayCounters, publishing
from trivet.gateway.pages import Front, Pages
from trivet.supervisor.counters import Counters, observed
from trivet_worker import wire

pytestmark = pytest.mark.anyio

Answer = tuple[int, str, str]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Lane:
    """The counts of a lane's publisher, and of its consumer."""

    published = 7
    batches = 3
    malformed = 1


async def door(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


async def got(
    front: Front, path: str, *, method: str = "GET", client: str | None = "127.0.0.1"
) -> Answer:
    messages: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        messages.append(message)

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("a page has no use for a body")

    peer = (client, 1) if client else None
    await front(
        {"type": "http", "path": path, "method": method, "client": peer, "headers": []},
        receive,
        send,
    )
    headers = dict(messages[0]["headers"])
    kind = headers.get(b"content-type", b"").decode()
    return messages[0]["status"], kind, messages[1]["body"].decode()


def front_of(
    express: str, durable: str, *, waiting: tuple[str, ...] = (), is_open: bool = False
) -> Front:
    counters = GatewayCounters()
    counters.answered(0.003)
    counters.throttled("express", "busy")
    pages = Pages(
        Address(socket=express),
        Address(socket=durable),
        own=lambda: [*counters.families(), *publishing({"express": Lane()})],
        admitting=lambda: waiting,
    )
    return Front(door, pages, shows_metrics_to_all=is_open)


async def reported(socket: str, node: str, isolation: int) -> None:
    counters = Counters()
    counters.environment_started(800_000, 30_000_000)
    counters.attempt_ended("express", "hello", 2_000_000, is_error=False)
    counters.attempt_ended("express", "hello", 2_000_000, is_error=True)
    seen = observed(
        {"idle": 2, "busy": 1},
        committing={"durable": Lane()},
        dropped_log_bytes=123,
        isolation=isolation,
    )
    families = [*counters.families(), *seen]
    async with connected(Address(socket=socket)) as connection:
        await report(connection, node, msgpack.packb([family_to_record(f) for f in families]))


async def test_all_is_well_once_a_supervisor_reports(durable: Redis, durable_socket: str) -> None:
    front = front_of(durable_socket, durable_socket)
    status, kind, body = await got(front, "/health")
    assert (status, kind) == (503, "application/json")
    lanes = {"express": "unserved", "durable": "ok"}
    unknown = {"level": "unknown"}
    assert json.loads(body) == {"status": "degraded", "isolation": unknown, "lanes": lanes}
    await reported(durable_socket, "a", wire.ISOLATION_PID | wire.ISOLATION_UID)
    await reported(durable_socket, "b", wire.ISOLATION_PID)
    status, _, body = await got(front, "/health")
    assert status == 200
    assert json.loads(body) == {
        "status": "ok",
        "isolation": {  # what holds on both
            "level": "L0",
            "text": "L0  own PID namespace; not for hostile code",
            "missing": [
                "a uid or user namespace of their own",
                "mounts of their own",
                "a network of their own",
                "a filter of system calls (seccomp)",
            ],
            "runtimes": {},
        },
        "lanes": {"express": "ok", "durable": "ok"},
    }
    assert 0 < await durable.ttl(keys.report("a")) <= 5


async def test_a_lane_that_is_away_is_named(
    durable: Redis, durable_socket: str, tmp_path: Path
) -> None:
    await reported(durable_socket, "a", 0)
    absent = str(tmp_path / "nobody")
    status, _, body = await got(front_of(durable_socket, absent), "/health")
    assert (status, json.loads(body)["lanes"]) == (503, {"express": "ok", "durable": "away"})
    status, _, body = await got(front_of(absent, durable_socket), "/health")
    assert (status, json.loads(body)["lanes"]) == (503, {"express": "away", "durable": "ok"})
    status, _, body = await got(front_of(absent, absent), "/metrics")
    assert status == 200
    assert 'trivet_lane_up{lane="express"} 0\n' in body


async def test_metrics_hold_what_gateway_and_supervisors_count(
    durable: Redis, durable_socket: str
) -> None:
    await reported(durable_socket, "a", 0)
    await reported(durable_socket, "b", wire.ISOLATION_SECCOMP | wire.ISOLATION_LANDLOCK)
    status, kind, body = await got(front_of(durable_socket, durable_socket), "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    lines = set(body.splitlines())
    assert lines >= {
        'trivet_invocations_total{node="a",lane="express",function="hello"} 2',
        'trivet_invocations_total{node="b",lane="express",function="hello"} 2',
        'trivet_errors_total{node="a",lane="express",function="hello"} 1',
        'trivet_duration_seconds_bucket{node="a",lane="express",le="0.0025"} 2',
        'trivet_cold_start_seconds_sum{node="a",phase="fork"} 0.0008',
        'trivet_cold_start_seconds_sum{node="a",phase="init"} 0.03',
        'trivet_environments{node="a",state="idle"} 2',
        'trivet_commit_batches_total{node="a",lane="durable"} 3',
        'trivet_malformed_total{node="a",lane="durable"} 1',
        'trivet_log_dropped_bytes_total{node="a"} 123',
        'trivet_throttles_total{lane="express",function="busy"} 1',
        'trivet_call_seconds_bucket{le="0.005"} 1',
        'trivet_published_total{lane="express"} 7',
        'trivet_publish_batches_total{lane="express"} 3',
        'trivet_lane_up{lane="durable"} 1',
        'trivet_isolation_level{node="a"} 0',
        'trivet_isolation_level{node="b"} 1',
        'trivet_queue_age_seconds{lane="durable"} 0',
    }
    types = [line.split()[2] for line in body.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))


def aged(body: str, lane: str) -> float:
    begin = f'trivet_queue_age_seconds{{lane="{lane}"}} '
    return next(float(x.removeprefix(begin)) for x in body.splitlines() if x.startswith(begin))


async def test_queue_age_is_that_of_the_oldest_event_that_nobody_read(
    durable: Redis, durable_socket: str
) -> None:
    seconds, micros = await durable.time()
    now_ms = seconds * 1_000 + micros // 1_000
    for age_s, function in ((500, "read"), (90, "waits"), (30, "waits")):
        stream = keys.durable_stream(function)
        await durable.xadd(stream, {"e": "x"}, id=f"{now_ms - age_s * 1_000}-0")
        await durable.sadd(keys.BACKLOG, function)
    for function in ("read", "waits"):
        await durable.xgroup_create(keys.durable_stream(function), keys.GROUP, id="0")
    await durable.sadd(keys.BACKLOG, "gone")
    await durable.xreadgroup(keys.GROUP, "me", {keys.durable_stream("read"): ">"})
    await durable.xadd(keys.express_stream("sync"), {"e": "x"}, id=f"{now_ms - 2_000}-0")
    front = front_of(durable_socket, durable_socket, waiting=("sync", "answered"))
    _, _, body = await got(front, "/metrics")
    assert 90 <= aged(body, "durable") < 150
    assert 2 <= aged(body, "express") < 60


@pytest.mark.parametrize("junk", [b"", b"\xc1", b"\x90\x90", msgpack.packb([1, 2]), b"\x93abc"])
async def test_a_report_that_nobody_understands_is_passed_over(
    durable: Redis, durable_socket: str, junk: bytes
) -> None:
    await durable.sadd(keys.NODES, "odd")
    await durable.set(keys.report("odd"), junk)
    await reported(durable_socket, "a", 0)
    front = front_of(durable_socket, durable_socket)
    assert (await got(front, "/health"))[0] == 200
    assert 'node="a"' in (await got(front, "/metrics"))[2]


async def test_only_this_machine_reads_metrics_unless_told_otherwise(
    durable: Redis, durable_socket: str
) -> None:
    front = front_of(durable_socket, durable_socket)
    for client in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert (await got(front, "/metrics", client=client))[0] == 200
    for peer in ("10.0.0.7", "::ffff:10.0.0.7", "2001:db8::1", "", None):
        status, _, body = await got(front, "/metrics", client=peer)
        assert (status, "hello" in body) == (403, False)
        assert (await got(front, "/health", client=peer))[0] == 503
    front = front_of(durable_socket, durable_socket, is_open=True)
    assert (await got(front, "/metrics", client="10.0.0.7"))[0] == 200


async def test_everything_else_is_for_the_door(durable: Redis, durable_socket: str) -> None:
    front = front_of(durable_socket, durable_socket)
    for method, path in (("POST", "/health"), ("GET", "/health/"), ("GET", "/metrics/x")):
        assert await got(front, path, method=method) == (418, "", path)
    status, kind, body = await got(front, "/health", method="HEAD")
    assert (status, kind, body) == (503, "application/json", "")
