"""Filters: which system calls hostile code may make, as programs for seccomp.

A list of what is denied, not of what is allowed: an allow-list breaks with every new C library.
Denied is what changes the kernel, reaches into other processes, or has been a way out before.
There are two programs, stacked. The zygote itself takes on the first, which is long, once; each
environment adds the second, which takes away what its own making needed.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence

from trivet_worker import calls

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

_Instructions = Sequence["tuple[int, int, int, int]"]
_Rules = Mapping["tuple[int, int | None]", _Instructions]  # what to do about a call, by its numbers


def _returned(result: int) -> _Instructions:
    return [(_RETURN, 0, 0, result)]


_ALLOWED = _returned(0x7FFF_0000)
_KILLED = _returned(0x8000_0000)
_FORBIDDEN, _UNKNOWN_CALL, _UNKNOWN_FAMILY = (
    _returned(0x0005_0000 | number) for number in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT)
)


def programs(machine: str) -> tuple[bytes, bytes]:
    """The first and the second. OSError for an architecture whose numbers are not known here."""
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"the numbers of system calls are not known for {machine}")
    column, audit = _ARCHITECTURES[machine]
    # A foreign architecture's numbers would mean other calls.
    head = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, audit), *_KILLED, (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        head += [(_AT_LEAST, 0, 1, _X32), *_KILLED]
    netlink = _if_argument(2, _EQUAL, [_NETLINK_ROUTE], _ALLOWED)
    first: _Rules = {
        **dict.fromkeys(calls.ALWAYS_DENIED.values(), _FORBIDDEN),
        calls.SOCKET: [
            *_if_argument(0, _EQUAL, [_AF_UNIX, _AF_INET, _AF_INET6], _ALLOWED),
            *_if_argument(0, _EQUAL, [_AF_NETLINK], netlink),
            *_UNKNOWN_FAMILY,
        ],
        calls.IOCTL: [*_if_argument(1, _EQUAL, [_TIOCSTI, _TIOCLINUX], _FORBIDDEN), *_ALLOWED],
        calls.PRCTL: [*_if_argument(0, _EQUAL, [_PR_SET_MM], _FORBIDDEN), *_ALLOWED],
        calls.PERSONALITY: [*_if_argument(0, _EQUAL, [0, _QUERY], _ALLOWED), *_FORBIDDEN],
        calls.PRLIMIT: [*_if_argument(0, _EQUAL, [_ITSELF], _ALLOWED), *_FORBIDDEN],
    }
    second: _Rules = {
        **dict.fromkeys(calls.DENIED_ONCE_MADE.values(), _FORBIDDEN),
        # Its flags lie in memory, where a filter cannot look; the C library falls back to clone.
        calls.CLONE3: _UNKNOWN_CALL,
        calls.CLONE: [*_if_argument(0, _ANY_BIT, [_NEW_NAMESPACES], _FORBIDDEN), *_ALLOWED],
    }
    return _assembled(head, first, column), _assembled(head, second, column)


def _if_argument(
    place: int, test: int, values: Sequence[int], instructions: _Instructions
) -> _Instructions:
    """What to do if an argument passes `test` with one of `values`; if it does not, go on.

    Of the argument the lower half: none that is looked at here is wider.
    """
    *others, last = values
    return [
        (_LOAD, 0, 0, _ARGUMENTS + 8 * place),
        *((test, len(others) - each, 0, value) for each, value in enumerate(others)),
        (test, 0, len(instructions), last),
        *instructions,
    ]


def _assembled(head: _Instructions, rules: _Rules, column: int) -> bytes:
    """What a rule says of a call must end in a return whatever it finds."""
    program = [*head]
    for numbers, instructions in rules.items():
        number = numbers[column]
        if number is not None:
            program += [(_EQUAL, 0, len(instructions), number), *instructions]
    return b"".join(_INSTRUCTION.pack(*each) for each in (*program, *_ALLOWED))
