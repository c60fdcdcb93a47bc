"""Attacks on processes: of the platform, of other environments, of the machine."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal

import children  # type: ignore[import-not-found]  # beside this file, where it is deployed

_libc = ctypes.CDLL(None, use_errno=True)
# No attack takes more than this, with its limit or without.
_MOST_CHILDREN = 200
_MOST_MB = 300


def _others() -> list[int]:
    """Every visible process that is neither this one nor its child."""
    mine = {os.getpid(), os.getppid() if os.getpid() != 1 else 1}
    return sorted({int(name) for name in os.listdir("/proc") if name.isdigit()} - mine)


def see_others() -> list[int]:
    others = _others()
    if not others:
        raise ProcessLookupError(errno.ESRCH, "alone")
    return others[:10]


def see_command_lines() -> list[str]:
    lines = []
    for pid in _others():
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                lines.append(file.read())
        except OSError:
            continue
    if not any(lines):
        raise ProcessLookupError(errno.ESRCH, "nobody says what it runs")
    return lines[:3]


def signal_process(pid: int) -> str:
    """Signal 0 is the question whether one may."""
    os.kill(pid, 0)
    return f"may signal {pid}"


def know_process(pid: int) -> str:
    """Whether it exists: a refusal tells as much as a success."""
    try:
        os.kill(pid, 0)
    except PermissionError as error:
        if error.errno == errno.EPERM:
            return f"{pid} exists"
        raise
    return f"{pid} exists"


def read_of_process(pid: int, name: str) -> str:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read(64).decode(errors="replace")


def list_descriptors_of(pid: int) -> list[str]:
    return os.listdir(f"/proc/{pid}/fd")


def open_memory_of(pid: int) -> str:
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))
    return f"the memory of {pid}"


def hold_process(pid: int) -> str:
    os.close(os.pidfd_open(pid))
    return f"a descriptor of {pid}"


def slow_process_down(pid: int) -> str:
    os.setpriority(os.PRIO_PROCESS, pid, 19)
    return f"{pid} is the last to run now"


def bind_process(pid: int) -> str:
    os.sched_setaffinity(pid, os.sched_getaffinity(pid))
    return f"{pid} runs where it is told to"


def limit_process(pid: int) -> str:
    """prlimit: no memory, no files, for somebody else."""
    resource.prlimit(pid, resource.RLIMIT_CORE, resource.prlimit(pid, resource.RLIMIT_CORE))
    return f"{pid} has the limits it is given"


def join_namespaces_of(pid: int) -> str:
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    os.close(descriptor)
    return f"the network of {pid}"


def leave_daemons(count: int) -> str:
    """Processes that left their session, their parent and every signal that can be ignored."""
    count = min(count, _MOST_CHILDREN)
    reader, writer = os.pipe()
    for _ in range(count):
        children.daemon(writer)
    os.close(writer)
    ready = 0
    while ready < count:
        came = len(os.read(reader, count))
        if not came:
            raise ChildProcessError(errno.ECHILD, f"only {ready} live")
        ready += came
    os.close(reader)
    return f"{count} daemons"


def fork_many(count: int) -> str:
    """As many children as one asks for, within reason; those that came are taken back."""
    made: list[int] = []
    try:
        for _ in range(min(count, _MOST_CHILDREN)):
            made.append(children.parked())
        return f"{len(made)} children"
    finally:
        children.end(made)


def take_memory(mb: int) -> str:
    """Written to, every page, so that it is memory indeed."""
    block = bytearray(min(mb, _MOST_MB) << 20)
    for page in range(0, len(block), 4096):
        block[page] = 1
    return f"{mb} MB"


def open_many(count: int) -> str:
    descriptors = []
    try:
        for _ in range(count):
            descriptors.append(os.open("/dev/null", os.O_RDONLY))
        return f"{count} descriptors"
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def queue_signals(count: int) -> str:
    """Real-time signals that nobody takes fill the kernel's memory."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    sigqueue = _libc.sigqueue
    for _ in range(count):
        if sigqueue(os.getpid(), int(signal.SIGRTMIN), ctypes.c_void_p(0)) == -1:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return f"{count} signals"
