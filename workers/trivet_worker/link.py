"""Link: commands and the descriptors beside them, through a socket that keeps messages apart.

The standard library's recv_fds and send_fds would do, but they drop the flags they are given.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from trivet_worker.wire import COMMAND, MOST_DESCRIPTORS

_DESCRIPTOR = struct.Struct("i")


def receive(connection: socket.socket, size: int = COMMAND.size) -> tuple[bytes, list[int]]:
    """One message that has arrived, or BlockingIOError. Too many descriptors make it empty."""
    room = socket.CMSG_SPACE(MOST_DESCRIPTORS * _DESCRIPTOR.size)
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    message, extras, state, _ = connection.recvmsg(size + 1, room, flags)
    descriptors: list[int] = []
    for level, kind, data in extras:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = data[: len(data) - len(data) % _DESCRIPTOR.size]
            descriptors += (number for (number,) in _DESCRIPTOR.iter_unpack(whole))
    return b"" if state & socket.MSG_CTRUNC else message, descriptors


def send(connection: socket.socket, message: bytes, descriptors: Sequence[int]) -> None:
    packed = b"".join(map(_DESCRIPTOR.pack, descriptors))
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)
    connection.sendmsg([message], [rights] if descriptors else [], socket.MSG_DONTWAIT)
