"""Attacks on who one is: other ids, capabilities, and what only their holder may do."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket
import stat
import subprocess

_libc = ctypes.CDLL(None, use_errno=True)

_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_SET_SECUREBITS = 28
_CAP_SYS_ADMIN = 21


def _checked(result: int) -> int:
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def become_root() -> int:
    os.setresuid(0, 0, 0)
    return os.getuid()


def become_roots_group() -> int:
    os.setresgid(0, 0, 0)
    return os.getgid()


def join_groups() -> list[int]:
    os.setgroups([0, 42])
    return os.getgroups()


def become_another_tenant(uid: int) -> int:
    """In a child: the uid cannot be taken back."""
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(uid, uid, uid)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or errno.EPROTO)
        finally:
            os._exit(errno.EPROTO)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise OSError(status, os.strerror(status))
    return uid


def give_a_file_away() -> int:
    with open("/tmp/gift", "w") as file:
        os.chown(file.fileno(), 1, 1)
    return os.stat("/tmp/gift").st_uid


def raise_capabilities() -> str:
    """Every capability there is, by capset."""
    header = (ctypes.c_uint32 * 2)(0x2008_0522, 0)
    every = 0xFFFF_FFFF
    data = (ctypes.c_uint32 * 6)(1 << _CAP_SYS_ADMIN, 1 << _CAP_SYS_ADMIN, 0, 0, 0, 0)
    _checked(_libc.syscall(126, header, data))
    return hex(every)


def keep_securebits() -> int:
    return _checked(_libc.prctl(_PR_SET_SECUREBITS, ctypes.c_ulong(0), 0, 0, 0))


def run_as_owner(program: str) -> int:
    """A set-user-id program of root's, which somebody deployed with the function."""
    uid = int(subprocess.run([program, "-u"], capture_output=True, check=True).stdout)
    if uid:
        raise PermissionError(errno.EPERM, f"ran as {uid}")
    return uid


def make_device() -> str:
    """The memory of the machine, under a name of one's own."""
    os.mknod("/tmp/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.unlink("/tmp/null")
    return "a device"


def rename_the_host() -> str:
    socket.sethostname(socket.gethostname())  # whoever may do this may give any other name
    return socket.gethostname()


def raise_limit(name: str, value: int) -> tuple[int, int]:
    """Past the hard limit, which Python reports as a ValueError."""
    limit = getattr(resource, name)
    before = resource.getrlimit(limit)
    if before[1] in (resource.RLIM_INFINITY, value) or before[1] > value:
        return before  # there is no limit worth the name
    resource.setrlimit(limit, (value, value))
    return resource.getrlimit(limit)


def run_in_real_time() -> int:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    return os.sched_getscheduler(0)


def push_ahead() -> int:
    return os.nice(-5)


def lock_memory() -> str:
    """64 MB that nobody could ever swap out."""
    size = 64 << 20
    _libc.mmap.restype = ctypes.c_void_p
    start = _libc.mmap(None, ctypes.c_size_t(size), 3, 0x22, -1, ctypes.c_long(0))
    try:
        _checked(_libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(size)))
        return f"{size} bytes"
    finally:
        _libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(size))


def send_raw() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP):
        return "a raw socket"


def send_packets() -> str:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0):
        return "a packet socket"


def bind_low_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 81))
        return "a port of the system's"
