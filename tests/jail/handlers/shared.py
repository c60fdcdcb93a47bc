"""Attacks on what all environments share, for want of a layer that would part it."""

from __future__ import annotations

import ctypes
import fcntl
import os

_libc = ctypes.CDLL(None, use_errno=True)
_IO_SETUP = {"x86_64": 206, "aarch64": 0}


def mark_input() -> str:
    """Sets a flag of the opened file that is standard input: whoever shares that, sees it."""
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_NONBLOCK)
    return "marked"


def is_input_marked() -> bool:
    return bool(fcntl.fcntl(0, fcntl.F_GETFL) & os.O_NONBLOCK)


def take_events(count: int) -> str:
    """Of the machine's asynchronous input and output, whose events are counted for all users
    together: with all of them taken, no database here starts any more. Given back at the end."""
    context = ctypes.c_ulong(0)
    number = _IO_SETUP[os.uname().machine]
    if _libc.syscall(number, ctypes.c_uint(count), ctypes.byref(context)) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return f"{count} events"
