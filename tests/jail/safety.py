"""Safety: bounds around everything that these tests start, should the layer under test fail."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator

from trivet.launcher import hierarchies

# Far more than the tests need, far less than the machine has.
_MOST_PROCESSES = 800
_MOST_MEMORY = 3 << 30

_LIMITS = {
    1: {"pids": ("pids.max", _MOST_PROCESSES), "memory": ("memory.limit_in_bytes", _MOST_MEMORY)},
    2: {"pids": ("pids.max", _MOST_PROCESSES), "memory": ("memory.max", _MOST_MEMORY)},
}
NAME = f"trivet-jail-tests-{os.getpid()}"


@contextlib.contextmanager
def bounds() -> Iterator[None]:
    """This process and all that it starts stay within them, root's too where cgroups can be had."""
    with contextlib.ExitStack() as stack:
        if os.geteuid() == 0:
            for controller in ("pids", "memory"):
                stack.enter_context(_cgroup(controller))
        else:
            stack.enter_context(_limit())
        yield


@contextlib.contextmanager
def _cgroup(controller: str) -> Iterator[None]:
    found = hierarchies.survey()
    if controller not in found.own:
        yield
        return
    home = found.own[controller]
    for left in home.glob("trivet-jail-tests-*"):
        with contextlib.suppress(OSError):
            left.rmdir()  # of a session that was killed
    folder = home / NAME
    name, value = _LIMITS[found.version][controller]
    folder.mkdir(exist_ok=True)
    try:
        (folder / name).write_text(str(value))
        (folder / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:  # v2, where this cgroup may give no controllers to a child
        folder.rmdir()
        yield
        return
    try:
        yield
    finally:
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (home / "cgroup.procs").write_text(pid)
        folder.rmdir()


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    """Of this user's processes: as many as there are, and some more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    tasks = subprocess.run(
        ["ps", "-L", "-u", str(os.geteuid()), "-o", "pid="], capture_output=True, check=True
    )
    most = len(tasks.stdout.split()) + _MOST_PROCESSES
    resource.setrlimit(resource.RLIMIT_NPROC, (min(n for n in (most, soft, hard) if n != -1), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
