"""Leases: how supervisors of other machines know that this one lives.

A lease is a key on the express server, off the disk, that expires. It says nothing about single
events: as long as an epoch renews its lease, whatever it took is its own, however long that runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import anyio
import hiredis
import structlog

from trivet.bus import keys
from trivet.bus.resp import RECONNECT_S, Address, Connection, connected

log = structlog.get_logger()

LEASE_S = 10.0
RENEW_S = 1.0


class Lease:
    """This epoch's own lease, and a view of the others."""

    def __init__(
        self,
        address: Address,
        *,
        node: str,
        epoch: str,
        on_lapse: Callable[[], None] = lambda: None,
        lease_s: float = LEASE_S,
    ) -> None:
        """`on_lapse` is called when the lease ran out before it could be renewed: from then on
        others may run what this epoch has taken."""
        self._address = address
        self._node = node
        self._epoch = epoch
        self._on_lapse = on_lapse
        self._lease_s = lease_s
        self._out: Connection | None = None
        self._connected_at = 0.0
        self._renewed_at: float | None = None
        self.is_taken = anyio.Event()  # set when it was taken for the first time

    def __repr__(self) -> str:
        return f"<Lease of {self._node}:{self._epoch}, {'held' if self._out else 'away'}>"

    async def run(self) -> None:
        """Renew it, for as long as the process lives."""
        while True:
            try:
                async with connected(self._address) as out:
                    self._connected_at = time.monotonic()
                    while True:
                        await self._renew(out)
                        self._out = out
                        await anyio.sleep(min(RENEW_S, self._lease_s / 3))
            except (OSError, hiredis.HiredisError, TimeoutError):
                self._out = None
                self._check_lapse()
                await anyio.sleep(RECONNECT_S)

    async def _renew(self, out: Connection) -> None:
        asked_at = time.monotonic()
        with anyio.fail_after(self._lease_s):
            ms = int(self._lease_s * 1000)
            await out.call("SET", keys.lease(self._node), self._epoch, "PX", ms)
        self._check_lapse()
        self._renewed_at = asked_at
        self.is_taken.set()

    def _check_lapse(self) -> None:
        """By when the renewal was asked for, and not answered: the key may expire that early."""
        if self._renewed_at is not None and time.monotonic() - self._renewed_at >= self._lease_s:
            self._renewed_at = None
            log.error("lease.lapsed", node=self._node)
            self._on_lapse()

    async def dead_among(self, nodes: Iterable[str]) -> list[str]:
        """Those whose lease has run out. None at all while that cannot be told: a server that
        came back empty has forgotten everybody's."""
        out, others = self._out, [node for node in nodes if node != self._node]
        if out is None or not others or time.monotonic() - self._connected_at < self._lease_s:
            return []
        held = await out.call("MGET", *(keys.lease(node) for node in others))
        return [node for node, epoch in zip(others, held, strict=True) if epoch is None]
