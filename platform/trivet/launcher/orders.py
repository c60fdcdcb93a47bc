"""Orders: what the operator may ask of a running launcher, which is one byte over a local socket.

The launcher may be root, so it reads nothing but that byte, from a socket that only its own user
and root may connect to. What it answers are messages of JSON, the last of which has "ended":

    {"part": "gateway", "state": "restarting", "ms": 0}
    {"part": "gateway", "state": "restarted", "ms": 1204}
    {"ended": true, "error": ""}
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

SOCKET = "restart.sock"

# What can be restarted: the byte is the place in this row. The zygotes count as one.
ALL = "all"
ZYGOTES = "zygotes"
PARTS = (ALL, "gateway", "supervisor", "adapters", ZYGOTES, "provisioner")

MAX_ANSWER_BYTES = 8_192

_BACKLOG = 8


class Order:
    """One that was asked, and who waits to hear of it."""

    def __init__(self, asker: socket.socket) -> None:
        self._asker = asker

    def __repr__(self) -> str:
        return f"<Order {self._asker.fileno()}>"

    def tell(self, part: str, state: str, after_s: float) -> None:
        self._say({"part": part, "state": state, "ms": round(after_s * 1000)})

    def end(self, error: str = "") -> None:
        """Say the last word; `error` is empty if all went well."""
        self._say({"ended": True, "error": error[:2000]})
        self._asker.close()

    def _say(self, message: dict[str, object]) -> None:
        # Who asked may have left: what was begun is done all the same.
        with contextlib.suppress(OSError):
            self._asker.send(json.dumps(message).encode())


class Orders:
    """The socket. Every call returns at once."""

    def __init__(self, run_path: Path, *, take: Callable[[str, Order], None]) -> None:
        """`take` is given each order: the part, and whom to tell. Raises OSError."""
        self._take = take
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        path = run_path / SOCKET
        mask = os.umask(0o177)
        try:
            self.socket.bind(str(path))
        finally:
            os.umask(mask)
        self.socket.listen(_BACKLOG)
        self.socket.setblocking(False)
        # Those that have connected and not asked yet: the operator's own programs.
        self.askers: list[socket.socket] = []

    def __repr__(self) -> str:
        return f"<Orders {len(self.askers)} asking>"

    def accept(self) -> socket.socket | None:
        """Somebody connected: whom to `hear` once there is something."""
        try:
            asker, _ = self.socket.accept()
        except OSError:
            return None
        asker.setblocking(False)
        self.askers.append(asker)
        return asker

    def hear(self, asker: socket.socket) -> None:
        """Read what was asked; whoever says anything else is not listened to."""
        self.askers.remove(asker)
        try:
            message = asker.recv(2)
        except OSError:
            message = b""
        if len(message) != 1 or message[0] >= len(PARTS):
            asker.close()
            return
        self._take(PARTS[message[0]], Order(asker))

    def close(self) -> None:
        for asker in self.askers:
            asker.close()
        self.askers.clear()
        self.socket.close()
