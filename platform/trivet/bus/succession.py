"""Succession: what a dead epoch had taken from the durable lane is claimed, and run again.

Its successor on the same node claims it at once; a peer on another node when its lease ran out.
Ownership of an entry is what a commit is checked against, so that whoever was only paused cannot
end an event that another has taken over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any

import hiredis
import structlog

from trivet.bus import keys
from trivet.bus.resp import Connection
from trivet.bus.scripts import script

log = structlog.get_logger()

RETIRE = script("retire")

MOST_AT_ONCE = 500

Take = Callable[[str, list[Any], dict[bytes, int]], None]


class Succession:
    """Claims for one epoch, over connections to a server that knows `RETIRE`."""

    def __init__(
        self,
        node: str,
        epoch: str,
        *,
        prepare: Callable[[Connection, str], Awaitable[None]],
        is_held: Callable[[str, bytes], bool],
        take: Take,
    ) -> None:
        """`take(function, entries, deliveries)`: the entries are this epoch's now; `deliveries`
        says how often each was delivered before. What `is_held` here is left alone."""
        self._node = node
        self._epoch = epoch
        self._consumer = f"{node}:{epoch}"
        self._prepare = prepare
        self._is_held = is_held
        self._take = take

    async def begin(self, out: Connection) -> set[str]:
        """Register this epoch, and take over from those of its node.

        Returns the functions that they, or this epoch before its connection was lost, served.
        """
        await out.call("SADD", keys.DURABLE_NODES, self._node)
        await out.call("SADD", keys.durable_epochs(self._node), self._epoch)
        return await self.claim_node(out, self._node)

    async def claim_node(self, out: Connection, node: str) -> set[str]:
        """Take over from every epoch of `node`, this one excepted."""
        served = set()
        for name in await out.call("SMEMBERS", keys.durable_epochs(node)):
            served |= await self._claim_epoch(out, node, name.decode())
        return served

    async def _claim_epoch(self, out: Connection, node: str, epoch: str) -> set[str]:
        """Of this very epoch: what was read for it, and lost on its way with a connection."""
        names = await out.call("SMEMBERS", keys.durable_epoch_functions(node, epoch))
        served = {name.decode() for name in names}
        for function in served:
            await self._claim(out, function, f"{node}:{epoch}")
        if f"{node}:{epoch}" != self._consumer:
            await out.call("DEL", keys.durable_epoch_functions(node, epoch))
            await out.call("SREM", keys.durable_epochs(node), epoch)
        return served

    async def claim_lost(self, out: Connection, function: str) -> None:
        """Take what is pending for this very epoch and is not here. No read of `function` may be
        under way: its answer would bring the same again."""
        await self._claim_pending(out, function, self._consumer)

    async def claim_strays(self, out: Connection, function: str, dead: Collection[str]) -> None:
        """Take over what came after its consumer's epoch was cleared up: a read that is blocked
        outlives its process while the server has not heard of the end. `dead`: nodes."""
        stream = keys.durable_stream(function)
        try:
            _, _, _, consumers = await out.call("XPENDING", stream, keys.GROUP)
        except hiredis.ReplyError:
            return  # nobody ever read it
        for name, _ in consumers or ():
            consumer = name.decode()
            node = consumer.rpartition(":")[0]
            if consumer != self._consumer and (node == self._node or node in dead):
                await self._claim(out, function, consumer)

    async def _claim(self, out: Connection, function: str, consumer: str) -> None:
        stream = keys.durable_stream(function)
        try:
            await self._prepare(out, function)
            while True:
                await self._claim_pending(out, function, consumer)
                if consumer == self._consumer:
                    break
                retired = (RETIRE.sha, 1, stream, keys.GROUP, consumer)
                if await out.call("EVALSHA", *retired):
                    break
        except hiredis.ReplyError as error:
            log.warning("durable.refused", function=function, error=str(error))

    async def _claim_pending(self, out: Connection, function: str, consumer: str) -> None:
        stream, after = keys.durable_stream(function), "-"
        while True:
            span = (after, "+", MOST_AT_ONCE, consumer)
            pending = await out.call("XPENDING", stream, keys.GROUP, *span)
            if not pending:
                return
            after = f"({pending[-1][0].decode()}"
            # What another took over, and left behind, is here perhaps, and this epoch's again.
            counts = {
                entry_id: count
                for entry_id, _, _, count in pending
                if consumer != self._consumer or not self._is_held(function, entry_id)
            }
            for count in sorted({*counts.values()}):
                found = [entry_id for entry_id in counts if counts[entry_id] == count]
                # The count is said, so that a claim that is repeated counts once.
                claim = (stream, keys.GROUP, self._consumer, 0, *found, "RETRYCOUNT", count + 1)
                claimed = await out.call("XCLAIM", *claim)
                log.info("events.reclaimed", function=function, count=len(claimed))
                self._take(function, claimed, counts)
