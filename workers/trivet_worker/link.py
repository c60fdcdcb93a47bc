"""Link: messages and the descriptors beside them, through a socket that keeps messages apart.

The standard library's recv_fds and send_fds would do, but they drop the flags they are given.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Iterable, Sequence

from trivet_worker.wire import COMMAND, MOST_DESCRIPTORS

_DESCRIPTOR = struct.Struct("i")


class Outbox:
    """What waits until the other side has room for it."""

    def __init__(self, connection: socket.socket, poll: select.poll, events: int) -> None:
        """`poll` looks for `events` there, and for room when there is none: then call `flush`."""
        self._connection = connection
        self._poll = poll
        self._events = events
        poll.register(connection, events)
        self._waiting: deque[tuple[bytes, Sequence[int]]] = deque()

    def put(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send, now or later. Closes `descriptors` once they are on their way."""
        self._waiting.append((message, descriptors))
        self.flush()

    def flush(self) -> None:
        """Send what there is room for."""
        events = self._events
        while self._waiting:
            message, descriptors = self._waiting[0]
            try:
                send(self._connection, message, descriptors)
            except BlockingIOError:
                events |= select.POLLOUT
                break
            except OSError:
                pass  # the other side is gone, as the poll is about to say
            close_all({*descriptors})  # one may be there twice
            self._waiting.popleft()
        self._poll.modify(self._connection, events)


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """One command that has arrived, or BlockingIOError. Empty at the end of the other side.

    OSError with EMFILE, and no descriptor kept, if there are more beside it than are taken, or
    than this process has room for.
    """
    room = socket.CMSG_SPACE(MOST_DESCRIPTORS * _DESCRIPTOR.size)
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    message, extras, state, _ = connection.recvmsg(COMMAND.size + 1, room, flags)
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


def close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
