"""Isolation: how far an environment is kept apart, and the steps that put it there.

A zygote establishes one level at its start, the strongest that a trial run survives, and says so.
From then on every environment gets exactly that level or is refused; none gets half of it.

Two mount namespaces are involved. In the one called home, code folders are found. The view is
made from it once: read-only, with the folders of other people hidden. Each environment takes a
copy of the view and adds its own code, its own /tmp and its own /proc.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trivet_worker import kernel
from trivet_worker.wire import (
    CHANNEL_FD,
    ISOLATION_MOUNT,
    ISOLATION_PID,
    ISOLATION_UID,
    ISOLATION_USER,
)

CODE_PATH = "/var/task"

# AWS's default ephemeral storage. The inodes are bounded too: empty files cost kernel memory.
_TMP_OPTIONS = "mode=1777,size=512m,nr_inodes=65536"
_COVER_OPTIONS = "mode=755,size=1m"
_OPEN_FILES = 1024  # as on AWS

# What other people keep on this machine. A function finds nothing of it, but for the parts that
# its interpreter needs.
_HIDDEN_FOLDERS = ("/var", "/opt", "/home", "/root")
# Some distributions keep the certificate store that /etc/ssl leads to under /var.
_NEEDED_FOLDERS = ("/var/lib/ca-certificates",)

_LEVELS_OF_ROOT = (
    ISOLATION_UID | ISOLATION_PID | ISOLATION_MOUNT,
    ISOLATION_UID | ISOLATION_PID,
    ISOLATION_UID,
    0,
)
_LEVELS_OF_OTHERS = (
    ISOLATION_USER | ISOLATION_PID | ISOLATION_MOUNT,
    ISOLATION_USER | ISOLATION_PID,
    0,
)


@dataclass(frozen=True)
class Place:
    """What one environment is given: its descriptors, and who it runs as."""

    channel: int
    log: int
    code: int | None  # None: a cell, whose code comes later
    null: int
    failure: int  # stays open, close-on-exec, until the environment is complete
    uid: int


@dataclass(frozen=True)
class Isolation:
    """An established level: ISOLATION_* bits, and what is needed to carry them out."""

    bits: int
    needed: tuple[str, ...] = ()  # folders that an environment must find where they are now
    home: int = -1
    view: int = -1
    pids: int = -1

    def fork(self) -> int:
        """Fork a process that is to become an environment: PID 1 of its own namespace."""
        if not self.bits & ISOLATION_PID:
            return os.fork()
        if self.bits & ISOLATION_USER:
            return _fork_through_helper()
        kernel.unshare(kernel.CLONE_NEWPID)  # of the children to come, not of this process
        try:
            pid = os.fork()
        except OSError:
            kernel.join_namespaces(self.pids, kernel.CLONE_NEWPID)
            raise
        if pid:
            kernel.join_namespaces(self.pids, kernel.CLONE_NEWPID)
        return pid

    def enter(self, place: Place) -> None:
        """Turn this forked process into an environment. What follows may be hostile code."""
        os.setsid()  # no terminal, and a group that one signal can reach
        if self.bits & ISOLATION_MOUNT:
            # First of all, for a folder can be copied only in the namespace that holds it.
            tree = None if place.code is None else self._code_tree(place.code)
            kernel.join_namespaces(self.view, kernel.CLONE_NEWNS)
            kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)
            if tree is not None:
                kernel.attach_tree(tree, CODE_PATH)
            _cover("/tmp", self.needed, _TMP_OPTIONS)
            kernel.mount("proc", "/proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
            os.chdir(CODE_PATH)
        elif place.code is not None:
            os.fchdir(place.code)
        _arrange_descriptors(place)
        resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
        if self.bits & ISOLATION_UID:
            os.setresgid(place.uid, place.uid, place.uid)
            os.setresuid(place.uid, place.uid, place.uid)  # the capabilities go with it
        if self.bits & ISOLATION_USER:
            kernel.drop_capabilities()
        kernel.set_dumpable(True)  # the change of uid gave /proc/self to root

    def fill(self, cell: int, code: int) -> None:
        """Put `code` before the eyes of a waiting cell. Moves this process into its namespace."""
        if not self.bits & ISOLATION_MOUNT:
            return  # nothing hides the code: INIT says where it is
        tree = self._code_tree(code)
        kernel.join_namespaces(cell, kernel.CLONE_NEWNS)
        kernel.attach_tree(tree, CODE_PATH)

    def _code_tree(self, folder: int) -> int:
        tree = _clone_anywhere(folder)
        kernel.restrict_tree(tree, kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV)
        return tree


def establish(needed: Sequence[str]) -> Isolation:
    """The strongest level that works here. `needed` are folders that environments must reach."""
    folders = tuple(_outermost((*needed, *_NEEDED_FOLDERS)))
    levels = _LEVELS_OF_ROOT if os.geteuid() == 0 else _LEVELS_OF_OTHERS
    for bits in levels[:-1]:
        refusal = _try(bits, folders)
        if not refusal:
            return _prepare(bits, folders)
        reason = os.strerror(refusal)
        print(f"zygote: isolation level {bits} cannot be had here: {reason}", file=sys.stderr)
    return _prepare(levels[-1], folders)


def make_reachable(needed: Sequence[str]) -> None:
    """In this process's own mounts, lead others to `needed` past folders that are closed to them.

    An interpreter often lives in a home that only its owner may enter. Such a folder is covered
    by an empty one, in which the needed folders appear at their old paths.
    """
    for folder in sorted({closed for path in needed for closed in _closed_folder(path)}):
        _cover(folder, needed, _COVER_OPTIONS)


def _try(bits: int, needed: tuple[str, ...]) -> int:
    """0 if an environment can be brought up at this level, else why not. Changes nothing here."""
    pid = os.fork()
    if pid == 0:
        os._exit(_attempt(bits, needed))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else errno.EPROTO


def _attempt(bits: int, needed: tuple[str, ...]) -> int:
    try:
        isolation = _prepare(bits, needed)
        code = os.open(os.path.dirname(__file__), os.O_PATH | os.O_DIRECTORY)
        ends = [os.open(os.devnull, os.O_RDWR) for _ in range(4)]
        environment = isolation.fork()
        if environment == 0:
            # Any id but root's will do; this one is nobody's everywhere.
            place = Place(ends[0], ends[1], code, ends[2], ends[3], uid=65_534)
            isolation.enter(place)
            return 0
        return os.waitstatus_to_exitcode(os.waitpid(environment, 0)[1])
    except OSError as error:
        return error.errno or errno.EPROTO


def _prepare(bits: int, needed: tuple[str, ...]) -> Isolation:
    """Bring this process to the level `bits`: once, and for all that it will fork."""
    home = view = pids = -1
    if bits & ISOLATION_USER:
        _own_user_namespace(bits)
    if bits & ISOLATION_MOUNT:
        home = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        kernel.unshare(kernel.CLONE_NEWNS)
        _build_view(needed)
        view = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        kernel.join_namespaces(home, kernel.CLONE_NEWNS)
    if bits & ISOLATION_PID and not bits & ISOLATION_USER:
        pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
    # Inherited by every environment, and no hindrance to this process: done once, here.
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kernel.become_subreaper()
    kernel.forbid_new_privileges()
    if bits & ISOLATION_UID:
        os.setgroups([])
    if bits & (ISOLATION_UID | ISOLATION_USER):
        kernel.drop_bounding_set()
    return Isolation(bits=bits, needed=needed, home=home, view=view, pids=pids)


def _own_user_namespace(bits: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER | (kernel.CLONE_NEWNS if bits & ISOLATION_MOUNT else 0))
    # The same ids inside as outside: as uid 0, a program would get its capabilities back.
    maps = (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"))
    for name, content in maps:
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)
    if bits & ISOLATION_MOUNT:
        kernel.make_private("/")


def _build_view(needed: Sequence[str]) -> None:
    kernel.make_private("/")
    make_reachable(needed)
    for folder in _HIDDEN_FOLDERS:
        if os.path.isdir(folder) and folder not in needed:
            _cover(folder, needed, _COVER_OPTIONS)
    os.mkdir(CODE_PATH)
    root = os.open("/", os.O_PATH)
    # Before any environment mounts its /tmp, which must stay writable.
    kernel.restrict_tree(root, kernel.ATTR_RDONLY | kernel.ATTR_NOSUID)
    os.close(root)


def _cover(folder: str, needed: Sequence[str], options: str) -> None:
    """Mount an empty filesystem over `folder`, in which `needed` folders stay where they were."""
    kept = [path for path in needed if _is_inside(path, folder)]
    trees: list[tuple[str, int]] = []
    for path in kept:
        original = os.open(path, os.O_PATH | os.O_DIRECTORY)
        trees.append((path, kernel.clone_tree(original)))
        os.close(original)
    kernel.mount("tmpfs", folder, kernel.MS_NOSUID | kernel.MS_NODEV, options)
    for path, tree in trees:
        os.makedirs(path, mode=0o755)
        kernel.attach_tree(tree, path)
        os.close(tree)


def _outermost(paths: Sequence[str]) -> Iterator[str]:
    """The existing folders among `paths`, as named and as resolved, without those inside others."""
    spellings = {form(path) for path in paths for form in (os.path.abspath, os.path.realpath)}
    folders = sorted(path for path in spellings if os.path.isdir(path))
    for folder in folders:
        if not any(_is_inside(folder, other) for other in folders):
            yield folder


def _is_inside(path: str, folder: str) -> bool:
    return path != folder and path.startswith(folder.rstrip("/") + "/")


def _closed_folder(path: str) -> Iterator[str]:
    """The first folder on the way to `path` that others may not pass through, if any."""
    parts = path.strip("/").split("/")
    for depth in range(1, len(parts)):
        folder = "/" + "/".join(parts[:depth])
        if not os.stat(folder).st_mode & 0o001:
            yield folder
            return


def _clone_anywhere(folder: int) -> int:
    try:
        return kernel.clone_tree(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # Whoever opened it lives among other mounts. If its path leads to the same folder here, then
    # this is the folder that was meant, wherever the path came from.
    path = os.readlink(f"/proc/self/fd/{folder}")
    found = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not os.path.sameopenfile(found, folder):
        raise OSError(errno.ESTALE, "the code folder is not what its path leads to")
    return kernel.clone_tree(found)


def _arrange_descriptors(place: Place) -> None:
    """Exactly 0 to 3, and the one that reports a failure. All given ones are above them."""
    os.dup2(place.null, 0)
    os.dup2(place.log, 1)
    os.dup2(place.log, 2)
    os.dup2(place.channel, CHANNEL_FD)
    os.set_blocking(CHANNEL_FD, True)
    os.dup2(place.failure, CHANNEL_FD + 1, inheritable=False)
    kernel.close_from(CHANNEL_FD + 2)


def _fork_through_helper() -> int:
    """Fork into a new PID namespace where coming back from one is not allowed.

    Without root a process may make a PID namespace for its children but not return to its own.
    A helper makes it, forks, and ends; the environment, an orphan, becomes ours as the subreaper.
    """
    reader, writer = os.pipe()
    helper = os.fork()
    if helper == 0:
        try:
            kernel.unshare(kernel.CLONE_NEWPID)
            pid = os.fork()
        except OSError as error:
            pid = -(error.errno or errno.EPROTO)
        if pid == 0:
            return 0
        os.write(writer, pid.to_bytes(4, sys.byteorder, signed=True))
        os._exit(0)
    os.close(writer)
    answer = int.from_bytes(os.read(reader, 4), sys.byteorder, signed=True)
    os.close(reader)
    os.waitpid(helper, 0)
    if answer <= 0:
        raise OSError(-answer or errno.EAGAIN, "the environment could not be forked")
    return answer
