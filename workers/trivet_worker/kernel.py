"""Kernel: the Linux calls that Python's standard library does not offer, through ctypes.

Each raises OSError with the errno of the call. The numbers of the newer calls are the same on
every architecture that Linux numbers uniformly, which is all that CPython 3.9 still runs on.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x0002_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REC = 0x4000
MS_PRIVATE = 0x4_0000

ATTR_RDONLY = 0x1
ATTR_NOSUID = 0x2
ATTR_NODEV = 0x4

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_CLOSE_RANGE = 436
_SYS_MOUNT_SETATTR = 442

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 0x1
_MOVE_MOUNT_FROM_EMPTY_PATH = 0x4

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

_CAPABILITY_VERSION_3 = 0x2008_0522
_LAST_DESCRIPTOR = 0xFFFF_FFFF

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("user_namespace", ctypes.c_uint64),
    )


def _checked(result: int, call: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def unshare(namespaces: int) -> None:
    _checked(_libc.unshare(ctypes.c_int(namespaces)), "unshare")


def join_namespaces(descriptor: int, namespaces: int) -> None:
    """Enter what `descriptor` (a namespace, or a pidfd) refers to."""
    _checked(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(namespaces)), "setns")


def mount(kind: str, target: str, flags: int, options: str = "") -> None:
    """Mount a new filesystem of a kind without a device."""
    result = _libc.mount(
        kind.encode(),
        os.fsencode(target),
        kind.encode(),
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _checked(result, f"mount {kind}")


def make_private(target: str) -> None:
    """From here on neither side sees what the other mounts below `target`."""
    flags = ctypes.c_ulong(MS_REC | MS_PRIVATE)
    _checked(_libc.mount(None, os.fsencode(target), None, flags, None), "mount private")


def clone_tree(folder: int) -> int:
    """A descriptor of an unattached copy of the mounts at and below `folder`.

    Below it too: a copy that uncovers what another mount hides is refused in a user namespace.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE | _AT_EMPTY_PATH
    result = _libc.syscall(_SYS_OPEN_TREE, folder, b"", ctypes.c_uint(flags))
    return _checked(result, "open_tree")


def restrict_tree(tree: int, attributes: int) -> None:
    """Give every mount of `tree` (a clone, or any folder's descriptor) ATTR_* flags."""
    wanted = _MountAttributes(set=attributes)
    result = _libc.syscall(
        _SYS_MOUNT_SETATTR,
        tree,
        b"",
        ctypes.c_uint(_AT_EMPTY_PATH | _AT_RECURSIVE),
        ctypes.byref(wanted),
        ctypes.c_size_t(ctypes.sizeof(wanted)),
    )
    _checked(result, "mount_setattr")


def attach_tree(tree: int, target: str) -> None:
    result = _libc.syscall(
        _SYS_MOVE_MOUNT,
        tree,
        b"",
        _AT_FDCWD,
        os.fsencode(target),
        ctypes.c_uint(_MOVE_MOUNT_FROM_EMPTY_PATH),
    )
    _checked(result, "move_mount")


def close_from(first: int) -> None:
    """Close every descriptor from `first` on."""
    last = ctypes.c_uint(_LAST_DESCRIPTOR)
    if _libc.syscall(_SYS_CLOSE_RANGE, ctypes.c_uint(first), last, 0) == -1:
        # Only a filter can refuse this call on the kernels we support.
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def set_dumpable(is_dumpable: bool) -> None:
    """Whether /proc/self belongs to the process itself; a change of uid takes that away."""
    _checked(_prctl(_PR_SET_DUMPABLE, int(is_dumpable)), "prctl dumpable")


def become_subreaper() -> None:
    """Orphans among the descendants become children of this process."""
    _checked(_prctl(_PR_SET_CHILD_SUBREAPER, 1), "prctl subreaper")


def forbid_new_privileges() -> None:
    _checked(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "prctl no_new_privs")


def drop_bounding_set() -> None:
    """No program that descends from this process can ever gain a capability by being run."""
    for capability in range(64):
        if _prctl(_PR_CAPBSET_DROP, capability) == -1:
            break  # past the last one that this kernel knows


def drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def overwrite(address: int, size: int) -> None:
    """Fill a part of this process's own memory with zeros."""
    ctypes.memset(address, 0, size)


def _prctl(option: int, argument: int) -> int:
    zero = ctypes.c_ulong(0)
    result: int = _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(argument), zero, zero, zero)
    return result
