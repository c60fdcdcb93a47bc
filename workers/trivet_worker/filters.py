"""Filters: which system calls hostile code may make, as programs for seccomp.

A list of what is denied, not of what is allowed: an allow-list breaks with every new C library.
Denied is what changes the kernel, reaches into other processes, or has been a way out before.
There are two programs, stacked. The zygote itself takes on the first, which is long, once; each
environment adds the second, which takes away what its own making needed.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping, Sequence

# Numbers on x86_64 and aarch64; one where both agree, as all calls since Linux 5.1 do.
_ALWAYS_DENIED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "io_setup": (206, 0),  # its events are counted for the whole machine
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "userfaultfd": (323, 282),
    "uselib": (134, None),
    "ustat": (136, None),
    "vhangup": (153, 58),
    "vmsplice": (278, 75),
    "_sysctl": (156, None),
}
_DENIED_ONCE_MADE = {
    "chroot": (161, 51),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "pivot_root": (155, 41),
    "setns": (308, 268),
    "umount2": (166, 39),
    "unshare": (272, 97),
}
_CLONE = (56, 220)
_CLONE3 = 435
_IOCTL = (16, 29)
_PERSONALITY = (135, 92)
_PRCTL = (157, 167)
_PRLIMIT = (302, 261)
_SOCKET = (41, 198)

_NEW_NAMESPACES = 0x7E02_0000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # they type into the terminal of another
_PR_SET_MM = 35
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE = 0
_QUERY = 0xFFFF_FFFF  # personality: only ask
_ITSELF = 0  # prlimit: where all run as one user, it would reach the platform too

_ARCHITECTURES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}
_X32 = 0x4000_0000  # numbers from here on are the same calls in another guise

# Classic BPF: code, jump if true, jump if false, constant.
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

_ALLOW = 0x7FFF_0000
_KILL = 0x8000_0000
_FAIL = 0x0005_0000


def programs() -> tuple[bytes, bytes] | None:
    """The first and the second; None on an architecture whose numbers are not known here."""
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        return None
    column, audit = _ARCHITECTURES[machine]
    return _first(column, audit), _second(column, audit)


def _first(column: int, audit: int) -> bytes:
    allowed = _FAIL | errno.EAFNOSUPPORT
    families = (_AF_UNIX, _AF_INET, _AF_INET6)
    sockets = [
        (_LOAD, 0, 0, _argument(0)),
        *((_EQUAL, len(families) - place + 2, 0, each) for place, each in enumerate(families)),
        (_EQUAL, 0, 3, _AF_NETLINK),
        (_LOAD, 0, 0, _argument(2)),
        (_EQUAL, 0, 1, _NETLINK_ROUTE),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, allowed),
    ]
    return _assembled(
        _head(column, audit),
        _denied(_ALWAYS_DENIED, column),
        _only(_SOCKET[column], sockets),
        _unless_argument(_IOCTL[column], 1, (_TIOCSTI, _TIOCLINUX), _FAIL | errno.EPERM, _ALLOW),
        _unless_argument(_PRCTL[column], 0, (_PR_SET_MM,), _FAIL | errno.EPERM, _ALLOW),
        _unless_argument(_PERSONALITY[column], 0, (0, _QUERY), _ALLOW, _FAIL | errno.EPERM),
        _unless_argument(_PRLIMIT[column], 0, (_ITSELF,), _ALLOW, _FAIL | errno.EPERM),
        [(_RETURN, 0, 0, _ALLOW)],
    )


def _second(column: int, audit: int) -> bytes:
    clone = [
        (_LOAD, 0, 0, _argument(0)),
        (_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    # Its flags lie in memory, where a filter cannot look; the C library falls back to clone.
    clone3 = [(_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    return _assembled(
        _head(column, audit),
        _denied(_DENIED_ONCE_MADE, column),
        _only(_CLONE3, clone3),
        _only(_CLONE[column], clone),
        [(_RETURN, 0, 0, _ALLOW)],
    )


_Instructions = Sequence["tuple[int, int, int, int]"]


def _head(column: int, audit: int) -> _Instructions:
    """A foreign architecture's numbers would mean other calls."""
    guises = [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)] if column == 0 else []
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        *guises,
    ]


def _denied(calls: Mapping[str, tuple[int, int | None]], column: int) -> _Instructions:
    instructions: list[tuple[int, int, int, int]] = []
    for numbers in calls.values():
        number = numbers[column]
        if number is not None:
            instructions += _only(number, [(_RETURN, 0, 0, _FAIL | errno.EPERM)])
    return instructions


def _only(number: int, instructions: _Instructions) -> _Instructions:
    """For this call only. `instructions` must end in a return whatever they find."""
    return [(_EQUAL, 0, len(instructions), number), *instructions]


def _unless_argument(
    number: int, place: int, values: Sequence[int], result: int, otherwise: int
) -> _Instructions:
    """For this call `result` if its argument is one of `values`."""
    tests = [(_EQUAL, len(values) - each, 0, value) for each, value in enumerate(values)]
    return _only(
        number,
        [
            (_LOAD, 0, 0, _argument(place)),
            *tests,
            (_RETURN, 0, 0, otherwise),
            (_RETURN, 0, 0, result),
        ],
    )


def _argument(place: int) -> int:
    """The lower half of an argument: none that is looked at here is wider."""
    return _ARGUMENTS + 8 * place


def _assembled(*parts: _Instructions) -> bytes:
    return b"".join(_INSTRUCTION.pack(*each) for part in parts for each in part)
