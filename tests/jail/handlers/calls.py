"""Attacks by system calls that no function needs: to reach the kernel's code is to escape."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import socket

import children  # type: ignore[import-not-found]  # beside this file, where it is deployed

_libc = ctypes.CDLL(None, use_errno=True)
_REFUSALS = (errno.EPERM, errno.ENOSYS, errno.EACCES)

_CLONE = 56
_GETPID = 39
_X32 = 0x4000_0000
_CLONE_NEWNS = 0x0002_0000
_CLONE_NEWUSER = 0x1000_0000


def _call(number: int, *arguments: int) -> int:
    words = [ctypes.c_long(argument) for argument in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def reach(number: int, arguments: list[int]) -> str:
    """Any answer but a refusal is the kernel's own: it looked at the arguments."""
    try:
        return f"answered {_call(number, *arguments)}"
    except OSError as error:
        if error.errno in _REFUSALS:
            raise
        return f"reached: {error}"


def _in_child(action: int) -> str:
    """The exit status of a child that was told to do `action`, which may be its death."""
    _, status = os.waitpid(action, 0)
    if os.WIFSIGNALED(status):
        raise OSError(errno.EPERM, f"killed by {signal.Signals(os.WTERMSIG(status)).name}")
    if os.WEXITSTATUS(status):
        raise OSError(os.WEXITSTATUS(status), os.strerror(os.WEXITSTATUS(status)))
    return "done"


def clone_into_user_namespace(high_bits: int) -> str:
    flags = (high_bits << 32) | _CLONE_NEWUSER | signal.SIGCHLD
    child = _call(_CLONE, flags, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    return _in_child(child)


def clone3_into_user_namespace() -> str:
    words = (ctypes.c_uint64 * 11)(_CLONE_NEWUSER, 0, 0, 0, signal.SIGCHLD)
    child = _call(435, ctypes.addressof(words), ctypes.sizeof(words))
    if child == 0:
        os._exit(0)
    return _in_child(child)


def mount_in_user_namespace() -> str:
    """The classic: root in a namespace of one's own, and with it all of the kernel's mount code."""
    child = os.fork()
    if child == 0:
        try:
            _call(272, _CLONE_NEWUSER | _CLONE_NEWNS)
            names = [ctypes.c_char_p(name) for name in (b"trivet", b"/tmp", b"tmpfs")]
            words = [ctypes.cast(name, ctypes.c_void_p).value or 0 for name in names]
            _call(165, *words, 0, 0)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or errno.EPROTO)
    return _in_child(child)


def ptrace_a_child() -> str:
    child = children.parked()
    try:
        attach, detach = 0x4206, 17  # PTRACE_SEIZE stops nothing
        _call(101, attach, child, 0, 0)
        return f"attached to {child}: {detach}"
    finally:
        children.end([child])


def read_memory_of_a_child() -> str:
    secret = ctypes.create_string_buffer(b"hunter2")
    child = children.parked()
    try:
        room = ctypes.create_string_buffer(8)
        local = (ctypes.c_uint64 * 2)(ctypes.addressof(room), 7)
        remote = (ctypes.c_uint64 * 2)(ctypes.addressof(secret), 7)
        _call(310, child, ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0)
        return room.value.decode()
    finally:
        children.end([child])


def take_descriptor_of_a_child() -> str:
    child = children.parked()
    pidfd = os.pidfd_open(child)
    try:
        return f"descriptor {_call(438, pidfd, 0, 0)}"
    finally:
        children.end([child])
        os.close(pidfd)


def call_as_x32() -> str:
    child = os.fork()
    if child == 0:
        try:
            _call(_GETPID | _X32)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or errno.EPROTO)
    return _in_child(child)


def call_as_i386() -> str:
    """getpid (20) by int 0x80: the numbers of another architecture, past a filter of this one's."""
    child = os.fork()
    if child == 0:
        try:
            page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
            start = ctypes.addressof(ctypes.c_char.from_buffer(page))
            function = ctypes.CFUNCTYPE(ctypes.c_int)(start)
            os._exit(0 if function() == os.getpid() else errno.EPERM)
        finally:
            os._exit(errno.EPROTO)
    return _in_child(child)


def make_socket(family: int, kind: int, protocol: int, high_bits: int) -> str:
    """By the raw call: the library would cut the high bits off, which the kernel ignores."""
    try:
        descriptor = _call(41, (high_bits << 32) | family, kind, protocol)
    except OSError as error:
        if error.errno in (*_REFUSALS, errno.EAFNOSUPPORT):
            raise
        return f"reached: {error}"
    name = socket.socket(fileno=descriptor)
    name.close()
    return "a socket"
