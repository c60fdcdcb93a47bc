"""Blobs: code by the digest of its zip, unpacked once and never changed.

    <root>/<digest>/code.zip    as it was uploaded; for the owner only
    <root>/<digest>/code/       what environments see; readable by any uid that is told the digest

A blob appears under its digest in one rename, whole and on disk, or not at all.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trivet.errors import CallerError, Unavailable
from trivet.store.archive import (
    EmptyArchive,
    Entry,
    MalformedArchive,
    OversizedArchive,
    read_archive,
)

MAX_ZIP_BYTES = 52_428_800
MAX_UNZIPPED_BYTES = 262_144_000

_TEMPORARY = "unpacking-"
_MALFORMED = "Could not unzip uploaded file. Please check your file, then try to upload again."
# What the file system says when an entry's name meets something that is there already, or is no
# name: the archive's fault, not the disk's.
_CLASHES = frozenset(
    {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EILSEQ}
)

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class RequestEntityTooLarge(CallerError):
    """The zip is larger than AWS takes in a request."""

    status = 413
    error_type = "RequestEntityTooLargeException"


@dataclass(frozen=True, slots=True)
class Blob:
    """A zip as it is known from now on."""

    sha256_hex: str
    bytes: int  # of the zip

    @property
    def sha256_base64(self) -> str:
        return base64.b64encode(bytes.fromhex(self.sha256_hex)).decode()


class Blobs:
    """The blobs under one folder. Its methods wait for the disk: call them in a thread."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def prepare(self) -> None:
        """Make the folder, and remove what a crash left half unpacked. For the one that writes."""
        self._root.mkdir(parents=True, exist_ok=True)
        # To pass through is all that environments need: they are told a digest, and list nothing.
        self._root.chmod(0o711)
        for leftover in self._root.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover)

    def put(self, zip_bytes: bytes) -> Blob:
        """Keep a zip and unpack it. The same zip again is no work.

        Raises CallerError in AWS's words for a zip that cannot or may not be unpacked.
        """
        blob = _blob(zip_bytes)
        if not (self._root / blob.sha256_hex).exists():
            with _in_aws_words():
                self._unpack(zip_bytes, blob)
        return blob

    def check(self, zip_bytes: bytes) -> Blob:
        """As `put`, but nothing is kept."""
        blob = _blob(zip_bytes)
        with _in_aws_words():
            for entry in read_archive(zip_bytes, max_bytes=MAX_UNZIPPED_BYTES):
                if entry.kind == stat.S_IFLNK:
                    entry.link_target()
                elif entry.kind == stat.S_IFREG:
                    for _ in entry.chunks():
                        pass
        return blob

    def tree(self, sha256_hex: str) -> Path:
        """The folder of the unpacked code."""
        return self._root / sha256_hex / "code"

    def location(self, sha256_hex: str) -> str:
        """URL of the zip, for whoever may read it."""
        return (self._root / sha256_hex / "code.zip").absolute().as_uri()

    def zip(self, sha256_hex: str) -> bytes:
        return (self._root / sha256_hex / "code.zip").read_bytes()

    def _unpack(self, zip_bytes: bytes, blob: Blob) -> None:
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self._root))
        try:
            code = temporary / "code"
            code.mkdir()
            code.chmod(0o755)
            with _Tree(code) as tree:
                for entry in read_archive(zip_bytes, max_bytes=MAX_UNZIPPED_BYTES):
                    tree.write(entry)
            (temporary / "code.zip").write_bytes(zip_bytes)
            (temporary / "code.zip").chmod(0o600)
            temporary.chmod(0o711)
            self._move(temporary, self._root / blob.sha256_hex)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _move(self, temporary: Path, final: Path) -> None:
        """Let the blob appear under its digest, after all of it is on disk."""
        root = os.open(self._root, _FOLDER)
        try:
            _sync_filesystem(root)
            try:
                temporary.rename(final)
            except OSError:
                if not final.exists():
                    raise
                return  # somebody else was faster with the same zip
            os.fsync(root)
        finally:
            os.close(root)


def _blob(zip_bytes: bytes) -> Blob:
    if len(zip_bytes) > MAX_ZIP_BYTES:
        raise RequestEntityTooLarge(f"Zipped size must be smaller than {MAX_ZIP_BYTES} bytes")
    return Blob(hashlib.sha256(zip_bytes).hexdigest(), len(zip_bytes))


@contextmanager
def _in_aws_words() -> Iterator[None]:
    try:
        yield
    except EmptyArchive:
        raise CallerError("Uploaded file must be a non-empty zip") from None
    except OversizedArchive:
        message = f"Unzipped size must be smaller than {MAX_UNZIPPED_BYTES} bytes"
        raise CallerError(message) from None
    except MalformedArchive as error:
        raise CallerError(_MALFORMED) from error
    except OSError as error:
        if error.errno in _CLASHES:
            raise CallerError(_MALFORMED) from error
        raise Unavailable(f"The code cannot be kept: {error.strerror}") from error


class _Tree:
    """Writes entries below a folder, through real folders only.

    Whatever exists where something new should be is a clash, and an OSError says so.
    """

    def __init__(self, folder: Path) -> None:
        self._root = os.open(folder, _FOLDER)
        self._above: tuple[bytes, ...] = ()
        self._parent = os.dup(self._root)  # the folder that `_above` names

    def __enter__(self) -> _Tree:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._parent)
        os.close(self._root)

    def write(self, entry: Entry) -> None:
        if entry.kind == stat.S_IFDIR:
            self._enter(entry.parts)
            return
        *above, name = entry.parts
        self._enter(tuple(above))
        if entry.kind == stat.S_IFLNK:
            os.symlink(entry.link_target(), name, dir_fd=self._parent)
            return
        file = os.open(name, _NEW_FILE, 0o600, dir_fd=self._parent)
        with open(file, "wb") as out:
            for chunk in entry.chunks():
                out.write(chunk)
            os.fchmod(file, 0o755 if entry.is_executable else 0o644)

    def _enter(self, above: tuple[bytes, ...]) -> None:
        """Let `_parent` be this folder. Archives list what lies together: mostly it is already."""
        if above == self._above:
            return
        folder = os.dup(self._root)
        try:
            for name in above:
                inner = _folder_in(folder, name)
                os.close(folder)
                folder = inner
        except OSError:
            os.close(folder)
            raise
        os.close(self._parent)
        self._parent, self._above = folder, above


def _folder_in(parent: int, name: bytes) -> int:
    """A folder in `parent`, made if it is not there."""
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        os.mkdir(name, 0o700, dir_fd=parent)
    folder = os.open(name, _FOLDER, dir_fd=parent)
    os.fchmod(folder, 0o755)  # whatever the umask says
    return folder


def _sync_filesystem(folder: int) -> None:
    """Put all that was written to this file system on disk: one call for thousands of files."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(folder) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
