"""Scratch: an ext4 filesystem of a size, on a file that is nowhere, for one environment's /tmp.

What is written to it is bounded by its size and costs an environment's memory nothing but cache
that the kernel takes back. The file has no name and goes with its last mount, whatever dies before.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import subprocess

from trivet.provisioner import kernel

_MB = 1 << 20

_LOOP_CONTROL = "/dev/loop-control"
_LOOP_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_AUTOCLEAR, _DIRECT = 4, 16
_BLOCK_BYTES = 4096
_MOST_RACES = 16  # for a free loop device, with others on this machine

# No journal, and nothing that is written later without need. One inode for 16 KB of space.
_MAKE = (
    *("mkfs.ext4", "-q", "-F", "-b", str(_BLOCK_BYTES), "-m", "0", "-i", "16384", "-I", "128"),
    *("-O", "^has_journal,^resize_inode,^metadata_csum,uninit_bg,sparse_super2"),
    *("-E", "lazy_itable_init=1,nodiscard,num_backup_sb=0"),
)
_MOUNT_OPTIONS = ("noinit_itable", "nobarrier", "noauto_da_alloc")

# A folder in memory would charge the environment, or nobody, for all that is written.
_IN_MEMORY = (kernel.TMPFS_MAGIC, kernel.RAMFS_MAGIC)


class Scratch:
    """Makes scratch space in a folder. Every call raises OSError."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._templates: dict[int, int] = {}  # by MB: the descriptor of a filesystem never used

    def make(self, size_mb: int) -> int:
        """A descriptor of a detached mount with `size_mb` MB; the caller's to close."""
        free = os.statvfs(self._folder)
        if free.f_bavail * free.f_frsize < size_mb * _MB:
            raise OSError(errno.ENOSPC, f"{self._folder} has no {size_mb} MB left")
        template = self._templates.get(size_mb)
        if template is None:
            template = self._templates[size_mb] = self._template(size_mb)
        file = self._file(os.fstat(template).st_size)
        try:
            _copy_written(template, file)
            return _mounted(file)
        finally:
            os.close(file)

    def end(self) -> None:
        for template in self._templates.values():
            os.close(template)
        self._templates.clear()

    def _template(self, size_mb: int) -> int:
        if kernel.filesystem_kind(self._folder) in _IN_MEMORY:
            raise OSError(errno.EOPNOTSUPP, f"{self._folder} is itself in memory")
        wanted = size_mb * _MB
        trial = self._file(wanted)
        try:
            lost = wanted - _prepared(trial)  # to tables, and to what ext4 holds back
        finally:
            os.close(trial)
        # What the larger filesystem loses on its own account.
        file = self._file(wanted + lost + lost // 16 + _BLOCK_BYTES)
        try:
            _prepared(file)
        except BaseException:
            os.close(file)
            raise
        return file

    def _file(self, size: int) -> int:
        file = os.open(self._folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(file, size // _BLOCK_BYTES * _BLOCK_BYTES)
        except BaseException:
            os.close(file)
            raise
        return file


def _prepared(file: int) -> int:
    """Make a filesystem in the file, for everybody. The bytes that can be written to it."""
    _make_filesystem(file)
    mount = _mounted(file)
    try:
        os.chmod(f"/proc/self/fd/{mount}", 0o1777)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(f"/proc/self/fd/{mount}/lost+found")
        room = os.fstatvfs(mount)
        return room.f_bavail * room.f_frsize
    finally:
        os.close(mount)


def _make_filesystem(file: int) -> None:
    done = subprocess.run(
        [*_MAKE, f"/proc/self/fd/{file}"],
        pass_fds=[file],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"},
        check=False,
    )
    if done.returncode:
        raise OSError(errno.EIO, f"mkfs.ext4: {done.stderr.decode(errors='replace').strip()}")


def _copy_written(source: int, target: int) -> None:
    """Copy all of `source` that is not a hole."""
    end = os.fstat(source).st_size
    position = 0
    while position < end:
        try:
            position = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # holes to the end
            raise
        until = os.lseek(source, position, os.SEEK_HOLE)
        while position < until:
            copied = os.copy_file_range(source, target, until - position, position, position)
            if copied == 0:
                raise OSError(errno.EIO, "a template became shorter")
            position += copied


def _mounted(file: int) -> int:
    """A detached mount of the filesystem in `file`."""
    device, path = _loop_device(file)
    try:
        return kernel.detached_mount("ext4", path, _MOUNT_OPTIONS)
    finally:
        os.close(device)  # from now on the mount alone keeps the device, which goes with it


def _loop_device(file: int) -> tuple[int, str]:
    control = os.open(_LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_MOST_RACES):
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_GET_FREE)}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, _loop_config(file))
                return device, path
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "others were always faster to take a loop device")


def _loop_config(file: int) -> bytes:
    """struct loop_config: the file, bytes of a block, a struct loop_info64, and 64 spare bytes.

    Direct: what is cached is cached once, as the filesystem's and not as the file's.
    """
    info = struct.pack("=52xI176x", _AUTOCLEAR | _DIRECT)
    return struct.pack("=II", file, _BLOCK_BYTES) + info + bytes(64)
