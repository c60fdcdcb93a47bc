"""Attacks on files: what others keep here, what the platform owns, what the kernel shows."""

from __future__ import annotations

import ctypes
import errno
import os
import socket

_libc = ctypes.CDLL(None, use_errno=True)
_librt = ctypes.CDLL("librt.so.1", use_errno=True)


def read(path: str) -> str:
    with open(path, "rb") as file:
        return file.read(64).decode(errors="replace")


def read_all(path: str) -> str:
    with open(path) as file:
        return file.read()


def read_by_link(path: str) -> str:
    link = "/tmp/innocent"
    if os.path.lexists(link):
        os.unlink(link)
    os.symlink(path, link)
    try:
        return read(link)
    finally:
        os.unlink(link)


def read_above_the_root(path: str) -> str:
    """More steps up than there are folders, from a folder that is not below /tmp."""
    os.chdir("/usr")
    return read("../" * 32 + path.lstrip("/"))


def read_through_a_process(path: str) -> str:
    """By the root that /proc shows of whoever is process 1, or of any other."""
    for name in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        try:
            return read(f"/proc/{name}/root{path}")
        except OSError:
            continue
    raise PermissionError(errno.EACCES, "no process lends its root")


def list_folder(path: str) -> list[str]:
    return os.listdir(path)


def create_in(folder: str) -> str:
    """A file without a name, so that nothing is left where it can be made."""
    os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600))
    return folder


def open_for_writing(path: str) -> str:
    """Opened only: nothing is written. The mask of a file is no prize."""
    descriptor = os.open(path, os.O_WRONLY)
    is_masked = os.fstat(descriptor).st_rdev == os.stat("/dev/null").st_rdev
    os.close(descriptor)
    if is_masked:
        raise OSError(errno.ENODATA, "masked")
    return path


def open_for_reading(path: str) -> str:
    """Opened only: nothing is read that a report could show."""
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))
    return path


def read_what_is_there(path: str) -> str:
    """A mask shows nothing, which is not worth having."""
    content = read(path)
    if not content:
        raise OSError(errno.ENODATA, "masked")
    return content


def remount_writable() -> str:
    """The read-only root: of this namespace alone, whatever comes of it."""
    remount, bind, empty = 0x20, 0x1000, None
    if _libc.mount(empty, b"/", empty, ctypes.c_ulong(remount | bind), empty) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "writable"


def unmount_tmp() -> str:
    if _libc.umount2(b"/tmp", 2) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "what was below it"


def connect_to_socket(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        return path


def take_shared_memory(key: int) -> str:
    """System V shared memory that somebody on the host opened to all."""
    number = _libc.shmget(key, 0, 0)
    if number == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return f"segment {number}"


def open_message_queue(name: str) -> str:
    """A POSIX queue that somebody on the host opened to all."""
    queue = _librt.mq_open(name.encode(), os.O_RDWR)
    if queue == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(queue)
    return name


def see_kernel_addresses() -> str:
    """Symbols with their real addresses; zeros are worth nothing."""
    with open("/proc/kallsyms") as file:
        first = file.readline() or "0 masked"
    if int(first.split()[0], 16) == 0:
        raise PermissionError(errno.EPERM, "zeros")
    return first


def fill_tmp(mb: int) -> str:
    """More than the function was given, in one file that nobody sees."""
    with open(os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600), "wb") as file:
        os.posix_fallocate(file.fileno(), 0, mb << 20)
        return f"{mb} MB"


def exhaust_inodes(most: int) -> str:
    folder = "/tmp/inodes"
    os.makedirs(folder, exist_ok=True)
    made = 0
    try:
        for made in range(most):
            os.close(os.open(f"{folder}/{made}", os.O_CREAT | os.O_WRONLY, 0o600))
        return f"{most} files"
    finally:
        for number in range(made + 1):
            if os.path.lexists(f"{folder}/{number}"):
                os.unlink(f"{folder}/{number}")
        os.rmdir(folder)
