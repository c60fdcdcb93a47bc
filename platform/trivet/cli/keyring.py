"""Keyring: the account's access key, read from the durable server where it lives."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

from trivet.bus.keys import ACCESS_KEYS
from trivet.bus.resp import connect, parse_address
from trivet.cli.screen import command
from trivet.errors import Unavailable
from trivet.settings import Settings

# The server is on this machine, or one hop away.
DEADLINE_S = 5.0


def access_key(settings: Settings) -> tuple[str, str]:
    """An access key id and its secret. Raises Unavailable."""
    url = settings.durable_url or f"unix://{quote(settings.durable_socket)}"
    try:
        secrets = asyncio.run(_read(url))
    except PermissionError as error:
        message = f"the access keys of {settings.data} can be read by its owner only"
        raise Unavailable(message, hint=f"sudo {command()} env --data {settings.data}") from error
    except Exception as error:
        message = f"the durable server does not answer: {error or type(error).__name__}"
        raise Unavailable(message, hint=f"{command()} doctor") from error
    if not secrets:
        message = "the account has no access key yet"
        raise Unavailable(message, hint=f"{command()} down; {command()} up --detach")
    return min(secrets.items())


async def _read(url: str) -> dict[str, str]:
    async with asyncio.timeout(DEADLINE_S):
        connection = await connect(parse_address(url))
        try:
            # A list of pairs in RESP2, a mapping in RESP3.
            reply = await connection.call("HGETALL", ACCESS_KEYS)
        finally:
            connection.close()
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {key_id.decode(): secret.decode() for key_id, secret in pairs}
