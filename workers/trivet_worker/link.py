"""Link: commands and the descriptors beside them, through a socket that keeps messages apart.

The standard library's recv_fds and send_fds would do, but they drop the flags they are given.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence

from trivet_worker.wire import COMMAND, MOST_DESCRIPTORS

_DESCRIPTOR = struct.Struct("i")


def receive(connection: socket.socket, size: int = COMMAND.size) -> tuple[bytes, list[int]]:
    """One message that has arrived, or BlockingIOError. Empty at the end of the other side.

    OSError with EMFILE, and no descriptor kept, if there are more beside it than are taken, or
    than this process has room for.
    """
    room = socket.CMSG_SPACE(MOST_DESCRIPTORS * _DESCRIPTOR.size)
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    message, extras, state, _ = connection.recvmsg(size + 1, room, flags)
    # Nothing else comes beside a message through such a socket.
    packed = b"".join(data for _, _, data in extras)
    whole = packed[: len(packed) - len(packed) % _DESCRIPTOR.size]
    descriptors = [number for (number,) in _DESCRIPTOR.iter_unpack(whole)]
    if state & socket.MSG_CTRUNC:
        close_all(descriptors)
        raise OSError(errno.EMFILE, "too many descriptors beside a message")
    return message, descriptors


def send(connection: socket.socket, message: bytes, descriptors: Sequence[int]) -> None:
    """Send without waiting: BlockingIOError if there is no room."""
    packed = b"".join(map(_DESCRIPTOR.pack, descriptors))
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)
    connection.sendmsg([message], [rights] if descriptors else [], socket.MSG_DONTWAIT)


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
