"""Found: the files in a folder and below it, and what tells one state of a file from another.

Paths are bytes, relative to the watched folder. Links are not followed, and names that programs
give to what is not ready yet are passed over.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

_UNREADY = (b".part", b".partial", b".crdownload", b".filepart", b".tmp", b".swp", b"~")
_BLOCK_BYTES = 1_048_576


@dataclass(frozen=True, slots=True)
class Stamp:
    """A state of a file. Without the device: its number is another one after a reboot."""

    inode: int
    modified_ns: int
    size_bytes: int
    changed_ns: int = field(compare=False)  # also when it was renamed or opened to others
    links: int = field(compare=False)

    @property
    def text(self) -> bytes:
        return b"%d:%d:%d" % (self.inode, self.modified_ns, self.size_bytes)


@dataclass(frozen=True, slots=True)
class Content:
    """A file that was read whole, in one state."""

    path: bytes
    stamp: Stamp
    md5_hex: str


@dataclass(slots=True)
class Found:
    """What is there. A folder that went while it was looked at is not."""

    files: dict[bytes, Stamp] = field(default_factory=dict)
    closed: list[bytes] = field(default_factory=list)  # folders that may not be looked into


def is_unready(name: bytes) -> bool:
    """Whether a file or folder of this name is nobody's business yet: hidden or temporary."""
    return name.startswith((b".", b"~")) or name.endswith(_UNREADY)


def look(root: bytes, below: bytes, entering: Callable[[bytes], None]) -> Found:
    """Everything in `root` below a relative path. Raises OSError if the place itself is not there.

    `entering` is called with each folder before it is listed.
    """
    found = Found()
    waiting = [below]
    while waiting:
        folder = waiting.pop()
        try:
            entering(folder)
            waiting.extend(_look_into(root, folder, found))
        except OSError as error:
            if folder == below:
                raise
            if isinstance(error, PermissionError):
                found.closed.append(folder)
    return found


def _look_into(root: bytes, folder: bytes, found: Found) -> list[bytes]:
    """Note the files of one folder; its folders."""
    folders = []
    with os.scandir(os.path.join(root, folder)) as entries:
        for entry in entries:
            if is_unready(entry.name):
                continue
            path = os.path.join(folder, entry.name)
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_file(follow_symlinks=False):
                stamp = stamp_of(root, path)
                if stamp is not None:
                    found.files[path] = stamp
    return folders


def stamp_of(root: bytes, path: bytes) -> Stamp | None:
    """The state of a file now; None if there is no regular file."""
    try:
        return _stamp(os.lstat(os.path.join(root, path)))
    except OSError:
        return None


def read(root: bytes, path: bytes) -> Content | None:
    """A file's content told by its digest; None if it went or changed meanwhile.

    Raises PermissionError.
    """
    try:
        return _read(root, path)
    except PermissionError:
        raise
    except OSError:
        return None


def _read(root: bytes, path: bytes) -> Content | None:
    # A pipe in the place of the file must not make us wait for its writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(os.path.join(root, path), flags)
    with open(descriptor, "rb", buffering=0) as file:
        before = _stamp(os.fstat(descriptor))
        if before is None:
            return None
        digest = hashlib.md5(usedforsecurity=False)
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
        same = before == _stamp(os.fstat(descriptor))
    return Content(path, before, digest.hexdigest()) if same else None


def _stamp(status: os.stat_result) -> Stamp | None:
    if not stat.S_ISREG(status.st_mode):
        return None
    return Stamp(
        status.st_ino, status.st_mtime_ns, status.st_size, status.st_ctime_ns, status.st_nlink
    )
