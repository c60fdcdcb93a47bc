"""Kernel: the Linux calls that Python's standard library does not offer, through ctypes.

Each raises OSError with the errno of the call. The numbers of the newer calls are the same on
every architecture that Linux numbers uniformly, which is all that CPython 3.9 still runs on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from typing import Any

CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

_CLONE_PARENT = 0x8000  # of this process's own parent
# Where the C library keeps a thread's id: as its own fork has it.
_CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x0020_0000, 0x0100_0000
_CLONE_INTO_CGROUP = 0x2_0000_0000

MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x2, 0x4, 0x8
_MS_BIND, _MS_MOVE, _MS_REC, _MS_PRIVATE = 0x1000, 0x2000, 0x4000, 0x4_0000
_MNT_DETACH = 0x2

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 0x1
_MOVE_MOUNT_FROM_EMPTY_PATH = 0x4

PR_SET_PDEATHSIG = 1  # a signal for when the parent is gone
PR_SET_DUMPABLE = 4  # whether /proc/self belongs to the process itself
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36  # orphans among the descendants become children of this process
PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24

_SECCOMP_MODE_FILTER = 2
# From there on uid 0 gets no capability by running a program, and nobody can undo that.
SECURE_NOROOT_LOCKED = 0x3
_CAPABILITY_VERSION_3 = 0x2008_0522
_LAST_DESCRIPTOR = 0xFFFF_FFFF

# Calls that the C library may not know; it knows the others by these names.
_NUMBERS = {
    "open_tree": 428,
    "move_mount": 429,
    "clone3": 435,
    "close_range": 436,
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}

# As clone3, of old: a container may hide the new one, whose arguments no filter can see.
_CLONE = {"x86_64": 56, "aarch64": 220}

# The interpreter's lock is kept: there is nobody to have it, and a fork must not wait for it.
_libc = ctypes.PyDLL(None, use_errno=True)

_THREAD_WORDS = 254
_NO_PLACE = "this C library keeps a thread's id where none was found"


class _Program(ctypes.Structure):
    _fields_ = (("count", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


Words = tuple[Any, ...]  # the name of a call, and its arguments
Call = tuple[Any, tuple[Any, ...]]


def prepared(name: str, *arguments: Any) -> Call:
    """A call that can be made any number of times, by `make`.

    It is given numbers, paths (str), bytes, None, or values of ctypes, which are read each time.
    """
    words = tuple(map(_argument, arguments))
    if name in _NUMBERS:
        return _libc.syscall, (ctypes.c_long(_NUMBERS[name]), *words)
    return getattr(_libc, name), words


def make(function: Any, arguments: tuple[Any, ...]) -> int:
    """What a prepared call returns, or OSError."""
    result: int = function(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def call(name: str, *arguments: Any) -> int:
    return make(*prepared(name, *arguments))


def _argument(value: Any) -> Any:
    if isinstance(value, int):
        return ctypes.c_long(value)
    return os.fsencode(value) if isinstance(value, str) else value


def thread_id_place() -> int:
    """Where the C library keeps this thread's id, which only its own fork renews.

    A process that was made behind its back must have it set, or locks would think of another.
    """
    _libc.pthread_self.restype = ctypes.c_void_p
    start: int = _libc.pthread_self()
    known = _words(start)
    pid = os.fork()
    if pid == 0:
        ids = (os.getppid(), os.getpid())
        places = [place for place, pair in enumerate(zip(known, _words(start))) if pair == ids]
        os._exit(places[0] if len(places) == 1 else _THREAD_WORDS)
    place = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not 0 <= place < _THREAD_WORDS:
        raise OSError(errno.ENOSYS, _NO_PLACE)
    return start + 4 * place


def _words(start: int) -> tuple[int, ...]:
    return struct.unpack(f"={_THREAD_WORDS}I", ctypes.string_at(start, _THREAD_WORDS * 4))


def forking(namespaces: int, cgroup: int, thread_id: int) -> Call:
    """The call that forks a child of this process's parent, in new namespaces; for `fork`.

    And in `cgroup`, a folder of version 2 (-1: none), so that it need not move there, which would
    wait for all other processors. `thread_id` is from `thread_id_place`.
    """
    flags = namespaces | _CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
    try:
        call("clone3", None, 0)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            # Its last two arguments are in another order on each of these; both are the same here.
            number = _CLONE[os.uname().machine]
            return prepared("syscall", number, flags, 0, 0, thread_id, thread_id)
    flags |= _CLONE_INTO_CGROUP if cgroup >= 0 else 0
    arguments = struct.pack("=11Q", flags, 0, thread_id, *[0] * 7, max(cgroup, 0))
    return prepared("clone3", arguments, len(arguments))


def fork(forking: Call) -> int:
    """Make such a call: the pid of the child, or zero in it, or OSError."""
    pid = -1
    _libc.PyOS_BeforeFork()
    try:
        pid = make(*forking)
    finally:
        after = _libc.PyOS_AfterFork_Parent if pid else _libc.PyOS_AfterFork_Child
        after()
    return pid


def children() -> set[int]:
    """The pids of this process's children; none where the kernel does not list them."""
    text = ""
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:
        text = file.read()
    return set(map(int, text.split()))


def pid_of(pidfd: int) -> int:
    """Of a process; less than one if it has ended, or is none."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        return int(file.read().partition("\nPid:")[2].partition("\n")[0] or 0)


def unshare(namespaces: int) -> None:
    call("unshare", namespaces)


def join_namespaces(descriptor: int, namespaces: int) -> None:
    """Enter what `descriptor` (a namespace, or a pidfd) refers to."""
    call("setns", descriptor, namespaces)


def come_back(descriptor: int, namespaces: int) -> None:
    """As `join_namespaces`, from where others live. Ends a process that cannot: whatever it did
    next, it would do there."""
    try:
        join_namespaces(descriptor, namespaces)
    except OSError:
        os._exit(1)


def mounting(kind: str, target: str, flags: int, options: Any) -> Words:
    """Mount a new filesystem of a kind without a device."""
    return ("mount", kind, target, kind, flags, options)


def mount(kind: str, target: str, flags: int, options: str) -> None:
    call(*mounting(kind, target, flags, options))


def binding(source: str, target: str) -> Words:
    """Show what is at `source`, and below it, at `target` too."""
    return ("mount", source, target, None, _MS_BIND | _MS_REC, None)


def moving(source: str, target: str) -> Words:
    """Show what is mounted at `source` at `target` instead."""
    return ("mount", source, target, None, _MS_MOVE, None)


def make_private(target: str) -> None:
    """From here on neither side sees what the other mounts below `target`."""
    call("mount", None, target, None, _MS_REC | _MS_PRIVATE, None)


def clone_tree(folder: int) -> int:
    """A descriptor of an unattached copy of the mounts at and below `folder`.

    Below it too: a copy that uncovers what another mount hides is refused in a user namespace.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE | _AT_EMPTY_PATH
    return call("open_tree", folder, "", flags)


def restrict_tree(tree: int, attributes: int) -> None:
    """Give every mount of `tree` (a clone, or any folder's descriptor) ATTR_* flags."""
    wanted = struct.pack("=4Q", attributes, 0, 0, 0)
    call("mount_setattr", tree, "", _AT_EMPTY_PATH | _AT_RECURSIVE, wanted, len(wanted))


def attaching(tree: int, target: str) -> Words:
    """Show `tree`, a clone or another mount that is nowhere yet, at `target`."""
    return ("move_mount", tree, "", _AT_FDCWD, target, _MOVE_MOUNT_FROM_EMPTY_PATH)


def pivot_root(folder: str) -> None:
    """Make `folder`, a mount, the root; what was there before is gone from this namespace."""
    os.chdir(folder)
    call("pivot_root", ".", ".")
    call("umount2", ".", _MNT_DETACH)
    os.chdir("/")


def close_from(first: int) -> None:
    """Close every descriptor from `first` on."""
    call(*closing_from(first))


def closing_from(first: int) -> Words:
    return ("close_range", first, _LAST_DESCRIPTOR, 0)


def prctl(option: int, value: int) -> None:
    """Change what this process is, by one of PR_*."""
    call("prctl", option, value, 0, 0, 0)


def drop_bounding_set() -> None:
    """No program that descends from this process can ever gain a capability by being run."""
    with contextlib.suppress(OSError):  # past the last one that this kernel knows
        for capability in range(64):
            prctl(_PR_CAPBSET_DROP, capability)


def dropping_capabilities() -> Words:
    return ("capset", struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24))


def filtering(program: bytes) -> Words:
    """Filter the system calls of this process and its children by classic BPF, for good."""
    pointer = ctypes.byref(_Program(len(program) // 8, program))
    return ("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, pointer, 0, 0)


def overwriting(address: int, size: int) -> Words:
    """Fill a part of this process's own memory with zeros."""
    return ("memset", address, 0, size)
