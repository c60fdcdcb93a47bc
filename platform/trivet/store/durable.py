"""Durable: calls to the durable server have a deadline, and fail in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from redis.exceptions import RedisError

from trivet.errors import Unavailable

# The server is on this machine and syncs to disk. One that needs longer is stopped or gone, and
# a caller is better served by an error that it may retry.
DEADLINE_S = 2.0


@contextmanager
def durable_call() -> Iterator[None]:
    """Bound what the block waits for, and raise Unavailable for whatever the server fails with."""
    try:
        with anyio.fail_after(DEADLINE_S):
            yield
    except (TimeoutError, OSError, RedisError) as error:
        message = "The durable store is unavailable. Wait a moment and try again."
        raise Unavailable(message) from error
