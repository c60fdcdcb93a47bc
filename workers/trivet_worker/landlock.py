"""Landlock: which files, ports and neighbours a process may still reach, whatever its root shows.

Behind an own root it adds little: devices, abstract sockets and signals are denied once more. Where
there are no namespaces it is the first wall.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from trivet_worker import kernel
from trivet_worker.wire import AWS_PORT

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 0x1, 0x2, 0x4, 0x8
_MAKE_DEVICES = 0x40 | 0x800
_REFER = 0x2000  # to move or link a file into another folder
_IOCTL_DEV = 0x8000
_READ = _EXECUTE | _READ_FILE | _READ_DIR
# By version of the interface: what it can deny of files.
_FILES = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}
_FILES_SINCE_5 = 0xFFFF
_CONNECT_TCP = 0x2  # since version 4
_ABSTRACT_SOCKETS_AND_SIGNALS = 0x3  # since version 6

_OPEN_PORTS = (80, 443, AWS_PORT)
_HOST_FOLDERS = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc"),
    *("/dev", "/proc"),
)


def rules_of_a_view() -> int:
    """For environments with this root and a network of their own: made once, and shared.

    Of files only the making of devices is left to deny. A rule for /tmp could not be shared, since
    it would name the folder that is mounted there now; and made anew for each environment it costs
    more than all their namespaces, to say again what a read-only root says.
    """
    if kernel.landlock_version() < 2:
        raise OSError(errno.ENOSYS, "this Landlock forbids to move files between folders")
    rules = _create(_MAKE_DEVICES | _REFER, with_network=False)
    kernel.landlock_allow(rules, "/", _REFER)
    return rules


def rules_of_the_host(folders: Sequence[str], code: int) -> int:
    """For an environment that shares the host's files. `code` is its folder's descriptor.

    A cell (-1) may read everything, since its code is not known yet.
    """
    rules = _create(_files(), with_network=True)
    paths = ["/"] if code < 0 else [*_HOST_FOLDERS, *folders, f"/proc/self/fd/{code}"]
    for path in paths:
        if os.path.isdir(path):
            kernel.landlock_allow(rules, path, _READ)
    _allow_use(rules)
    return rules


def _create(files: int, *, with_network: bool) -> int:
    version = kernel.landlock_version()
    if not version:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock")
    network = _CONNECT_TCP if with_network and version >= 4 else 0
    scopes = _ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0
    rules = kernel.landlock_create(files, network, scopes)
    for port in _OPEN_PORTS if network else ():
        kernel.landlock_allow_port(rules, port, _CONNECT_TCP)
    return rules


def _allow_use(rules: int) -> None:
    kernel.landlock_allow(rules, "/tmp", _files() & ~_MAKE_DEVICES)
    kernel.landlock_allow(rules, "/dev", (_READ | _WRITE_FILE | _IOCTL_DEV) & _files())


def _files() -> int:
    return _FILES.get(kernel.landlock_version(), _FILES_SINCE_5)
