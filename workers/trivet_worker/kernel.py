"""Kernel: the Linux calls that Python's standard library does not offer, through ctypes.

Each raises OSError with the errno of the call. The numbers of the newer calls are the same on
every architecture that Linux numbers uniformly, which is all that CPython 3.9 still runs on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct

CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

_CLONE_CHILD_SETTID = 0x0100_0000
_CLONE_INTO_CGROUP = 0x2_0000_0000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REC = 0x4000
MS_PRIVATE = 0x4_0000

ATTR_RDONLY = 0x1
ATTR_NOSUID = 0x2
ATTR_NODEV = 0x4
ATTR_NOEXEC = 0x8

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_CLONE3 = 435
_SYS_CLOSE_RANGE = 436
_SYS_MOUNT_SETATTR = 442
_SYS_LANDLOCK_CREATE = 444
_SYS_LANDLOCK_ADD = 445
_SYS_LANDLOCK_RESTRICT = 446

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 0x1
_MOVE_MOUNT_FROM_EMPTY_PATH = 0x4

_MNT_DETACH = 0x2

_LANDLOCK_VERSION = 0x1
_LANDLOCK_BENEATH = 1
_LANDLOCK_PORT = 2

_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

_SECCOMP_MODE_FILTER = 2
_SECURE_NOROOT_LOCKED = 0x3

_CAPABILITY_VERSION_3 = 0x2008_0522
_LAST_DESCRIPTOR = 0xFFFF_FFFF

_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("capset", "mount", "prctl", "setns", "syscall", "unshare"):
    getattr(_libc, _name)  # found now, and not anew in every fork
# The same without letting go of the interpreter's lock around each call.
_python = ctypes.PyDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("user_namespace", ctypes.c_uint64),
    )


class _Program(ctypes.Structure):
    _fields_ = (("count", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _checked(result: int, call: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def unshare(namespaces: int) -> None:
    _checked(_libc.unshare(ctypes.c_int(namespaces)), "unshare")


def join_namespaces(descriptor: int, namespaces: int) -> None:
    """Enter what `descriptor` (a namespace, or a pidfd) refers to."""
    _checked(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(namespaces)), "setns")


def thread_id_place() -> int:
    """Where the C library keeps this thread's id, which only its own fork renews; 0: not found.

    A process that was made behind its back must have it set, or locks would think of another.
    """
    _python.pthread_self.restype = ctypes.c_void_p
    start: int = _python.pthread_self()
    known = _read_words(start)
    pid = os.fork()
    if pid == 0:
        renewed = _read_words(start)
        places = [n for n, word in enumerate(known) if word == os.getppid()]
        places = [n for n in places if renewed[n] == os.getpid()]
        os._exit(places[0] if len(places) == 1 and places[0] < 255 else 255)
    place = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return start + 4 * place if 0 < place < 255 else 0


def fork_into(cgroup: int, namespaces: int, thread_id: int) -> int:
    """Fork a child that begins its life in `cgroup` (a folder of version 2) and new namespaces.

    It need not move there, which would wait for all other processors. `thread_id` is from
    `thread_id_place`.
    """
    flags = _CLONE_INTO_CGROUP | _CLONE_CHILD_SETTID | namespaces
    arguments = (ctypes.c_uint64 * 11)(flags, 0, thread_id, 0, signal.SIGCHLD)
    arguments[10] = cgroup
    _python.PyOS_BeforeFork()
    pid: int = _python.syscall(_SYS_CLONE3, arguments, ctypes.c_size_t(ctypes.sizeof(arguments)))
    if pid == 0:
        _python.PyOS_AfterFork_Child()
        return 0
    number = ctypes.get_errno()
    _python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(number, f"clone3: {os.strerror(number)}")
    return pid


def _read_words(start: int) -> tuple[int, ...]:
    return struct.unpack("=254I", ctypes.string_at(start, 254 * 4))


def mount(kind: str, target: str, flags: int, options: str = "") -> None:
    """Mount a new filesystem of a kind without a device."""
    result = _libc.mount(
        kind.encode(),
        os.fsencode(target),
        kind.encode(),
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _checked(result, f"mount {kind}")


def make_private(target: str) -> None:
    """From here on neither side sees what the other mounts below `target`."""
    flags = ctypes.c_ulong(MS_REC | MS_PRIVATE)
    _checked(_libc.mount(None, os.fsencode(target), None, flags, None), "mount private")


def clone_tree(folder: int) -> int:
    """A descriptor of an unattached copy of the mounts at and below `folder`.

    Below it too: a copy that uncovers what another mount hides is refused in a user namespace.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE | _AT_EMPTY_PATH
    result = _libc.syscall(_SYS_OPEN_TREE, folder, b"", ctypes.c_uint(flags))
    return _checked(result, "open_tree")


def restrict_tree(tree: int, attributes: int) -> None:
    """Give every mount of `tree` (a clone, or any folder's descriptor) ATTR_* flags."""
    wanted = _MountAttributes(set=attributes)
    result = _libc.syscall(
        _SYS_MOUNT_SETATTR,
        tree,
        b"",
        ctypes.c_uint(_AT_EMPTY_PATH | _AT_RECURSIVE),
        ctypes.byref(wanted),
        ctypes.c_size_t(ctypes.sizeof(wanted)),
    )
    _checked(result, "mount_setattr")


def pivot_root(folder: str) -> None:
    """Make `folder`, a mount, the root; what was there before is gone from this namespace."""
    os.chdir(folder)
    _checked(_libc.pivot_root(b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/")


def attach_tree(tree: int, target: str) -> None:
    result = _libc.syscall(
        _SYS_MOVE_MOUNT,
        tree,
        b"",
        _AT_FDCWD,
        os.fsencode(target),
        ctypes.c_uint(_MOVE_MOUNT_FROM_EMPTY_PATH),
    )
    _checked(result, "move_mount")


def close_from(first: int) -> None:
    """Close every descriptor from `first` on."""
    last = ctypes.c_uint(_LAST_DESCRIPTOR)
    if _libc.syscall(_SYS_CLOSE_RANGE, ctypes.c_uint(first), last, 0) == -1:
        # Only a filter can refuse this call on the kernels we support.
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def set_dumpable(is_dumpable: bool) -> None:
    """Whether /proc/self belongs to the process itself; a change of uid takes that away."""
    _checked(_prctl(_PR_SET_DUMPABLE, int(is_dumpable)), "prctl dumpable")


def become_subreaper() -> None:
    """Orphans among the descendants become children of this process."""
    _checked(_prctl(_PR_SET_CHILD_SUBREAPER, 1), "prctl subreaper")


def forbid_new_privileges() -> None:
    _checked(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "prctl no_new_privs")


def drop_bounding_set() -> None:
    """No program that descends from this process can ever gain a capability by being run."""
    for capability in range(64):
        if _prctl(_PR_CAPBSET_DROP, capability) == -1:
            break  # past the last one that this kernel knows


def drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def lock_root_out() -> None:
    """From here on uid 0 gets no capability by running a program, and nobody can undo that."""
    _checked(_prctl(_PR_SET_SECUREBITS, _SECURE_NOROOT_LOCKED), "prctl securebits")


def set_filter(program: bytes) -> None:
    """Filter the system calls of this process and its children by classic BPF, for good."""
    count = len(program) // 8
    argument = ctypes.byref(_Program(count, program))
    zero = ctypes.c_ulong(0)
    mode = ctypes.c_ulong(_SECCOMP_MODE_FILTER)
    _checked(_libc.prctl(_PR_SET_SECCOMP, mode, argument, zero, zero), "seccomp")


def landlock_version() -> int:
    """The version of Landlock's interface; 0 where there is none."""
    flags = ctypes.c_uint32(_LANDLOCK_VERSION)
    version: int = _libc.syscall(_SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), flags)
    return max(0, version)


def landlock_create(files: int, network: int, scopes: int) -> int:
    """A descriptor of rules: what none of them allows, of these kinds, will be denied."""
    attributes = (ctypes.c_uint64 * 3)(files, network, scopes)
    size = 8 if not network and not scopes else 16 if not scopes else 24
    result = _libc.syscall(
        _SYS_LANDLOCK_CREATE, ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0)
    )
    return _checked(result, "landlock_create_ruleset")


def landlock_allow(rules: int, path: str, access: int) -> None:
    """Allow `access` to `path` and all beneath it."""
    folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", access, folder)
    result = _libc.syscall(_SYS_LANDLOCK_ADD, rules, _LANDLOCK_BENEATH, rule, ctypes.c_uint32(0))
    os.close(folder)
    _checked(result, "landlock_add_rule")


def landlock_allow_port(rules: int, port: int, access: int) -> None:
    rule = struct.pack("=QQ", access, port)
    result = _libc.syscall(_SYS_LANDLOCK_ADD, rules, _LANDLOCK_PORT, rule, ctypes.c_uint32(0))
    _checked(result, "landlock_add_rule")


def landlock_restrict(rules: int) -> None:
    result = _libc.syscall(_SYS_LANDLOCK_RESTRICT, rules, ctypes.c_uint32(0))
    _checked(result, "landlock_restrict_self")


def overwrite(address: int, size: int) -> None:
    """Fill a part of this process's own memory with zeros."""
    ctypes.memset(address, 0, size)


def _prctl(option: int, argument: int) -> int:
    zero = ctypes.c_ulong(0)
    result: int = _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(argument), zero, zero, zero)
    return result
