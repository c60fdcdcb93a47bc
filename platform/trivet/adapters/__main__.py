"""The adapters' process: `python -m trivet.adapters`, started by the launcher.

It runs every adapter that is registered under the entry point group `trivet.sources`, each in a
task of its own. It has no privilege, and sees only what `trivet` exports.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from importlib.metadata import entry_points

import anyio
import redis.asyncio
import structlog

from trivet.adapters.host import AdapterHost, FollowedTriggers
from trivet.bus import failpoints
from trivet.bus.enqueue import DurablePublisher
from trivet.bus.resp import parse_address
from trivet.control import Control
from trivet.core.arns import Place
from trivet.ports import Host
from trivet.reporting import configure_logging
from trivet.settings import Settings, inherited_settings
from trivet.store.functions import FunctionStore
from trivet.store.headroom import Headroom
from trivet.store.triggers import TriggerStore

log = structlog.get_logger()

GROUP = "trivet.sources"


async def serve_adapters(settings: Settings) -> None:
    control = Control.inherited()
    control.on_closed(lambda: os._exit(0))  # the launcher is gone: nobody would restart or end us
    durable = redis.asyncio.Redis.from_url(settings.durable_address, protocol=2)
    functions, store = FunctionStore(durable), TriggerStore(durable)

    async def exists(name: str) -> bool:
        return await functions.fetch(name) is not None

    headroom = Headroom(durable, settings)
    publisher = DurablePublisher(
        parse_address(settings.durable_address),
        parse_address(settings.express_address),
        exists=exists,
        full=headroom.full,
    )
    triggers = FollowedTriggers(store)
    host = AdapterHost(
        place=Place(settings.region, settings.account),
        publisher=publisher,
        triggers=triggers,
        memory=store,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(publisher.run)
        tasks.start_soon(headroom.run)
        tasks.start_soon(triggers.run)
        for source in entry_points(group=GROUP):
            tasks.start_soon(_run_source, source.name, source.load(), host)
            log.info("adapter.started", adapter=source.name)
        control.ready()
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                tasks.cancel_scope.cancel()
    await durable.aclose()


async def _run_source(name: str, run: Callable[[Host], Awaitable[None]], host: Host) -> None:
    """An adapter that fails takes none of the others with it; it begins again."""
    while True:
        try:
            await run(host)
        except Exception:
            log.exception("adapter.failed", adapter=name)
        await anyio.sleep(1)


def main() -> None:
    configure_logging("adapters")
    settings = inherited_settings()
    failpoints.arm(settings.failpoints, settings.run_path)
    anyio.run(serve_adapters, settings, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
