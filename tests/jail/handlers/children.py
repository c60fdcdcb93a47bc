"""Children that attacks need: each ends by itself, whatever becomes of who made it."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import NoReturn

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_LONGEST_S = 30


def parked() -> int:
    """The pid of a child that only waits."""
    child = os.fork()
    if child == 0:
        try:
            _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
            _park()
        finally:
            os._exit(1)
    return child


def daemon(ready: int) -> None:
    """A grandchild that left its session and its parent, and listens to no polite signal. It
    writes a byte to `ready` when it has settled."""
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork():
                os._exit(0)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_IGN)
            os.write(ready, b"x")
            os.close(ready)
            _park()
        finally:
            os._exit(1)
    os.waitpid(child, 0)


def _park() -> NoReturn:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_LONGEST_S)
    while True:
        signal.pause()


def end(children: list[int]) -> None:
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)
