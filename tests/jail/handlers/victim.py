"""The neighbour: an ordinary function that keeps secrets, for others to look for."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

_kept: list[socket.socket] = []


def _listen(event: dict[str, Any]) -> None:
    _kept.append(socket.create_server(("127.0.0.1", event["port"])))


def _listen_by_name(event: dict[str, Any]) -> None:
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\0" + event["abstract"])
    abstract.listen()
    _kept.append(abstract)


def _write(event: dict[str, Any]) -> None:
    os.makedirs(event["folder"], exist_ok=True)
    path = f"{event['folder']}/secret"
    with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        file.write("hunter2")


def handler(event: dict[str, Any], context: object) -> int:
    """Settles in as far as its jail lets it; how much of that worked."""
    done = 0
    for step in (_listen, _listen_by_name, _write):
        with contextlib.suppress(OSError):
            step(event)
            done += 1
    return done
