"""The gateway process: `python -m trivet.gateway`, started by the launcher."""

from __future__ import annotations

import gc
import json
import os
import resource
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable
from decimal import Decimal
from functools import partial
from importlib.metadata import entry_points
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import redis.asyncio
import structlog

from trivet.aws import apigatewayv2, lambda_, logs, own, sts
from trivet.aws.door import Door
from trivet.aws.services import Services
from trivet.aws.sigv4 import Verifier
from trivet.bus import failpoints
from trivet.bus.enqueue import DurablePublisher
from trivet.bus.publish import Calls
from trivet.bus.resp import RECONNECT_S, parse_address
from trivet.control import Control
from trivet.core.arns import Place
from trivet.core.billing import Tariff
from trivet.core.egress import opened, parse, parse_networks
from trivet.core.endpoints import parse_service_endpoints
from trivet.core.measures import Family
from trivet.core.resolvers import parse_resolvers
from trivet.errors import Unavailable
from trivet.gateway.admission import Admission
from trivet.gateway.durability import await_durable
from trivet.gateway.inside import Inside
from trivet.gateway.listener import serve
from trivet.gateway.metrics import Publishing, publishing
from trivet.gateway.pages import Front, Pages
from trivet.gateway.platform import GatewayPlatform
from trivet.gateway.welcome import deploy_welcome
from trivet.reporting import configure_logging
from trivet.runtimes import CUSTOM_NAMES, inherited_runtimes
from trivet.settings import Settings, inherited_settings
from trivet.store.accounts import AccountStore
from trivet.store.apis import ApiStore
from trivet.store.bills import BillStore
from trivet.store.blobs import Blobs
from trivet.store.functions import FunctionStore
from trivet.store.headroom import Headroom
from trivet.store.ledgers import LedgerStore
from trivet.store.logs import LogReader
from trivet.store.roles import Roles, RoleStore
from trivet.store.triggers import TriggerStore
from trivet.store.urls import UrlStore

log = structlog.get_logger()

Loaded = TypeVar("Loaded")

# In so many turns of the loop everybody who waits for the end has heard of it.
_TURNS_TO_PART = 3

LISTENERS_VARIABLE = "TRIVET_LISTEN_JSON"

TABLES = {
    "lambda": lambda_.OPERATIONS,
    "apigatewayv2": apigatewayv2.OPERATIONS,
    "logs": logs.OPERATIONS,
    "sts": sts.OPERATIONS,
    "trivet": own.OPERATIONS,
}


async def serve_gateway(settings: Settings) -> None:
    control = Control.inherited()
    control.on_closed(lambda: os._exit(0))  # the launcher is gone: nobody would restart or end us
    listeners = _inherited_listeners()
    durable = redis.asyncio.Redis.from_url(settings.durable_address, protocol=2)
    await await_durable(durable, is_strict=settings.durability == "strict")

    functions, apis, accounts = FunctionStore(durable), ApiStore(durable), AccountStore(durable)
    urls = UrlStore(durable)
    blobs = Blobs(settings.blobs_path)
    await anyio.to_thread.run_sync(blobs.prepare)
    runtimes = frozenset((*CUSTOM_NAMES, *(runtime.name for runtime in inherited_runtimes())))

    async def load() -> tuple[dict[str, str], Roles]:
        is_first_start = not await accounts.secrets()
        await apis.load()
        await apis.ensure_default()
        await urls.load()
        if is_first_start:
            python = next(name for name in sorted(runtimes) if name.startswith("python"))
            role = f"arn:aws:iam::{settings.account}:role/welcome"
            await deploy_welcome(functions, apis, blobs, runtime=python, role=role)
        # Last of the first start: a crash before it makes the next start the first again.
        await accounts.ensure()
        return await accounts.secrets(), await RoleStore(durable).ensure()

    access_keys, roles = await _when_available(load)
    calls = Calls(
        secrets.token_hex(8),
        parse_address(settings.express_address),
        admission_wait_ms=settings.admission_wait_ms,
        max_concurrency=settings.max_concurrency,
    )
    place = Place(settings.region, settings.account)
    verifier = Verifier(access_keys.get, settings.region, sessions=roles.recognise)
    function_actions = settings.function_actions.split()
    admission = Admission(place, functions, verifier, function_actions)
    platform = GatewayPlatform(settings, calls, functions, apis, urls, admission)

    async def exists(name: str) -> bool:
        return (functions.cached(name) or await functions.get(name)) is not None

    headroom = Headroom(durable, settings)
    publisher = DurablePublisher(
        parse_address(settings.durable_address),
        parse_address(settings.express_address),
        exists=exists,
        full=headroom.full,
    )
    publisher.on_throttled = partial(platform.counters.throttled, "durable")

    host, port = listeners["http"].getsockname()[:2]
    services = Services(
        place=place,
        platform=platform,
        publisher=publisher,
        functions=functions,
        blobs=blobs,
        apis=apis,
        urls=urls,
        logs=LogReader(settings.logs_path),
        bills=BillStore(durable),
        ledgers=LedgerStore(durable),
        tariff=Tariff(
            per_million_requests=Decimal(settings.price_per_million_requests),
            per_gb_s=Decimal(settings.price_per_gb_s),
            free_requests=settings.free_requests,
            free_gb_s=Decimal(settings.free_gb_s),
        ),
        triggers=TriggerStore(durable),
        runtimes=runtimes,
        max_concurrency=settings.max_concurrency,
        http_url=f"http://{host}:{port}",
        changed=calls.tell_changed,
    )
    door = Door(services, verifier, TABLES, function_actions)
    front = Front(
        door,
        _pages(settings, platform, calls, publisher),
        shows_metrics_to_all=settings.metrics_for == "all",
    )
    inside = _inside(settings, door)
    control.on_peer("supervisor", inside.attach)
    stop, succeeded = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(calls.run)
        tasks.start_soon(publisher.run)
        tasks.start_soon(headroom.run)
        tasks.start_soon(_stop_on_signal, stop, succeeded, control)
        async with anyio.create_task_group() as serving:
            offer = partial(serve, stop=stop, succeeded=succeeded)
            serving.start_soon(lambda: offer(front, sock=listeners["aws"]))
            serving.start_soon(inside.run, stop)
            for application in _http_adapters(platform):
                serving.start_soon(lambda: offer(application, sock=listeners["http"]))  # noqa: B023  # one HTTP adapter
            gc.freeze()  # a collection looks at what requests leave, and not at every module
            control.ready()
        tasks.cancel_scope.cancel()
    await durable.aclose()


async def _when_available(load: Callable[[], Awaitable[Loaded]]) -> Loaded:
    """What `load` gives; it begins anew when the durable server goes in the middle of it."""
    while True:
        try:
            return await load()
        except Unavailable as error:
            log.warning("start.interrupted", error=error.message)
            await anyio.sleep(RECONNECT_S)


def _inside(settings: Settings, door: Door) -> Inside:
    """What functions say; they get the door alone, and none of the pages before it."""
    private = opened(parse(settings.egress), parse_networks(settings.egress_allow))
    endpoints = parse_service_endpoints(settings.service_endpoints)
    named = parse_resolvers(settings.resolvers)
    resolvers = (lambda: named) if named else None
    return Inside(door, endpoints, opened=private, resolvers=resolvers)


def _pages(
    settings: Settings, platform: GatewayPlatform, calls: Calls, publisher: DurablePublisher
) -> Pages:
    def own() -> list[Family]:
        lanes: dict[str, Publishing] = {"express": calls, "durable": publisher}
        return [*platform.counters.families(), *publishing(lanes)]

    return Pages(
        parse_address(settings.express_address),
        parse_address(settings.durable_address),
        own=own,
        admitting=calls.admitting,
    )


def _inherited_listeners() -> dict[str, socket.socket]:
    descriptors: dict[str, int] = json.loads(os.environ[LISTENERS_VARIABLE])
    return {name: socket.socket(fileno=fd) for name, fd in descriptors.items()}


def _http_adapters(platform: GatewayPlatform) -> list[Any]:
    """The applications for the public listener, found by entry point: the first one serves."""
    found = entry_points(group="trivet.adapters")
    return [point.load()(platform) for point in found][:1]


async def _stop_on_signal(stop: anyio.Event, succeeded: anyio.Event, control: Control) -> None:
    """SIGHUP: a successor serves already, and waits for us to part with the supervisor."""
    ends = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    with anyio.open_signal_receiver(*ends) as signals:
        async for number in signals:
            if number == signal.SIGHUP and not stop.is_set():
                succeeded.set()
                stop.set()
                for _ in range(_TURNS_TO_PART):
                    await anyio.lowlevel.checkpoint()
                control.close()
            stop.set()


def main() -> None:
    configure_logging("gateway")
    settings = inherited_settings()
    failpoints.arm(settings.failpoints, settings.run_path)
    # Two listeners, and the connections and queries of functions beside them.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    anyio.run(serve_gateway, settings, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
