"""Seccomp: reads the filters of a running process from outside, and asks them about calls.

So a call whose refusal looks the same as the kernel's own (for want of power) can still be seen to
be stopped by the filter, and none has to be made with power to prove it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

ALLOW, ERRNO, KILL_PROCESS = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
X86_64, I386 = 0xC000_003E, 0x4000_0003

_SEIZE, _INTERRUPT, _DETACH, _GET_FILTER = 0x4206, 0x4207, 17, 0x420C
_WALL = 0x4000_0000

_INSTRUCTION = struct.Struct("=HBBI")
_DATA = struct.Struct("=IIQ6Q")
_MASK = 0xFFFF_FFFF

Program = list[tuple[int, int, int, int]]  # code, jump if true, jump if false, constant

_libc = ctypes.CDLL(None, use_errno=True)


def filters_of(pid: int) -> list[Program]:
    """The last installed first. Needs root; stops the process for a moment. Raises OSError."""
    _ptrace(_SEIZE, pid)
    try:
        _ptrace(_INTERRUPT, pid)
        os.waitpid(pid, _WALL)
        return _filters(pid)
    finally:
        _ptrace(_DETACH, pid)


def _filters(pid: int) -> list[Program]:
    found: list[Program] = []
    while True:
        try:
            count = _ptrace(_GET_FILTER, pid, len(found))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return found
            if error.errno == errno.EINVAL and not found:
                return found  # it has no filter at all
            raise
        room = ctypes.create_string_buffer(count * _INSTRUCTION.size)
        _ptrace(_GET_FILTER, pid, len(found), ctypes.addressof(room))
        found.append(list(_INSTRUCTION.iter_unpack(room.raw)))


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    words = (ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(address))
    result: int = _libc.ptrace(*words, ctypes.c_void_p(data))
    if result == -1:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")
    return result


def verdict(
    filters: Sequence[Program], number: int, arguments: Sequence[int] = (), machine: int = X86_64
) -> int:
    """What the strictest filter returns for a call: ALLOW, ERRNO | errno, KILL_PROCESS."""
    words = [word & 0xFFFF_FFFF_FFFF_FFFF for word in (*arguments, 0, 0, 0, 0, 0, 0)][:6]
    data = _DATA.pack(number & _MASK, machine, 0, *words)
    results = [_run(program, data) for program in filters]
    return min(
        results, key=lambda result: ctypes.c_int32(result & 0xFFFF_0000).value, default=ALLOW
    )


def _run(program: Program, data: bytes) -> int:
    """Classic BPF, as far as seccomp takes it and filters of calls use it."""
    accumulator = position = 0
    while True:
        code, if_true, if_false, constant = program[position]
        position += 1
        if code == 0x20:  # load a word of the data
            (accumulator,) = struct.unpack_from("=I", data, constant)
        elif code == 0x06:  # return
            return constant
        elif code == 0x54:
            accumulator &= constant
        elif code == 0x05:  # jump
            position += constant
        else:
            tests = {
                0x15: accumulator == constant,
                0x25: accumulator > constant,
                0x35: accumulator >= constant,
                0x45: bool(accumulator & constant),
            }
            position += if_true if tests[code] else if_false
