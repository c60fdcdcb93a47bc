"""Isolation: how far an environment is kept apart, and the steps that put it there.

Every environment gets exactly the level that its zygote established (see trials.py) or is refused;
none gets half of it. What is the same for all is prepared once: the view of the root (see view.py),
in a mount namespace that each environment copies, and the long system call filter. Code folders are
found in the zygote's own mount namespace.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

from trivet_worker import doors, kernel, landlock, view, wire

_LIMITS = {
    resource.RLIMIT_NOFILE: 1024,  # as on AWS
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_MEMLOCK: 65_536,
    resource.RLIMIT_MSGQUEUE: 0,
    resource.RLIMIT_NICE: 0,
    resource.RLIMIT_RTPRIO: 0,
    resource.RLIMIT_SIGPENDING: 1024,
}
_SPACES = kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | kernel.CLONE_NEWCGROUP
_FOLDER_MODE = kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV
_PROC_FLAGS = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
_INODES_PER_MB = 128  # empty files cost kernel memory too
_DEFAULT_TMP_MB = 512

# Where an environment in the making says how far it came, until it is complete.
REPORT_FD = wire.CHANNEL_FD + 1


@dataclass(frozen=True)
class Place:
    """What one environment is given: its descriptors, and who it runs as."""

    channel: int
    log: int
    uid: int
    code: int = -1  # -1: a cell, whose code comes later
    layers: int = -1
    network: int = -1  # -1: an empty one of its own
    scratch: int = -1  # -1: memory
    tmp_mb: int = 0  # 0: as on AWS
    cgroup: str = ""  # its name; empty: stay in the zygote's
    is_custom: bool = False


@dataclass(frozen=True)
class Isolation:
    """An established level: ISOLATION_* bits, and what is needed to carry them out."""

    bits: int
    folders: tuple[str, ...] = ()  # what environments must be able to read
    cgroups: tuple[str, ...] = ()  # folders that hold theirs
    view: int = -1  # a mount namespace
    rules: int = -1  # of Landlock; -1: each environment has its own
    last_filter: bytes = b""
    masks: tuple[tuple[str, str], ...] = ()
    thread_id: int = 0  # see kernel.thread_id_place
    birthplace: str = ""  # where cgroups are that environments can be born in, of version 2

    def fork(self, cgroup: str) -> tuple[int, int]:
        """Fork what is to become an environment: its pid and pidfd; in the child zero.

        It begins as PID 1 of its own namespace, and in its cgroup if it can be born there.
        """
        spaces = kernel.CLONE_NEWPID if self.bits & wire.ISOLATION_PID else 0
        if cgroup and self.birthplace:
            folder = os.open(f"{self.birthplace}/{cgroup}", os.O_PATH | os.O_DIRECTORY)
            try:
                return kernel.fork(spaces, folder, self.thread_id)
            finally:
                os.close(folder)
        return kernel.fork(spaces, -1, self.thread_id) if spaces else _fork_plainly()

    def enter(self, place: Place, give: Callable[[dict[int, socket.socket]], None]) -> None:
        """Turn this forked process into an environment. What follows may be hostile code.

        `give` is told of the doors, by DOOR_* bit, if there are any.
        """
        os.setsid()  # no terminal, and a group that one signal can reach
        if place.cgroup and not self.birthplace:
            for base in self.cgroups:
                _tell(f"{base}/{place.cgroup}/cgroup.procs", b"0")  # this process
        if self.bits & wire.ISOLATION_MOUNT:
            self._enter_view(place)
        elif place.code >= 0:
            # By its path: a folder opened among other mounts has none that could be told here.
            os.chdir(os.readlink(f"/proc/self/fd/{place.code}"))
        if self.bits & wire.ISOLATION_NETWORK:
            doors.enter_network(place.network)
            give(doors.open_doors(place.is_custom))
        for limit, value in _LIMITS.items():
            resource.setrlimit(limit, (value, value))
        if self.bits & wire.ISOLATION_LANDLOCK:
            folders = self.folders
            own = self.rules if self.rules >= 0 else landlock.rules_of_the_host(folders, place.code)
            landlock.restrict(own)
        _arrange_descriptors(place)
        if self.bits & wire.ISOLATION_UID:
            _give_log(place.uid)
            os.setresgid(place.uid, place.uid, place.uid)
            os.setresuid(place.uid, place.uid, place.uid)  # the capabilities go with it
        if self.bits & wire.ISOLATION_USER:
            kernel.drop_capabilities()
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # the change of uid gave /proc/self to root
        if self.bits & wire.ISOLATION_SECCOMP:
            kernel.set_filter(self.last_filter)

    def thaw(self, uid: int) -> None:
        """Let what is frozen of `uid` go on, if only to its end."""
        for base in self.cgroups:
            with contextlib.suppress(OSError):
                _tell(f"{base}/{uid}/freezer.state", b"THAWED")

    def fill(self, cell: int, code: int, layers: int) -> None:
        """Put code and layers before the eyes of a waiting cell. Moves this process in with them.

        Not another /tmp: the cell's rules of Landlock name the one that it has. Where nothing
        hides the code, INIT says where it is.
        """
        if self.bits & wire.ISOLATION_MOUNT:
            trees = _copies(code, layers)
            common = (os.stat("/proc/self/ns/mnt").st_ino, os.fstat(self.view).st_ino)
            if os.stat(f"/proc/{kernel.pid_of(cell)}/ns/mnt").st_ino in common:
                raise PermissionError(errno.EPERM, "it has no view of its own, or not yet")
            kernel.join_namespaces(cell, kernel.CLONE_NEWNS)
            view.attach(trees)

    def _enter_view(self, place: Place) -> None:
        trees = _copies(place.code, place.layers)
        kernel.join_namespaces(self.view, kernel.CLONE_NEWNS)
        kernel.unshare(_SPACES)
        socket.sethostname(view.HOST_NAME)
        view.attach(trees)
        self._show_tmp(place.scratch, place.tmp_mb or _DEFAULT_TMP_MB)
        kernel.mount("proc", "/proc", _PROC_FLAGS, "hidepid=invisible")
        for shown, path in self.masks:
            view.attach({path: view.clone(shown)})
        os.chdir(view.CODE_PATH)

    def _show_tmp(self, scratch: int, tmp_mb: int) -> None:
        """Cover /tmp; what is needed from below it, if a clone lives there, stays visible."""
        hidden = [path for path in self.folders if view.is_inside(path, "/tmp")]
        trees = {path: view.clone(path) for path in hidden}
        if scratch >= 0:
            kernel.attach_tree(scratch, "/tmp")
        else:
            options = f"mode=1777,size={tmp_mb}m,nr_inodes={tmp_mb * _INODES_PER_MB}"
            kernel.mount("tmpfs", "/tmp", kernel.MS_NOSUID | kernel.MS_NODEV, options)
        view.keep_visible(trees)


def _copies(code: int, layers: int) -> dict[str, int]:
    """Read-only copies of the given folders, by the paths where they are to appear.

    They can be made only in the mount namespace that holds the folders. Whoever opened them may
    live among other mounts; if a path leads to the same folder here, then this is the folder that
    was meant, wherever the path came from.
    """
    trees = {}
    for path, folder in ((view.CODE_PATH, code), (view.LAYERS_PATH, layers)):
        if folder >= 0:
            trees[path] = view.clone(os.readlink(f"/proc/self/fd/{folder}"), folder)
            kernel.restrict_tree(trees[path], _FOLDER_MODE)
    return trees


def _fork_plainly() -> tuple[int, int]:
    pid = os.fork()
    try:
        return pid, os.pidfd_open(pid) if pid else 0
    except OSError:
        os.kill(pid, signal.SIGKILL)  # its number cannot be another's before it is reaped
        raise


def _tell(path: str, text: bytes) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.write(text)


def _arrange_descriptors(place: Place) -> None:
    """Exactly 0 to 3, and REPORT_FD as it is. All given ones are above them."""
    null = os.open(os.devnull, os.O_RDWR)  # not a shared one: its state would be shared too
    for number, given in enumerate((null, place.log, place.log, place.channel)):
        os.dup2(given, number)
    os.set_blocking(wire.CHANNEL_FD, True)
    kernel.close_from(REPORT_FD + 1)


def _give_log(uid: int) -> None:
    """Let /dev/stdout be opened, as on AWS. Root gives away a pipe, and nothing that has a name."""
    if os.readlink("/proc/self/fd/1").startswith("pipe:"):
        os.fchown(1, uid, uid)
