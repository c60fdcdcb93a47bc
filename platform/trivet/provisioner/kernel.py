"""Kernel: the Linux calls for this package that Python does not offer, through ctypes.

Each raises OSError with the errno of the call. The numbers of the newer calls are the same on
every architecture that Linux numbers uniformly.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

CLONE_NEWNET = 0x4000_0000

MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4

TMPFS_MAGIC = 0x0102_1994
RAMFS_MAGIC = 0x8584_58F6

CAP_DAC_OVERRIDE = 1  # the scratch folder may lie below folders of another user
CAP_NET_ADMIN = 12
CAP_SYS_ADMIN = 21

_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6

_PR_CAPBSET_DROP = 24
_CAPABILITY_VERSION_3 = 0x2008_0522

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, call: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


@contextmanager
def new_network_namespace(home: int) -> Iterator[int]:
    """Be in a new network namespace, whose descriptor this gives; then in `home` again.

    This thread alone moves, and the process has but one. Raises OSError.
    """
    _checked(_libc.unshare(ctypes.c_int(CLONE_NEWNET)), "unshare")
    try:
        descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        except BaseException:
            os.close(descriptor)
            raise
    finally:
        _checked(_libc.setns(ctypes.c_int(home), ctypes.c_int(CLONE_NEWNET)), "setns")


def detached_mount(kind: str, source: str, options: tuple[str, ...]) -> int:
    """A descriptor of a new mount, nowhere attached, of the device `source`; nosuid and nodev."""
    context = _checked(_libc.syscall(_SYS_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC), "fsopen")
    try:
        _configure(context, _FSCONFIG_SET_STRING, b"source", source.encode())
        for option in options:
            _configure(context, _FSCONFIG_SET_FLAG, option.encode(), None)
        _configure(context, _FSCONFIG_CMD_CREATE, None, None)
        attributes = ctypes.c_uint(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
        mount = _libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
        return _checked(mount, "fsmount")
    finally:
        os.close(context)


def _configure(context: int, command: int, key: bytes | None, value: bytes | None) -> None:
    result = _libc.syscall(_SYS_FSCONFIG, context, command, key, value, 0)
    _checked(result, f"fsconfig {(key or b'create').decode()}")


def filesystem_kind(path: str) -> int:
    """The magic number of the filesystem that holds `path`."""
    answer = ctypes.create_string_buffer(256)  # struct statfs is 120 bytes; its first is f_type
    _checked(_libc.statfs(os.fsencode(path), answer), "statfs")
    return int(struct.unpack_from("@l", answer)[0]) & 0xFFFF_FFFF


def keep_capabilities(*wanted: int) -> None:
    """Give up all others, for this process and all that it ever runs."""
    kept = sum(1 << capability for capability in wanted)
    zero = ctypes.c_ulong(0)
    for capability in range(64):
        if not kept >> capability & 1:
            argument = ctypes.c_ulong(capability)
            if _libc.prctl(ctypes.c_int(_PR_CAPBSET_DROP), argument, zero, zero, zero) == -1:
                break  # past the last one that this kernel knows
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = kept & 0xFFFF_FFFF, kept >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    _checked(_libc.capset(header, data), "capset")
