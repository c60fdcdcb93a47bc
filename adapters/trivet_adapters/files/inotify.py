"""Inotify: what the kernel tells of folders.

Directly, because it alone knows when a writer has closed a file; names are bytes, as they are on
disk.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MODIFY = 0x2
ATTRIB = 0x4
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
UNMOUNT = 0x2000
OVERFLOW = 0x4000
IGNORED = 0x8000
IS_FOLDER = 0x40000000

_ONLY_FOLDERS, _NO_LINKS, _NOT_UNLINKED = 0x1000000, 0x2000000, 0x4000000
_WANTED = (
    *(MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF),
    *(_ONLY_FOLDERS, _NO_LINKS, _NOT_UNLINKED),
)
_HEADER = struct.Struct("iIII")  # watch, mask, cookie, bytes of the name
_READ_BYTES = 65_536

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something happened in the folder of a watch, or to it; `name` is in it, or empty."""

    watch: int  # -1: notices were lost
    mask: int
    name: bytes


class Inotify:
    """One queue of notices."""

    def __init__(self) -> None:
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), b"inotify")

    def fileno(self) -> int:
        return self._fd

    def add(self, folder: bytes) -> int:
        """Watch a folder, not what lies below it; the same number for the same folder.

        Raises OSError: ENOSPC when the kernel has no watch left for this user.
        """
        mask = sum(_WANTED)
        return _checked(_libc.inotify_add_watch(self._fd, folder, mask), folder)

    def remove(self, watch: int) -> None:
        """Also of a watch that went by itself."""
        _libc.inotify_rm_watch(self._fd, watch)

    def read(self) -> Iterator[Notice]:
        """The notices that are there."""
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        place = 0
        while place < len(data):
            watch, mask, _, length = _HEADER.unpack_from(data, place)
            place += _HEADER.size
            yield Notice(watch, mask, data[place : place + length].rstrip(b"\0"))
            place += length

    def close(self) -> None:
        os.close(self._fd)


def _checked(result: int, what: bytes) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(what))
    return result
