"""The supervisor process: `python -m trivet.supervisor`, started by the launcher."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import time
from functools import partial

import anyio
import anyio.lowlevel
import redis.asyncio
import structlog

from trivet.bus import failpoints
from trivet.bus.consume import Intake
from trivet.bus.dequeue import DurableIntake
from trivet.bus.leases import Lease
from trivet.bus.resp import RECONNECT_S, parse_address
from trivet.control import Control
from trivet.core.arns import Place
from trivet.core.egress import parse
from trivet.core.measures import Family
from trivet.errors import Unavailable
from trivet.launcher.link import GATEWAY, PROVISIONER
from trivet.reporting import configure_logging
from trivet.runtimes import inherited_runtimes
from trivet.settings import Settings, inherited_settings
from trivet.store.blobs import Blobs
from trivet.store.functions import FunctionStore
from trivet.store.logs import LogWriter
from trivet.store.retention import keep_swept
from trivet.store.roles import Roles, RoleStore
from trivet.supervisor.briefing import Briefing
from trivet.supervisor.cgroups import inherited_cgroups
from trivet.supervisor.counters import DURABLE, EXPRESS, keep_reporting, observed
from trivet.supervisor.deadlines import Deadlines
from trivet.supervisor.dispatch import Dispatcher
from trivet.supervisor.doors import Doors
from trivet.supervisor.meter import Meter
from trivet.supervisor.policies import Policies
from trivet.supervisor.pool import Pool
from trivet.supervisor.quarters import Premises
from trivet.supervisor.rooms import Rooms
from trivet.supervisor.settlement import Settlement
from trivet.supervisor.slots import Slots

log = structlog.get_logger()

# Lines reach the disk in batches: one write per function and this long a window.
LOG_WINDOW_S = 0.02
# Networks and scratch space kept ready: to make one takes some 20 ms.
MOST_SPARE_ROOMS = 16
# After SIGTERM a running function may take this long to end before it is killed.
DRAIN_S = 25.0


async def supervise(settings: Settings) -> None:
    control = Control.inherited()
    control.on_closed(lambda: os._exit(0))  # the launcher is gone: nobody would restart or end us
    runtimes = {runtime.name: runtime for runtime in inherited_runtimes()}
    writer = LogWriter(settings.logs_path)
    durable = redis.asyncio.Redis.from_url(settings.durable_address, protocol=2)
    stop = anyio.Event()
    briefing = Briefing(settings, await _roles(durable))
    slots = Slots(settings.first_uid, inherited_cgroups())
    rooms = Rooms(
        parse(settings.egress),
        on_disk=settings.scratch != "memory",
        spares=min(MOST_SPARE_ROOMS, settings.max_environments),
    )
    doors = Doors()
    doors.on_permit, rooms.on_permitted = rooms.permit, doors.permitted
    doors.confirms_permits = True
    async with anyio.create_task_group() as tasks:
        pool = Pool(
            settings,
            runtimes,
            Blobs(settings.blobs_path),
            writer,
            Premises(settings, slots, rooms=rooms, doors=doors),
            briefing,
            freed=lambda: dispatcher.slot_freed(),
        )
        control.on_closed(lambda: _leave(pool))
        policies, place = Policies(), Place(settings.region, settings.account)
        functions = FunctionStore(durable)
        dispatcher = Dispatcher(settings, pool, functions, Deadlines(), policies, tasks)
        node, epoch = settings.node, f"{time.time_ns():x}"
        express = parse_address(settings.express_address)
        intake = Intake(express, node=node, epoch=epoch, taker=dispatcher)
        lease = Lease(express, node=node, epoch=epoch, on_lapse=lambda: _fence(durable_intake))
        durable_intake = DurableIntake(
            parse_address(settings.durable_address),
            node=node,
            epoch=epoch,
            place=place,
            taker=dispatcher,
            set_flag=intake.set_durable_flag,
            dead_among=lease.dead_among,
            ledger_bytes=settings.ledger_mb * 2**20,
        )
        intake.on_durable_ring = durable_intake.rung
        meter = Meter(durable_intake.meter, lambda: durable_intake.is_ready)
        dispatcher.settlement = Settlement(
            intake,
            durable_intake,
            meter,
            policies,
            place,
            waits_ms=settings.retry_waits_ms,
            is_strict=settings.metering == "strict",
        )

        def leave_idle() -> None:
            intake.leave_idle()
            durable_intake.leave_idle()

        control.on_zygote(lambda runtime, link: pool.zygotes[runtime].attach(link))
        control.on_peer(GATEWAY, doors.attach)
        control.on_peer(PROVISIONER, rooms.attach)

        async def announce() -> None:
            await pool.ready()
            gc.freeze()  # a collection looks at what events leave, and not at every module
            control.ready({"isolation": pool.isolation})
            # A zygote that was started again may find less.
            pool.on_isolation = lambda: control.ready({"isolation": pool.isolation})

        def connected() -> None:
            tasks.start_soon(announce)

        tasks.start_soon(_stop_on_signal, stop)

        def counted() -> list[Family]:
            seen = observed(
                pool.census(),
                committing={EXPRESS: intake, DURABLE: durable_intake},
                dropped_log_bytes=writer.dropped_bytes,
                isolation=pool.isolation,
            )
            return [*pool.counters.families(), *seen]

        tasks.start_soon(keep_reporting, express, node, counted)
        loop = asyncio.get_running_loop()
        writer.on_first = partial(_flush_soon, loop, writer)
        days, mb = settings.log_days, settings.log_mb
        tasks.start_soon(lambda: keep_swept(settings.logs_path, most_days=days, most_mb=mb))
        tasks.start_soon(dispatcher.sweep, leave_idle)
        tasks.start_soon(lease.run)
        tasks.start_soon(_run_leased, lease, durable_intake)
        tasks.start_soon(lambda: intake.run(started=connected))
        await stop.wait()
        with anyio.move_on_after(DRAIN_S):
            await intake.drain()
            await durable_intake.drain()
            await dispatcher.finished()
        meter.flush()
        with anyio.move_on_after(2):
            await durable_intake.committed()
        await anyio.lowlevel.checkpoint()  # the last replies leave with this turn of the loop
        pool.kill_all()
        with anyio.move_on_after(2):
            await pool.emptied()
        doors.close()
        rooms.close()
        slots.close()
        tasks.cancel_scope.cancel()
    writer.flush()
    writer.close()
    await durable.aclose()


async def _roles(durable: redis.asyncio.Redis) -> Roles:
    """No environment starts without credentials, so this waits for the durable server."""
    while True:
        try:
            return await RoleStore(durable).ensure()
        except Unavailable as error:
            log.warning("roles.unavailable", error=str(error))
            await anyio.sleep(RECONNECT_S)


async def _run_leased(lease: Lease, durable: DurableIntake) -> None:
    """Nothing is taken that a peer could hold for a dead node's."""
    await lease.is_taken.wait()
    await durable.run()


def _fence(durable: DurableIntake) -> None:
    """Others may run by now what was taken here: end it, if there are any others."""
    if durable.has_peers:
        os._exit(1)  # the launcher starts a new epoch


def _leave(pool: Pool) -> None:
    """The launcher is gone, so the zygotes end all environments, which those that are frozen
    cannot follow. Nobody else is left to thaw them."""
    pool.thaw_all()
    os._exit(0)


async def _stop_on_signal(stop: anyio.Event) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stop.set()


def _flush_soon(loop: asyncio.AbstractEventLoop, writer: LogWriter) -> None:
    loop.call_later(LOG_WINDOW_S, writer.flush)


def main() -> None:
    configure_logging("supervisor")
    settings = inherited_settings()
    failpoints.arm(settings.failpoints, settings.run_path)
    # Three descriptors an environment: the usual soft limit of 1,024 would be reached early.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    anyio.run(supervise, settings, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
