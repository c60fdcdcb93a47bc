"""Watch: a Tree for each folder that a trigger names, for as long as it does."""

from __future__ import annotations

import logging

import anyio

from trivet import FileTrigger, Host, TriggerSet, Unavailable
from trivet_adapters.files.tree import TRY_AGAIN_S, Tree
from trivet_adapters.files.watches import Watches

log = logging.getLogger(__name__)


async def run(host: Host) -> None:
    """Publish the files of all file triggers, for as long as the process lives."""
    watches = Watches()
    scopes: dict[str, anyio.CancelScope] = {}
    seen: TriggerSet | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watches.run)
        while True:
            seen = await host.triggers.other_than(seen)
            wanted = {trigger.id: trigger for trigger in seen.files}
            for trigger_id in scopes.keys() - wanted.keys():
                scopes.pop(trigger_id).cancel()
            for trigger_id in wanted.keys() - scopes.keys():
                scopes[trigger_id] = anyio.CancelScope()
                tree = Tree(wanted[trigger_id], host, watches)
                tasks.start_soon(_keep, tree, wanted[trigger_id], scopes[trigger_id])


async def _keep(tree: Tree, trigger: FileTrigger, scope: anyio.CancelScope) -> None:
    with scope:
        while True:
            try:
                await tree.run()
            except Unavailable as error:
                log.warning("%s: %s", trigger.folder, error.message)
                await anyio.sleep(TRY_AGAIN_S)
