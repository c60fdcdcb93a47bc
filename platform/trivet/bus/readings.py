"""Readings on the wire: several in one entry, as msgpack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from trivet.core.billing import Reading

SCHEMA = 1


def pack_readings(readings: Sequence[Reading]) -> bytes:
    rows = [
        (
            r.request_id,
            r.version,
            r.ended_ms,
            r.memory_mb,
            r.billed_ms,
            r.init_ms,
            r.start == "cold",
            r.status,
        )
        for r in readings
    ]
    packed: bytes = msgpack.packb((SCHEMA, rows))
    return packed


def unpack_readings(function: str, data: bytes) -> list[Reading]:
    rows: Any
    _, rows = msgpack.unpackb(data, use_list=False)
    return [
        Reading(
            request_id=request_id,
            function=function,
            version=version,
            ended_ms=ended_ms,
            memory_mb=memory_mb,
            billed_ms=billed,
            init_ms=init_ms,
            start="cold" if is_cold else "warm",
            status=status,
        )
        for request_id, version, ended_ms, memory_mb, billed, init_ms, is_cold, status in rows
    ]
