"""Reports: what each supervisor says of itself, left on the express server for the gateways.

A report outlives its supervisor by a few seconds only, so one that is there says that its node
serves.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import hiredis

from trivet.bus import keys
from trivet.bus.resp import Connection

REPORT_EVERY_S = 1.0
REPORT_LIFETIME_S = 5  # a few reports may be late before a node counts as gone


async def report(connection: Connection, node: str, packed: bytes) -> None:
    """Leave a report for `node`, in place of the one before. Raises as `Connection.call`."""
    await connection.call("SET", keys.report(node), packed, "EX", REPORT_LIFETIME_S)
    await connection.call("SADD", keys.NODES, node)


async def reports(connection: Connection) -> dict[str, bytes]:
    """The reports of the nodes that serve, by name. Raises as `Connection.call`."""
    found = {}
    for name in await connection.call("SMEMBERS", keys.NODES):
        node = name.decode()
        packed = await connection.call("GET", keys.report(node))
        if packed is not None:
            found[node] = packed
    return found


async def oldest_unread_ms(connection: Connection, streams: Iterable[str]) -> int:
    """How long the oldest event that nobody has read waits on these streams; 0 if none does.

    Raises ConnectionError.
    """
    oldest_ms: int | None = None
    for stream in streams:
        try:
            last = await _last_read(connection, stream)
            entries = await connection.call("XRANGE", stream, f"({last}", "+", "COUNT", 1)
        except ConnectionError:
            raise
        except hiredis.HiredisError:
            continue  # the stream went since it was listed
        if entries:
            added_ms = int(entries[0][0].partition(b"-")[0])  # an entry's id is its time
            oldest_ms = added_ms if oldest_ms is None else min(oldest_ms, added_ms)
    return max(0, int(time.time() * 1000) - oldest_ms) if oldest_ms is not None else 0


async def _last_read(connection: Connection, stream: str) -> str:
    """Id of the last entry that somebody read; zero where nobody ever did."""
    for group in await connection.call("XINFO", "GROUPS", stream):
        fields = dict(zip(group[::2], group[1::2], strict=True))
        if fields[b"name"].decode() == keys.GROUP:
            return str(fields[b"last-delivered-id"].decode())
    return "0-0"
