"""Folders: the layout of the data folder, who owns what in it, and the lock that one tree holds."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trivet.launcher.identities import Identities
from trivet.launcher.refusals import AlreadyUp, Unusable, command
from trivet.settings import Settings

LOCK = "lock"
STATE = "platform.json"
SCRATCH = "scratch"

# How long the parts of a launcher that was killed may take to be gone.
_PREDECESSOR_S = 5.0
_LOOK_AGAIN_S = 0.02


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the data folder: owner, group and mode when the launcher is root."""

    uid: int
    gid: int
    mode: int


def layout(identities: Identities) -> Mapping[str, Folder]:
    """Environments pass through `blobs` to code whose name they know, and list nothing."""
    services = identities.gid
    return {
        # Sticky and writable for Valkey's own group: it makes its sockets here and can replace
        # nothing that is root's. A service reaches a socket by name and by its group.
        "run": Folder(0, identities.valkey.groups[0], 0o1731),
        "blobs": Folder(identities.gateway.uid, services, 0o711),
        "logs": Folder(identities.supervisor.uid, services, 0o2750),
        "durable": Folder(identities.valkey.uid, services, 0o700),
        # Of the provisioner, which is root; files without a name, the /tmp of functions.
        SCRATCH: Folder(0, 0, 0o700),
    }


NAMES = ("run", "blobs", "logs", "durable", SCRATCH)


def make(settings: Settings, identities: Identities | None) -> None:
    """Make the data folder and its folders, each with its owner and mode.

    Raises Unusable when a folder belongs to somebody else, or cannot be written.
    """
    try:
        settings.data_path.mkdir(mode=0o711 if identities else 0o700, parents=True, exist_ok=True)
        if identities is None:
            for name in NAMES:
                (settings.data_path / name).mkdir(mode=0o700, exist_ok=True)
                _check_writable(settings.data_path / name)
            return
        for name, folder in layout(identities).items():
            _make_as_root(settings.data_path / name, folder)
    except OSError as error:
        message = f"the data folder cannot be used: {error.filename}: {error.strerror}"
        raise Unusable(message, hint="export TRIVET_DATA=/a/folder/of/yours") from error


def fingerprint(settings: Settings) -> str:
    """Digits that no other data folder of this machine has, for what is named machine-wide."""
    status = settings.data_path.stat()
    text = f"{settings.data_path.resolve()}\0{status.st_dev}\0{status.st_ino}"
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:10]


def _make_as_root(path: Path, folder: Folder) -> None:
    path.mkdir(mode=0o700, exist_ok=True)
    # By descriptor, and no link followed: what is checked is what is changed.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        owner = os.fstat(descriptor).st_uid
        # Files below would keep their owner, and the parts that need them could not read them.
        if owner not in (0, folder.uid):
            message = f"{path} belongs to uid {owner}, so root does not use it"
            raise Unusable(
                message, hint="start as that user, or export TRIVET_DATA=/another/folder"
            )
        os.fchown(descriptor, folder.uid, folder.gid)
        os.fchmod(descriptor, folder.mode)
    finally:
        os.close(descriptor)


def _check_writable(path: Path) -> None:
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        owner = path.stat().st_uid
        message = f"{path} belongs to uid {owner} and cannot be written"
        raise Unusable(message, hint="export TRIVET_DATA=/a/folder/of/yours")


def lock(settings: Settings) -> int:
    """Hold the data folder for this tree; the descriptor is the lock.

    The embedded servers inherit it, so a killed launcher's successor cannot open the durable
    data before the old server has let go of it. Raises AlreadyUp.
    """
    path = settings.run_path / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + _PREDECESSOR_S
    while not _locked(descriptor):
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        if _lives(holder) or time.monotonic() > deadline:
            os.close(descriptor)
            message = f"another platform (pid {holder or '?'}) serves {settings.data}"
            raise AlreadyUp(
                message,
                hint=f"{command()} down, or export TRIVET_DATA=/another/folder for a second one",
            )
        time.sleep(_LOOK_AGAIN_S)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def clear_run(settings: Settings) -> bool:
    """Remove sockets and state from the run folder; say whether there were any."""
    had_any = False
    for name in os.listdir(settings.run_path):
        path = settings.run_path / name
        if name.startswith(STATE) or stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink(missing_ok=True)
            had_any = True
    return had_any


def write_state(settings: Settings, text: str) -> None:
    """Publish the state file in one step: a reader sees all of it or none."""
    path = settings.run_path / STATE
    draft = settings.run_path / f"{STATE}.new"
    draft.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(draft, flags, 0o644), "w") as file:
        file.write(text)
    draft.replace(path)
