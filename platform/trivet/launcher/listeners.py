"""Listeners: the sockets that outlive every gateway, so that no caller is ever refused."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path

from trivet.launcher.refusals import PortTaken, command
from trivet.settings import Settings

BACKLOG = 1024

_LOOK_AGAIN_S = 0.02
_LISTENING = "0A"  # state of a listening socket in /proc/net/tcp


def open_listeners(settings: Settings, *, patience_s: float = 0.0) -> dict[str, socket.socket]:
    """Listening sockets by name: "aws" and "http".

    `patience_s`: how long to wait for an address that a killed predecessor may still hold.
    Raises PortTaken.
    """
    if settings.aws_port == settings.http_port != 0:
        # Else the second would find the first, and blame this very process.
        message = f"port {settings.http_port} is given to both the AWS endpoint and HTTP triggers"
        raise PortTaken(message, hint=f"TRIVET_HTTP_PORT=0 {command()} up  # 0: any free port")
    listeners: dict[str, socket.socket] = {}
    try:
        for name, port in (("aws", settings.aws_port), ("http", settings.http_port)):
            listeners[name] = _listen(settings.host, name, port, patience_s)
    except PortTaken:
        for listener in listeners.values():
            listener.close()
        raise
    return listeners


def _listen(host: str, name: str, port: int, patience_s: float) -> socket.socket:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return _bound(host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(_LOOK_AGAIN_S)
                continue
            raise _refusal(host, name, port, error) from error


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _refusal(host: str, name: str, port: int, error: OSError) -> PortTaken:
    variable = f"TRIVET_{name.upper()}_PORT"
    if error.errno == errno.EADDRINUSE:
        who = holder(port)
        message = f"port {port} on {host} is in use{f' by {who}' if who else ''}"
        return PortTaken(message, hint=f"{variable}=0 {command()} up  # 0: any free port")
    if error.errno == errno.EACCES:
        message = f"port {port} on {host} may only be opened by root"
        return PortTaken(message, hint=f"{variable}=0 {command()} up  # 0: any free port")
    message = f"cannot listen on {host}, port {port}: {error.strerror or error}"
    return PortTaken(message, hint=f"TRIVET_HOST=127.0.0.1 {command()} up")


def holder(port: int) -> str | None:
    """Who listens on `port`, as "name (pid N)", if this user may know."""
    inodes = _listening_inodes(port)
    for process in Path("/proc").iterdir() if inodes else ():
        if process.name.isdigit() and _holds(process, inodes):
            try:
                name = (process / "comm").read_text().strip()
            except OSError:
                continue
            printable = "".join(c for c in name if c.isprintable())
            return f"{printable} (pid {process.name})"
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    return inodes


def _holds(process: Path, inodes: set[str]) -> bool:
    try:
        return any(os.readlink(entry) in inodes for entry in (process / "fd").iterdir())
    except OSError:
        return False
