"""Pages: /health and /metrics of the AWS listener, which need no signature.

They look at the platform when they are asked, so nothing is gathered that nobody reads.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import hiredis
import msgpack

from trivet.bus import keys
from trivet.bus.reports import oldest_unread_ms, reports
from trivet.bus.resp import Address, Connection, connected
from trivet.core.isolation import level, missing, summary
from trivet.core.measures import Family, Labels, family_from_record, gauge, labelled
from trivet.gateway.exchange import Application, Receive, Scope, Send
from trivet.gateway.metrics import CONTENT_TYPE, rendered

# A lane that needs longer to say a word is away, as far as any caller can tell.
ANSWER_WITHIN_S = 1.0
# A scrape looks at so many functions that have events waiting, and no more.
MOST_WAITING = 256

Page = Callable[[], Awaitable[tuple[int, bytes, bytes]]]
"""Gives status, content type and body."""

OK, AWAY, UNSERVED = "ok", "away", "unserved"


@dataclass(slots=True)
class Look:
    """The platform as it is at this moment."""

    lanes: dict[str, str] = field(default_factory=lambda: {"express": AWAY, "durable": AWAY})
    nodes: dict[str, list[Family]] = field(default_factory=dict)  # what each one reports
    oldest_ms: dict[str, int] = field(default_factory=dict)  # unread events, by lane

    @property
    def is_well(self) -> bool:
        return set(self.lanes.values()) == {OK}

    @property
    def isolation(self) -> dict[Labels, int]:
        """The layers around environments, wire.ISOLATION_*, by node and what else a report says."""
        return {
            (("node", node), *sample.labels): int(sample.value)
            for node, families in sorted(self.nodes.items())
            for family in families
            if family.name == "trivet_isolation"
            for sample in family.samples
        }


class Pages:
    """Looks at both lanes, and shows what it saw."""

    def __init__(
        self,
        express: Address,
        durable: Address,
        *,
        own: Callable[[], Iterable[Family]],
        admitting: Callable[[], Iterable[str]],
    ) -> None:
        """`own`: the gateway's families. `admitting`: functions whose calls may still be unread."""
        self._express = express
        self._durable = durable
        self._own = own
        self._admitting = admitting

    async def health(self) -> tuple[int, bytes, bytes]:
        look = await self._look()
        body = {
            "status": "ok" if look.is_well else "degraded",
            "isolation": _isolation(look.isolation),
            "lanes": look.lanes,
        }
        return 200 if look.is_well else 503, b"application/json", json.dumps(body).encode()

    async def metrics(self) -> tuple[int, bytes, bytes]:
        look = await self._look()
        reported = [
            labelled(family, ("node", node))
            for node, families in sorted(look.nodes.items())
            for family in families
        ]
        lanes = (((("lane", name),), state == OK) for name, state in look.lanes.items())
        ages = (((("lane", name),), ms / 1000) for name, ms in look.oldest_ms.items())
        levels = ((labels, level(bits)) for labels, bits in look.isolation.items())
        seen = (
            gauge("trivet_isolation_level", "Isolation of environments, from 0 to 3.", *levels),
            gauge("trivet_lane_up", "Whether a lane answers and is served.", *lanes),
            gauge("trivet_queue_age_seconds", "Age of the oldest event that nobody took.", *ages),
        )
        return 200, CONTENT_TYPE, rendered((*self._own(), *seen, *reported))

    async def _look(self) -> Look:
        look = Look()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._look_at, self._express, self._see_express, look)
            tasks.start_soon(self._look_at, self._durable, self._see_durable, look)
        return look

    async def _look_at(
        self,
        address: Address,
        see: Callable[[Connection, Look], Awaitable[None]],
        look: Look,
    ) -> None:
        with suppress(OSError, hiredis.HiredisError), anyio.move_on_after(ANSWER_WITHIN_S):
            async with connected(address) as connection:
                await see(connection, look)

    async def _see_express(self, connection: Connection, look: Look) -> None:
        for node, packed in (await reports(connection)).items():
            # A supervisor of another release may say more than we understand.
            with suppress(ValueError, TypeError, msgpack.UnpackException):
                look.nodes[node] = [family_from_record(each) for each in msgpack.unpackb(packed)]
        look.lanes["express"] = OK if look.nodes else UNSERVED
        streams = [keys.express_stream(name) for name in self._admitting()][:MOST_WAITING]
        look.oldest_ms["express"] = await oldest_unread_ms(connection, streams)

    async def _see_durable(self, connection: Connection, look: Look) -> None:
        names = await connection.call("SRANDMEMBER", keys.BACKLOG, MOST_WAITING)
        look.lanes["durable"] = OK
        streams = [keys.durable_stream(name.decode()) for name in names]
        look.oldest_ms["durable"] = await oldest_unread_ms(connection, streams)


def _isolation(reported: Mapping[Labels, int]) -> dict[str, Any]:
    """What holds wherever a function may run, and for each runtime wherever it may run."""
    if not reported:
        return {"level": "unknown"}
    runtimes: dict[str, int] = {}
    everywhere = -1
    for labels, bits in reported.items():
        everywhere &= bits
        if runtime := dict(labels).get("runtime"):
            runtimes[runtime] = runtimes.get(runtime, -1) & bits
    return {
        "level": level(everywhere).name,
        "text": summary(everywhere),
        "missing": missing(everywhere),
        "runtimes": {runtime: level(bits).name for runtime, bits in sorted(runtimes.items())},
    }


class Front:
    """An application before the door that answers the pages itself, and passes on all else."""

    def __init__(self, door: Application, pages: Pages, *, shows_metrics_to_all: bool) -> None:
        self._door = door
        self._pages: Mapping[str, Page] = {
            "/health": pages.health,
            "/metrics": pages.metrics,
        }
        self._shows_metrics_to_all = shows_metrics_to_all

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        page = self._pages.get(scope["path"])
        if page is None or scope["method"] not in ("GET", "HEAD"):
            return self._door(scope, receive, send)
        if page == self._pages["/metrics"] and not self._may_read_metrics(scope):
            page = _refused
        return _shown(page, send, with_body=scope["method"] == "GET")

    def _may_read_metrics(self, scope: Scope) -> bool:
        # They tell the names of functions, and this listener may be open to a network.
        return self._shows_metrics_to_all or _is_loopback(scope.get("client"))


async def _refused() -> tuple[int, bytes, bytes]:
    text = b"Metrics are shown to this machine only, unless metrics_for is 'all'.\n"
    return 403, b"text/plain; charset=utf-8", text


async def _shown(page: Page, send: Send, *, with_body: bool) -> None:
    status, content_type, body = await page()
    headers = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body if with_body else b""})


def _is_loopback(client: Any) -> bool:
    try:
        address = ipaddress.ip_address(client[0])
    except (TypeError, ValueError):
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
