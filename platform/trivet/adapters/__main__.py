"""The adapters' process: `python -m trivet.adapters`, started by the launcher.

It runs every adapter that is registered under the entry point group `trivet.sources`, each in a
task of its own. It has no privilege, and sees only what `trivet` exports.
"""

from __future__ import annotations

import os
import signal
from importlib.metadata import entry_points

import anyio
import structlog

from trivet.control import Control
from trivet.reporting import configure_logging

log = structlog.get_logger()

GROUP = "trivet.sources"


async def host() -> None:
    control = Control.inherited()
    control.on_closed(lambda: os._exit(0))  # the launcher is gone: nobody would restart or end us
    async with anyio.create_task_group() as tasks:
        for source in entry_points(group=GROUP):
            tasks.start_soon(source.load())
            log.info("adapter.started", adapter=source.name)
        control.ready()
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                tasks.cancel_scope.cancel()


def main() -> None:
    configure_logging("adapters")
    anyio.run(host, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
