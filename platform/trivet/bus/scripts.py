"""Scripts: each atomic act on the server is one Lua file, loaded when a connection opens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from trivet.bus.resp import Connection


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua file of this package, and the digest by which the server knows it."""

    source: bytes
    sha: bytes


def script(name: str) -> Script:
    source = (files(__package__) / "lua" / f"{name}.lua").read_bytes()
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


async def load(connection: Connection, *scripts: Script) -> None:
    """Make `scripts` known to the server; a server that restarted has forgotten them."""
    for each in scripts:
        await connection.call("SCRIPT", "LOAD", each.source)
