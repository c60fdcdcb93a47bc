"""Isolation: how far an environment is kept apart, and the steps that put it there.

A zygote establishes one level at its start, the strongest that trial runs survive, and says so.
From then on every environment gets exactly that level or is refused; none gets half of it.

What is the same for all is prepared once: the view of the root (see view.py), in a mount namespace
that each environment copies, and the long system call filter. Code folders are found in the other
mount namespace, called home, which the zygote itself stays in.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trivet_worker import filters, kernel, landlock, view
from trivet_worker.wire import (
    AWS_PORT,
    CHANNEL_FD,
    DOOR_AWS,
    DOOR_NAMES,
    DOOR_RUNTIME,
    ISOLATION_CGROUP,
    ISOLATION_LANDLOCK,
    ISOLATION_MOUNT,
    ISOLATION_NETWORK,
    ISOLATION_PID,
    ISOLATION_SECCOMP,
    ISOLATION_UID,
    ISOLATION_USER,
    RUNTIME_PORT,
)

_SPACES = ISOLATION_PID | ISOLATION_MOUNT | ISOLATION_NETWORK
_SPACES_OF_ROOT = (
    ISOLATION_UID | _SPACES,
    ISOLATION_UID | ISOLATION_PID | ISOLATION_MOUNT,
    ISOLATION_UID | ISOLATION_PID,
    ISOLATION_UID,
)
_SPACES_OF_OTHERS = (
    ISOLATION_USER | _SPACES,
    ISOLATION_USER | ISOLATION_PID | ISOLATION_MOUNT,
    ISOLATION_USER | ISOLATION_PID,
)
_EXTRAS = (ISOLATION_SECCOMP, ISOLATION_LANDLOCK, ISOLATION_CGROUP)

_LIMITS = {
    resource.RLIMIT_NOFILE: 1024,  # as on AWS
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_MEMLOCK: 65_536,
    resource.RLIMIT_MSGQUEUE: 0,
    resource.RLIMIT_NICE: 0,
    resource.RLIMIT_RTPRIO: 0,
    resource.RLIMIT_SIGPENDING: 1024,
}
_FOLDER_MODE = kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV
_INODES_PER_MB = 128  # empty files cost kernel memory too
DEFAULT_TMP_MB = 512

# Where an environment in the making says how far it came, until it is complete.
REPORT_FD = CHANNEL_FD + 1

_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x1 | 0x40

# Uids are used again before new ones are: a machine full of environments needs no more names.
_NAMED_UIDS = 2_000

_NOBODY = 65_534  # who trial environments run as: any id but root's will do


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
    tmp_mb: int = DEFAULT_TMP_MB
    cgroup: str = ""  # its name; empty: stay in the zygote's
    is_custom: bool = False


@dataclass(frozen=True)
class Needs:
    """What environments must find inside, and the cgroups that theirs are made below."""

    folders: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    first_uid: int = 0  # of those that environments run as; 0: as the zygote itself


@dataclass(frozen=True)
class Isolation:
    """An established level: ISOLATION_* bits, and what is needed to carry them out."""

    bits: int
    needs: Needs = Needs()
    home: int = -1
    view: int = -1
    pids: int = -1
    rules: int = -1  # of Landlock, behind an own root
    last_filter: bytes = b""
    masks: tuple[tuple[str, str], ...] = ()
    thread_id: int = 0  # see kernel.thread_id_place; 0: nothing can be born in its cgroup

    def fork(self, cgroup: str) -> int:
        """Fork a process that is to become an environment: PID 1 of its own namespace.

        Where it can be born in its cgroup, it is; elsewhere `enter` moves it.
        """
        if cgroup and self.thread_id:
            folder = os.open(f"{self.needs.cgroups[0]}/{cgroup}", os.O_PATH | os.O_DIRECTORY)
            spaces = kernel.CLONE_NEWPID if self.bits & ISOLATION_PID else 0
            try:
                return kernel.fork_into(folder, spaces, self.thread_id)
            finally:
                os.close(folder)
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

    def enter(self, place: Place, give: Callable[[int, Sequence[socket.socket]], None]) -> None:
        """Turn this forked process into an environment. What follows may be hostile code.

        `give(bits, sockets)` is told of the doors (DOOR_*) that were opened, if any.
        """
        os.setsid()  # no terminal, and a group that one signal can reach
        if place.cgroup and not self.thread_id:
            for base in self.needs.cgroups:
                _join_cgroup(f"{base}/{place.cgroup}")
        if self.bits & ISOLATION_MOUNT:
            # Here, for a folder can be copied only in the namespace that holds it.
            code, layers = (_folder_tree(f) if f >= 0 else -1 for f in (place.code, place.layers))
            spaces = kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
            kernel.join_namespaces(self.view, kernel.CLONE_NEWNS)
            kernel.unshare(spaces | kernel.CLONE_NEWCGROUP)
            socket.sethostname(view.HOST_NAME)
            self._attach_folders(code, layers)
            self._show_tmp(place.scratch, place.tmp_mb)
            kernel.mount("proc", "/proc", _PROC_FLAGS, "hidepid=invisible")
            for shown, path in self.masks:
                tree = view.clone(shown)
                kernel.attach_tree(tree, path)
                os.close(tree)
            os.chdir(view.CODE_PATH)
        elif place.code >= 0:
            # By its path: a folder opened among other mounts has none that could be told here.
            os.chdir(os.readlink(f"/proc/self/fd/{place.code}"))
        if self.bits & ISOLATION_NETWORK:
            _enter_network(place.network)
            give(*_open_doors(place.is_custom))
        for limit, value in _LIMITS.items():
            resource.setrlimit(limit, (value, value))
        if self.bits & ISOLATION_LANDLOCK:
            hosts = not self.bits & ISOLATION_MOUNT
            folders = self.needs.folders
            rules = landlock.rules_of_the_host(folders, place.code) if hosts else self.rules
            kernel.landlock_restrict(rules)
        _arrange_descriptors(place)
        if self.bits & ISOLATION_UID:
            _give_log(place.uid)
            os.setresgid(place.uid, place.uid, place.uid)
            os.setresuid(place.uid, place.uid, place.uid)  # the capabilities go with it
        if self.bits & ISOLATION_USER:
            kernel.drop_capabilities()
        kernel.set_dumpable(True)  # the change of uid gave /proc/self to root
        if self.last_filter:
            kernel.set_filter(self.last_filter)

    def thaw(self, uid: int) -> None:
        """Let what is frozen of `uid` go on, if only to its end."""
        for base in self.needs.cgroups:
            with contextlib.suppress(OSError), open(f"{base}/{uid}/freezer.state", "r+") as state:
                state.write("THAWED")

    def fill(self, cell: int, code: int, layers: int) -> None:
        """Put code and layers before the eyes of a waiting cell. Moves this process in with them.

        Not another /tmp: the cell's rules of Landlock name the one that it has.
        """
        if not self.bits & ISOLATION_MOUNT:
            return  # nothing hides the code: INIT says where it is
        trees = [_folder_tree(folder) if folder >= 0 else -1 for folder in (code, layers)]
        kernel.join_namespaces(cell, kernel.CLONE_NEWNS)
        self._attach_folders(*trees)

    def _attach_folders(self, code: int, layers: int) -> None:
        for tree, path in ((code, view.CODE_PATH), (layers, view.LAYERS_PATH)):
            if tree >= 0:
                kernel.attach_tree(tree, path)

    def _show_tmp(self, scratch: int, tmp_mb: int) -> None:
        """Cover /tmp; what is needed from below it, if a clone lives there, stays visible."""
        hidden = [path for path in self.needs.folders if view.is_inside(path, "/tmp")]
        trees = [(path, view.clone(path)) for path in hidden]
        if scratch >= 0:
            kernel.attach_tree(scratch, "/tmp")
        else:
            options = f"mode=1777,size={tmp_mb}m,nr_inodes={tmp_mb * _INODES_PER_MB}"
            kernel.mount("tmpfs", "/tmp", kernel.MS_NOSUID | kernel.MS_NODEV, options)
        view.keep_visible(trees)


_PROC_FLAGS = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC


def establish(needs: Needs, without: int = 0) -> Isolation:
    """The strongest level that works here, leaving out the ISOLATION_* bits of `without`."""
    needs = replace(needs, folders=view.outermost(needs.folders))
    spaces = _SPACES_OF_ROOT if os.geteuid() == 0 else _SPACES_OF_OTHERS
    extras = sum(_EXTRAS) if needs.cgroups else sum(_EXTRAS) & ~ISOLATION_CGROUP
    everything = (spaces[0] | extras) & ~without
    if _works(everything, needs):  # as nearly everywhere: one trial instead of four
        return _prepare(everything, needs)
    bits = 0
    for candidate in spaces:
        if _works(candidate & ~without, needs):
            bits = candidate & ~without
            break
    for extra in _EXTRAS:
        if extra & ~without and _works(bits | extra, needs):
            bits |= extra
    return _prepare(bits, needs)


def _works(bits: int, needs: Needs) -> bool:
    """Whether an environment can be brought up at this level. Changes nothing here."""
    if bits & ISOLATION_CGROUP and not (needs.cgroups and bits & ISOLATION_UID):
        return False
    pid = os.fork()
    if pid == 0:
        os._exit(_attempt(bits, needs))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        reason = os.strerror(status if status > 0 else errno.EPROTO)
        print(f"zygote: isolation {bits} cannot be had here: {reason}", file=sys.stderr)
    return status == 0


def _attempt(bits: int, needs: Needs) -> int:
    cgroup = f"trial-{os.getpid()}" if bits & ISOLATION_CGROUP else ""
    trials = [f"{base}/{cgroup}" for base in needs.cgroups if cgroup]
    try:
        for trial in trials:
            os.makedirs(trial, exist_ok=True)
        isolation = _prepare(bits, needs)
        code = os.open(os.path.dirname(__file__), os.O_PATH | os.O_DIRECTORY)
        channel, log = (os.open(os.devnull, os.O_RDWR) for _ in range(2))
        environment = isolation.fork(cgroup)
        if environment == 0:
            place = Place(channel, log, _NOBODY, code=code, cgroup=cgroup)
            isolation.enter(place, lambda bits, sockets: None)
            return 0
        return os.waitstatus_to_exitcode(os.waitpid(environment, 0)[1])
    except OSError as error:
        return error.errno or errno.EPROTO
    finally:
        for trial in trials:
            if os.path.isdir(trial):
                os.rmdir(trial)


def _prepare(bits: int, needs: Needs) -> Isolation:
    """Bring this process to the level `bits`: once, and for all that it will fork."""
    home = inside = pids = rules = -1
    last_filter = b""
    if bits & ISOLATION_USER:
        _own_user_namespace(bits)
    if bits & ISOLATION_MOUNT:
        home = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        kernel.unshare(kernel.CLONE_NEWNS)
        inside = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        keeps_proc = bool(bits & ISOLATION_USER)
        uids = range(needs.first_uid, needs.first_uid + _NAMED_UIDS)
        view.build(
            needs.folders,
            needs.libraries,
            uids=uids if needs.first_uid else [os.geteuid()],
            keeps_proc=keeps_proc,
        )
        rules = landlock.rules_of_a_view() if bits & ISOLATION_LANDLOCK else -1
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
        kernel.lock_root_out()
    if bits & (ISOLATION_UID | ISOLATION_USER):
        kernel.drop_bounding_set()
    if bits & ISOLATION_SECCOMP:
        programs = filters.programs()
        if programs is None:
            raise OSError(errno.ENOSYS, "system call numbers are not known here")
        first, last_filter = programs
        kernel.set_filter(first)
    thread_id = kernel.thread_id_place() if _is_version_2(bits, needs) else 0
    return Isolation(bits, needs, home, inside, pids, rules, last_filter, view.masks(), thread_id)


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


def _is_version_2(bits: int, needs: Needs) -> bool:
    is_one = bits & ISOLATION_CGROUP and len(needs.cgroups) == 1
    return bool(is_one and os.path.exists(f"{needs.cgroups[0]}/cgroup.controllers"))


def _join_cgroup(folder: str) -> None:
    procs = os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    os.write(procs, b"0")  # this process
    os.close(procs)


def _enter_network(network: int) -> None:
    if network >= 0:
        own, given = os.stat("/proc/self/ns/net"), os.fstat(network)
        # Neither the host's own, nor that of a process, which a pidfd would lead to.
        if given.st_dev != own.st_dev or given.st_ino == own.st_ino:
            raise PermissionError(errno.EPERM, "no network of a function")
        kernel.join_namespaces(network, kernel.CLONE_NEWNET)
        return
    kernel.unshare(kernel.CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", _IFF_UP_RUNNING)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


def _open_doors(is_custom: bool) -> tuple[int, list[socket.socket]]:
    """Sockets bound inside, for those who serve them outside: DOOR_* bits, and in their order."""
    aws = socket.socket()
    # On every loopback address, and on nothing that leads out.
    aws.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    aws.bind(("0.0.0.0", AWS_PORT))
    aws.listen()
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind(("127.0.0.1", 53))
    if not is_custom:
        return DOOR_AWS | DOOR_NAMES, [aws, names]
    api = socket.socket()
    api.bind(("127.0.0.1", RUNTIME_PORT))
    api.listen()
    return DOOR_AWS | DOOR_NAMES | DOOR_RUNTIME, [aws, names, api]


def _folder_tree(folder: int) -> int:
    tree = _clone_anywhere(folder)
    kernel.restrict_tree(tree, _FOLDER_MODE)
    return tree


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
    """Exactly 0 to 3, and REPORT_FD as it is. All given ones are above them."""
    null = os.open(os.devnull, os.O_RDWR)  # not a shared one: its state would be shared too
    os.dup2(null, 0)
    os.dup2(place.log, 1)
    os.dup2(place.log, 2)
    os.dup2(place.channel, CHANNEL_FD)
    os.set_blocking(CHANNEL_FD, True)
    kernel.close_from(REPORT_FD + 1)


def _give_log(uid: int) -> None:
    """Let /dev/stdout be opened, as on AWS. Root gives away a pipe, and nothing that has a name."""
    if os.readlink("/proc/self/fd/1").startswith("pipe:"):
        os.fchown(1, uid, uid)


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
