"""Netlink: how messages to the kernel are written, and its answers read.

All numbers here are in the machine's own order, as the kernel has them.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
EXCLUSIVE, CREATE, APPEND = 0x200, 0x400, 0x800  # of requests that make something

ERROR, DONE = 2, 3  # kinds of answers

_NESTED = 0x8000
_KIND = 0x3FFF
_MOST_BYTES = 1 << 16

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")


def message(kind: int, flags: int, body: bytes, sequence: int = 0) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    padding = b"\0" * (-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def nest(kind: int, *members: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(members))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and value of each."""
    while len(data) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & _KIND, data[_ATTRIBUTE.size : size]
        data = data[max((size + 3) & ~3, _ATTRIBUTE.size) :]


def failures(link: socket.socket) -> list[int]:
    """The errno of each request that failed; the kernel has answered before `send` returns."""
    found = []
    for kind, body in answers(link, socket.MSG_DONTWAIT):
        if kind == ERROR and (result := _ERRNO.unpack_from(body)[0]):
            found.append(-result)
    return found


def answers(link: socket.socket, flags: int = 0) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each: all that are there, or, if this may wait, without end."""
    while True:
        try:
            data = link.recv(_MOST_BYTES, flags)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                continue
            raise
        while len(data) >= _HEADER.size:
            size, kind, _, _, _ = _HEADER.unpack_from(data)
            yield kind, data[_HEADER.size : size]
            data = data[(size + 3) & ~3 :]
