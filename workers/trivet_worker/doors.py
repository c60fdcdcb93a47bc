"""Doors: sockets that are bound in the network of an environment, and served outside.

The zygote binds them, in the network, before there is an environment in it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from trivet_worker import kernel
from trivet_worker.isolation import Isolation
from trivet_worker.wire import AWS_PORT, DOOR_AWS, DOOR_NAMES, DOOR_RUNTIME, RUNTIME_PORT

_DOORS = {
    # On every loopback address, unlike the others.
    DOOR_AWS: (socket.SOCK_STREAM, "0.0.0.0", AWS_PORT),
    DOOR_NAMES: (socket.SOCK_DGRAM, "127.0.0.1", 53),
    DOOR_RUNTIME: (socket.SOCK_STREAM, "127.0.0.1", RUNTIME_PORT),
}

_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x1 | 0x40


def open_doors(
    level: Isolation, network: int, *, is_custom: bool
) -> tuple[int, dict[int, socket.socket]]:
    """The network that `network` refers to, or with -1 an empty one, and sockets bound in it.

    By DOOR_* bit, in the order of the bits. Takes this process there and back. OSError for what no
    function lives in.
    """
    wanted = (DOOR_AWS, DOOR_NAMES, *([DOOR_RUNTIME] if is_custom else []))
    try:
        _enter(level, network)
        doors = {bit: _bound(*_DOORS[bit]) for bit in wanted}
        return os.open("/proc/self/ns/net", os.O_RDONLY), doors
    finally:
        kernel.come_back(level.network, kernel.CLONE_NEWNET)


def _enter(level: Isolation, network: int) -> None:
    if network < 0:
        kernel.unshare(kernel.CLONE_NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = struct.pack("16sH14x", b"lo", _IFF_UP_RUNNING)
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)
        return
    ours, given = os.fstat(level.network), os.fstat(network)
    # Nor that of a process, which a pidfd would lead to.
    if given.st_dev != ours.st_dev or given.st_ino in (ours.st_ino, level.host_network):
        raise PermissionError(errno.EPERM, "no network of a function")
    kernel.join_namespaces(network, kernel.CLONE_NEWNET)


def _bound(kind: int, address: str, port: int) -> socket.socket:
    door = socket.socket(socket.AF_INET, kind)
    # On nothing that leads out.
    door.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    door.bind((address, port))
    if kind == socket.SOCK_STREAM:
        door.listen()
    return door
