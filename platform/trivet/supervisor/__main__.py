"""The supervisor process: `python -m trivet.supervisor`, started by the launcher."""

from __future__ import annotations

import os
import resource
import signal
import time

import anyio
import anyio.lowlevel
import redis.asyncio
import structlog

from trivet.bus.consume import Intake
from trivet.bus.resp import parse_address
from trivet.control import Control
from trivet.reporting import configure_logging
from trivet.runtimes import inherited_runtimes
from trivet.settings import Settings, inherited_settings
from trivet.store.blobs import Blobs
from trivet.store.functions import FunctionStore
from trivet.store.logs import LogWriter
from trivet.supervisor.deadlines import Deadlines
from trivet.supervisor.dispatch import Dispatcher
from trivet.supervisor.pool import Pool

log = structlog.get_logger()

# Lines reach the disk in batches: one write per function and this long a window.
LOG_WINDOW_S = 0.02
# After SIGTERM a running function may take this long to end before it is killed.
DRAIN_S = 25.0


async def supervise(settings: Settings) -> None:
    control = Control.inherited()
    control.on_closed(lambda: os._exit(0))  # the launcher is gone: nobody would restart or end us
    runtimes = {runtime.name: runtime for runtime in inherited_runtimes()}
    writer = LogWriter(settings.logs_path)
    durable = redis.asyncio.Redis.from_url(settings.durable_address, protocol=2)
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        pool = Pool(
            settings,
            runtimes,
            Blobs(settings.blobs_path),
            writer,
            freed=lambda: dispatcher.slot_freed(),
        )
        dispatcher = Dispatcher(settings, pool, FunctionStore(durable), Deadlines(), tasks)
        intake = Intake(
            parse_address(settings.express_address),
            node=settings.node,
            epoch=f"{time.time_ns():x}",
            taker=dispatcher,
        )
        dispatcher.answer = intake.answer
        dispatcher.read = intake.read
        control.on_zygote(lambda runtime, link: pool.zygotes[runtime].attach(link))

        async def announce() -> None:
            await pool.ready()
            control.ready({"isolation": pool.isolation})

        def connected() -> None:
            tasks.start_soon(announce)

        tasks.start_soon(_stop_on_signal, stop)
        tasks.start_soon(_write_logs, writer)
        tasks.start_soon(dispatcher.sweep, intake.leave_idle)
        tasks.start_soon(lambda: intake.run(started=connected))
        await stop.wait()
        with anyio.move_on_after(DRAIN_S):
            await intake.drain()
            await dispatcher.finished()
        await anyio.lowlevel.checkpoint()  # the last replies leave with this turn of the loop
        pool.kill_all()
        with anyio.move_on_after(2):
            await pool.emptied()
        tasks.cancel_scope.cancel()
    writer.flush()
    writer.close()
    await durable.aclose()


async def _stop_on_signal(stop: anyio.Event) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stop.set()


async def _write_logs(writer: LogWriter) -> None:
    while True:
        await anyio.sleep(LOG_WINDOW_S)
        writer.flush()


def main() -> None:
    configure_logging("supervisor")
    settings = inherited_settings()
    # Three descriptors an environment: the usual soft limit of 1,024 would be reached early.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    anyio.run(supervise, settings, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
