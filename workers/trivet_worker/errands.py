"""Errands: what a process of its own does, which says by its exit status whether it could."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NoReturn


def begin(task: Callable[[], None]) -> int:
    """The pid of a child that carries out `task` and ends."""
    return os.fork() or carry_out(task)


def carry_out(task: Callable[[], None]) -> NoReturn:
    """Exit with 0, or with the errno that kept this process from it."""
    status = errno.EPROTO
    try:
        task()
        status = 0
    except OSError as error:
        status = error.errno or errno.EPROTO
    finally:
        os._exit(status)


def outcome(pid: int) -> int:
    """Wait for a child: 0, or the errno."""
    return as_errno(os.waitpid(pid, 0)[1])


def as_errno(status: int) -> int:
    """The same from what waitpid tells."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else errno.EPROTO
