"""Notify: tell a service manager how far we are, if one started us and asked (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket

VARIABLE = "NOTIFY_SOCKET"

READY = "READY=1"
STOPPING = "STOPPING=1"


def tell(state: str) -> None:
    """Say it to whom it concerns. A manager that does not listen is its own problem."""
    address = os.environ.get(VARIABLE, "")
    if address[:1] not in ("/", "@"):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # a name without a file
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
    ):
        sender.sendto(state.encode(), address)
