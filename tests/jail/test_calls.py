"""System calls that no function needs are refused before the kernel's code sees an argument."""

from __future__ import annotations

import errno
import platform
import signal

import pytest
from tests.jail import seccomp
from tests.jail.jails import Attack, Jail, Spec, alone, bare, full, needs_root

from trivet_worker.wire import ISOLATION_LANDLOCK, ISOLATION_SECCOMP

# Deliberately wrong: a pointer that leads nowhere, a descriptor that is none, flags that no kernel
# knows. Whoever answers with anything but a refusal has looked at them.
NOWHERE = 1
NONE = -1
UNKNOWN = 0x7FFF_0000
HIGH = 1 << 32  # bits that the kernel cuts off, and a filter that compares 64 of them does not

NEW_USER = 0x1000_0000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
PR_SET_MM = 35

# Name: number on x86_64, arguments, and whether the kernel asks for power before it looks. No test
# makes a call of that last kind with power: what the filter says to it is read from outside.
_CALLS: dict[str, tuple[int, list[int], bool]] = {
    "mount": (165, [NOWHERE, NOWHERE, NOWHERE, 0, 0], False),
    "umount2": (166, [0, UNKNOWN], False),
    "pivot_root": (155, [NOWHERE, NOWHERE], True),
    "chroot": (161, [NOWHERE], False),
    "open_tree": (428, [NONE, NOWHERE, UNKNOWN], False),
    "open_tree_attr": (467, [NONE, NOWHERE, UNKNOWN, 0, 0], False),
    "move_mount": (429, [NONE, NOWHERE, NONE, NOWHERE, 0], True),
    "fsopen": (430, [NOWHERE, 0], True),
    "fsconfig": (431, [NONE, 0, 0, 0, 0], False),
    "fsmount": (432, [NONE, 0, 0], True),
    "fspick": (433, [NONE, NOWHERE, 0], True),
    "mount_setattr": (442, [NONE, NOWHERE, UNKNOWN, 0, 0], False),
    "unshare": (272, [NEW_USER], False),
    "unshare_time": (272, [0x80 | NEW_USER], False),
    "setns": (308, [NONE, 0], False),
    "clone3": (435, [0, 0], False),
    "ptrace": (101, [UNKNOWN, 0, 0, 0], False),
    "process_vm_readv": (310, [0, 0, 0, 0, 0, 1], False),
    "process_vm_writev": (311, [0, 0, 0, 0, 0, 1], False),
    "kcmp": (312, [0, 0, UNKNOWN, 0, 0], False),
    "pidfd_getfd": (438, [NONE, 0, 1], False),
    "bpf": (321, [0xFFFF, 0, 0], False),
    "perf_event_open": (298, [0, 0, 0, NONE, UNKNOWN], False),
    "userfaultfd": (323, [1], False),
    "io_uring_setup": (425, [1, 0], False),
    "io_uring_enter": (426, [NONE, 0, 0, UNKNOWN, 0, 0], False),
    "io_uring_register": (427, [NONE, 0xFFFF, 0, 0], False),
    "keyctl": (250, [0xFFFF], False),
    "add_key": (248, [NOWHERE, 0, 0, 0, 0], False),
    "request_key": (249, [NOWHERE, 0, 0, 0], False),
    "init_module": (175, [NOWHERE, 1, NOWHERE], True),
    "finit_module": (313, [NONE, NOWHERE, 0], True),
    "delete_module": (176, [NOWHERE, 0], True),
    "kexec_load": (246, [0, UNKNOWN, 0, UNKNOWN], True),
    "kexec_file_load": (320, [NONE, NONE, 0, 0, UNKNOWN], True),
    "reboot": (169, [1, 1, 1, 0], True),
    "swapon": (167, [NOWHERE, 0x4000_0000], True),
    "swapoff": (168, [NOWHERE], True),
    "acct": (163, [NOWHERE], True),
    "quotactl": (179, [0xFF, 0, 0, 0], False),
    "quotactl_fd": (443, [NONE, 0xFF, 0, 0], False),
    "syslog": (103, [10, 0, 0], True),
    "settimeofday": (164, [NOWHERE, 0], False),
    "clock_settime": (227, [0xFFFF, 0], False),
    "adjtimex": (159, [NOWHERE], False),
    "clock_adjtime": (305, [0xFFFF, NOWHERE], False),
    "iopl": (172, [4], False),
    "ioperm": (173, [0xFFFF_FFFF, 2, 1], False),
    "modify_ldt": (154, [0, 0, 0], False),
    "personality": (135, [0x0040_0000], False),
    "personality_high_bits": (135, [HIGH | 0x0040_0000], False),
    "name_to_handle_at": (303, [NONE, NOWHERE, 0, 0, UNKNOWN], False),
    "open_by_handle_at": (304, [NONE, NOWHERE, 0], True),
    "fanotify_init": (300, [0x200, 0], False),
    "vhangup": (153, [], True),
    "move_pages": (279, [0, 0, 0, 0, 0, UNKNOWN], False),
    "migrate_pages": (256, [0x3FFF_FFFF, 0, 0, 0], False),
    "vmsplice": (278, [NONE, 0, 0, UNKNOWN], False),
    "memfd_secret": (447, [UNKNOWN], False),
    "prctl_mm": (157, [PR_SET_MM, 1, 0, 0, 1], False),
    "prctl_mm_high_bits": (157, [HIGH | PR_SET_MM, 1, 0, 0, 1], False),
    "ioctl_type_ahead": (16, [0, TIOCSTI, NOWHERE], False),
    "ioctl_type_ahead_high_bits": (16, [0, HIGH | TIOCSTI, NOWHERE], False),
    "ioctl_console": (16, [0, TIOCLINUX, NOWHERE], False),
    "unshare_high_bits": (272, [HIGH | NEW_USER], False),
}

# family, kind, protocol
_FAMILIES: dict[str, tuple[int, int, int]] = {
    "vsock": (40, 1, 0),
    "alg": (38, 5, 0),
    "packet": (17, 3, 0),
    "key": (15, 3, 2),
    "netlink_audit": (16, 3, 9),
    "netlink_uevents": (16, 3, 15),
    "netlink_netfilter": (16, 3, 12),
    "netlink_generic": (16, 3, 16),
    "netlink_xfrm": (16, 3, 6),
    "netlink_diag": (16, 3, 4),
    "xdp": (44, 3, 0),
    "tipc": (30, 1, 0),
    "can": (29, 3, 1),
    "bluetooth": (31, 3, 1),
    "smc": (43, 1, 0),
    "kcm": (41, 5, 0),
    "qipcrtr": (42, 2, 0),
}


def _reach(name: str) -> Attack:
    number, arguments, _ = _CALLS[name]
    given = {"number": number, "arguments": arguments}
    return Attack(name, "calls", "reach", ISOLATION_SECCOMP, given=lambda world: given)


def _socket(name: str, family: tuple[int, int, int], high_bits: int = 0) -> Attack:
    family_number, kind, protocol = family
    given = {
        "family": family_number,
        "kind": kind,
        "protocol": protocol,
        "high_bits": high_bits,
    }
    return Attack(name, "calls", "make_socket", ISOLATION_SECCOMP, given=lambda world: given)


ATTACKS = [
    *(_reach(name) for name in _CALLS),
    *(_socket(f"socket_{name}", family) for name, family in _FAMILIES.items()),
    _socket("socket_high_bits", _FAMILIES["vsock"], high_bits=1),
    Attack(
        "clone",
        "calls",
        "clone_into_user_namespace",
        ISOLATION_SECCOMP,
        given=lambda world: {"high_bits": 0},
    ),
    Attack(
        "clone_high_bits",
        "calls",
        "clone_into_user_namespace",
        ISOLATION_SECCOMP,
        given=lambda world: {"high_bits": 1},
    ),
    Attack("clone3_for_real", "calls", "clone3_into_user_namespace", ISOLATION_SECCOMP),
    Attack(
        "mount_as_root_of_a_namespace",
        "calls",
        "mount_in_user_namespace",
        ISOLATION_SECCOMP,
        ISOLATION_LANDLOCK,
    ),
    Attack("ptrace_a_child", "calls", "ptrace_a_child", ISOLATION_SECCOMP),
    Attack("memory_of_a_child", "calls", "read_memory_of_a_child", ISOLATION_SECCOMP),
    Attack("descriptor_of_a_child", "calls", "take_descriptor_of_a_child", ISOLATION_SECCOMP),
    Attack("x32", "calls", "call_as_x32", ISOLATION_SECCOMP),
    Attack("i386", "calls", "call_as_i386", ISOLATION_SECCOMP),
]

# Here the kernel itself refuses whoever has no power.
_ASKING = {
    *(name for name, (_, _, asks) in _CALLS.items() if asks),
    *("socket_packet", "socket_key", "socket_xdp", "socket_can"),
}

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="these are the numbers of x86_64"
)

_ABSENT = (errno.ENOSYS, errno.EAFNOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EPROTONOSUPPORT)
_SOCKET = 41


@pytest.mark.parametrize(("jail", "attack"), full(ATTACKS), indirect=["jail"])
def test_it_is_refused(jail: Jail, attack: Attack) -> None:
    answer = jail.attempt(attack)
    assert not answer["escaped"], answer


@pytest.mark.parametrize(("jail", "attack"), alone(ATTACKS), indirect=["jail"])
def test_the_filter_alone_refuses_it(jail: Jail, attack: Attack) -> None:
    answer = jail.attempt(attack)
    assert not answer["escaped"], answer


@pytest.mark.parametrize(
    ("jail", "attack"),
    bare([attack for attack in ATTACKS if attack.name not in _ASKING]),
    indirect=["jail"],
)
def test_without_the_filter_the_kernel_answers(jail: Jail, attack: Attack) -> None:
    answer = jail.attempt(attack)
    if answer["errno"] in _ABSENT or signal.SIGSEGV.name in answer["message"]:
        pytest.skip(f"this kernel has no such call: {answer['message']}")
    assert answer["escaped"], answer


@needs_root
@pytest.mark.parametrize("jail", [Spec("python"), Spec("node")], indirect=True, ids=str)
def test_the_filter_itself_says_so(jail: Jail) -> None:
    filters = seccomp.filters_of(jail.victim.pid)
    refused = {
        name
        for name, (number, arguments, _) in _CALLS.items()
        if seccomp.verdict(filters, number, arguments) & 0xFFFF_0000 == seccomp.ERRNO
    }
    assert refused == _CALLS.keys()
    sockets = {
        name
        for name, arguments in _FAMILIES.items()
        if seccomp.verdict(filters, _SOCKET, arguments) & 0xFFFF_0000 == seccomp.ERRNO
    }
    assert sockets == _FAMILIES.keys()


@needs_root
@pytest.mark.parametrize("jail", [Spec("python"), Spec("node")], indirect=True, ids=str)
def test_the_filter_knows_one_architecture(jail: Jail) -> None:
    filters = seccomp.filters_of(jail.victim.pid)
    getpid, of_i386 = 39, 20
    assert seccomp.verdict(filters, getpid) == seccomp.ALLOW
    assert seccomp.verdict(filters, of_i386, machine=seccomp.I386) == seccomp.KILL_PROCESS
    assert seccomp.verdict(filters, getpid | 0x4000_0000) == seccomp.KILL_PROCESS


@needs_root
@pytest.mark.parametrize("jail", [Spec(without=ISOLATION_SECCOMP)], indirect=True, ids=str)
def test_without_the_layer_there_is_no_filter(jail: Jail) -> None:
    assert seccomp.filters_of(jail.victim.pid) == []
