"""Landlock: which files, ports and neighbours a process may still reach, whatever its root shows.

Behind an own root it adds little: devices, abstract sockets and signals are denied once more. Where
there are no namespaces it is the first wall. A kernel without it raises OSError.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from trivet_worker import kernel
from trivet_worker.wire import AWS_PORT

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 0x1, 0x2, 0x4, 0x8
_MAKE_DEVICES = 0x40 | 0x800
_REFER = 0x2000  # to move or link a file into another folder
_IOCTL_DEV = 0x8000
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_CONNECT_TCP = 0x2
_ABSTRACT_SOCKETS_AND_SIGNALS = 0x3
# By version of the interface: what it can deny of files, networks and neighbours. Later ones can
# do what the last one here can.
_DENIABLE = (
    (0x1FFF, 0, 0),
    (0x3FFF, 0, 0),
    (0x7FFF, 0, 0),
    (0x7FFF, _CONNECT_TCP, 0),
    (0xFFFF, _CONNECT_TCP, 0),
    (0xFFFF, _CONNECT_TCP, _ABSTRACT_SOCKETS_AND_SIGNALS),
)

_ASK_VERSION = 0x1
_BENEATH, _PORT = 1, 2  # kinds of rules

_OPEN_PORTS = (80, 443, AWS_PORT)
_HOST_FOLDERS = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc"),
    *("/dev", "/proc"),
)


def rules_of_a_view() -> int:
    """For environments with this root and a network of their own: made once, and shared.

    Of files only the making of devices is left to deny. A rule for /tmp could not be shared, since
    it would name the folder that is mounted there now; and made anew for each environment it costs
    more than all their namespaces, to say again what a read-only root says. The first version,
    which cannot allow to move files between folders, refuses.
    """
    _, _, neighbours = _deniable()
    rules = _create(_MAKE_DEVICES | _REFER, 0, neighbours)
    _allow(rules, "/", _REFER)
    return rules


def rules_of_the_host(folders: Sequence[str], code: int) -> int:
    """For an environment that shares the host's files. `code` is its folder's descriptor.

    A cell (-1) may read everything, since its code is not known yet.
    """
    files, network, neighbours = _deniable()
    rules = _create(files, network, neighbours)
    try:
        for port in _OPEN_PORTS if network else ():
            kernel.call("landlock_add_rule", rules, _PORT, struct.pack("=QQ", network, port), 0)
        paths = ["/"] if code < 0 else [*_HOST_FOLDERS, *folders, f"/proc/self/fd/{code}"]
        for path in filter(os.path.isdir, paths):
            _allow(rules, path, _READ)
        _allow(rules, "/tmp", files & ~_MAKE_DEVICES)
        _allow(rules, "/dev", files & (_READ | _WRITE_FILE | _IOCTL_DEV))
    except OSError:
        os.close(rules)
        raise
    return rules


def _deniable() -> tuple[int, int, int]:
    version = kernel.call("landlock_create_ruleset", None, 0, _ASK_VERSION)
    return _DENIABLE[min(version, len(_DENIABLE)) - 1]


def _create(files: int, network: int, neighbours: int) -> int:
    """A descriptor of rules: what none of them allows, of these kinds, will be denied."""
    wanted = struct.pack("=3Q", files, network, neighbours)
    return kernel.call("landlock_create_ruleset", wanted, len(wanted), 0)


def _allow(rules: int, path: str, access: int) -> None:
    """Allow `access` to `path` and all beneath it."""
    folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    kernel.call("landlock_add_rule", rules, _BENEATH, struct.pack("=Qi", access, folder), 0)
    os.close(folder)
