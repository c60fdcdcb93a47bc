"""Identities: the three names under which one request is known, from one draw of randomness."""

from __future__ import annotations

import os
from binascii import b2a_base64
from dataclasses import dataclass

# A client's own trace header is kept up to this length; it travels on into the environment.
_LONGEST_TRACE = 1024


@dataclass(frozen=True, slots=True)
class Identity:
    """How a request is called by the function, by the API's client, and across services."""

    invocation_id: str  # a random UUID, the invocation's request id
    request_id: str  # as API Gateway writes its own: 15 characters and "="
    trace_id: str  # as in X-Amzn-Trace-Id


def new_identity(now_s: float, trace_header: str | None) -> Identity:
    """A fresh identity, in the client's trace if it named one."""
    drawn = os.urandom(39)
    # uuid.uuid4() alone would cost as much as all three identities here.
    digits = drawn[:16].hex()
    variant = "89ab"[drawn[8] & 3]
    invocation_id = (
        f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
    )
    request_id = b2a_base64(drawn[16:27], newline=False).decode()
    if trace_header and "Root=" in trace_header and len(trace_header) <= _LONGEST_TRACE:
        return Identity(invocation_id, request_id, trace_header)
    return Identity(invocation_id, request_id, f"Root=1-{int(now_s):08x}-{drawn[27:].hex()}")
