"""Attacks on the protocol: a handler that answers in the platform's place."""

from __future__ import annotations

import os
import struct
from typing import Any

_FRAME = struct.Struct("<BII")
_CHANNEL = 3
_INITIALISED, _RESULT = 16, 18
_USAGE = struct.pack("<I", 1)


def _frame(kind: int, attempt: int, body: bytes, length: int | None = None) -> bytes:
    return _FRAME.pack(kind, attempt, len(body) if length is None else length) + body


_FORGED = _USAGE + b'"forged"'
_FRAMES = {
    "another_attempt": _frame(_RESULT, 2, _FORGED),
    "an_earlier_attempt": _frame(_RESULT, 0, _FORGED),
    "initialised_again": _frame(_INITIALISED, 1, _USAGE),
    "an_unknown_kind": _frame(99, 1, _FORGED),
    "a_command": _frame(1, 1, _FORGED),
    "a_giant": _frame(_RESULT, 1, _FORGED, 0xFFFF_FFFF),
    "one_too_large": _frame(_RESULT, 1, _FORGED, 6_291_556 + 4 + 1),
    "no_body": _frame(_RESULT, 1, b""),
    "half_a_usage": _frame(_RESULT, 1, b"\0\0"),
    "answered_twice": _frame(_RESULT, 1, _FORGED) * 2,
}


def handler(event: dict[str, Any], context: object) -> str:
    """Forges the frame that the event names, on the channel that every handler can reach."""
    os.write(_CHANNEL, _FRAMES[event["frame"]])
    return "mine"
