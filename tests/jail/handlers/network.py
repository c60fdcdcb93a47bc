"""Attacks by network: the host's loopback, the machine's metadata, other environments."""

from __future__ import annotations

import errno
import socket


def connect(host: str, port: int) -> str:
    with socket.socket() as client:
        client.settimeout(5)
        client.connect((host, port))
        return f"{host}:{port}"


def connect_any_family(port: int) -> str:
    """By every name that this host may have for itself."""
    for host in ("127.0.0.1", "127.1.2.3", "0.0.0.0", "localhost", "::1", "::ffff:127.0.0.1"):
        try:
            with socket.create_connection((host, port), timeout=5):
                return f"{host}:{port}"
        except OSError:
            continue
    raise ConnectionRefusedError(errno.ECONNREFUSED, "by no name")


def route_to(host: str) -> str:
    """Whether there is a way: connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((host, 53))
        return f"from {client.getsockname()[0]}"


def connect_to_abstract(name: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + name)
        return name


def see_devices() -> list[str]:
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not names:
        raise OSError(errno.ENODEV, "only lo")
    return names


def see_connections(port: int) -> str:
    """Who on this machine listens and talks: whoever has `port` is one of them."""
    with open("/proc/net/tcp") as file:
        table = file.read()
    if f":{port:04X} " not in table:
        raise OSError(errno.ENODATA, "nobody else's")
    return table
