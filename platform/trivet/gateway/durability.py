"""Durability: waits for the durable server, and refuses one whose policy could lose work."""

from __future__ import annotations

import sys

import anyio
import redis.asyncio
import redis.exceptions
import structlog

log = structlog.get_logger()

# What a server must be set to, so that what it answered is still there after any crash.
POLICY = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}

EXIT_CONFIG = 78  # sysexits: the launcher does not start the gateway again


async def await_durable(durable: redis.asyncio.Redis, *, is_strict: bool) -> None:
    """Return once the durable server answers and keeps what it answers. Ends the process if not."""
    while True:
        try:
            found = await durable.config_get(*POLICY)
            break
        except redis.exceptions.AuthenticationError as error:
            print(
                f"trivet: the durable server does not let us in: {error}\n"
                "hint: put user and password into TRIVET_DURABLE_URL: redis://user:password@host",
                file=sys.stderr,
            )
            raise SystemExit(EXIT_CONFIG) from None
        except (redis.exceptions.BusyLoadingError, redis.exceptions.ConnectionError):
            await anyio.sleep(0.02)
        except redis.exceptions.ResponseError as error:
            # Managed servers forbid CONFIG: what they keep cannot be seen, so it is not promised.
            found = {"config": str(error)}
            break
    wrong = {k: found.get(k, "unknown") for k, v in POLICY.items() if found.get(k) != v}
    if not wrong:
        return
    words = ", ".join(f"{name} is {value!r}" for name, value in wrong.items())
    if is_strict:
        print(
            f"trivet: the durable server could lose work: {words}\n"
            "hint: set appendonly yes, appendfsync always and maxmemory-policy noeviction there, "
            "or accept the loss with TRIVET_DURABILITY=relaxed",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_CONFIG)
    log.warning("durable.relaxed", **{k.replace("-", "_"): v for k, v in wrong.items()})
