"""Template: the process that environments are forked from, and that does nothing else.

Whatever it writes to between two forks is a page that each of them has for itself; so commands,
reports and ends are the zygote's affair, and this one only waits for the next order. It lives where
environments live, without the host's files: what is the same for all is done here, once. They are
its siblings, so that the zygote, whose children they are, sees how they end.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import signal
import socket
import struct
from collections.abc import Sequence

from trivet_worker import heritage, kernel, view, wire
from trivet_worker.isolation import CGROUPS, FIRST, REPORT, REPORT_FD, Isolation, Order

_NUMBER = struct.Struct("=i")  # of a descriptor
ERRNO = struct.Struct("<i")  # what a report says: 0 when all is done, or what kept it from that

_LIMITS = {
    resource.RLIMIT_NOFILE: 1024,  # as on AWS
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_MEMLOCK: 65_536,
    resource.RLIMIT_MSGQUEUE: 0,
    resource.RLIMIT_NICE: 0,
    resource.RLIMIT_RTPRIO: 0,
    resource.RLIMIT_SIGPENDING: 1024,
}

# Of a program that is not Python; a function's own come with INIT.
_VARIABLES = {"LANG": "en_US.UTF-8", "PATH": "/usr/local/bin:/usr/bin:/bin"}

_ORDERS = FIRST - 1  # the last descriptor of a template; what comes with an order follows

_Plan = Sequence["tuple[int, kernel.Call]"]

# An environment has no use for it, but to free it would write to every page of it.
_left: list[object] = []


def fork(others: Sequence[socket.socket] = ()) -> tuple[int, socket.socket]:
    """Like os.fork, with this side's end of a link for orders. The child has none of `others`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    for each in (theirs,) if pid else (ours, *others):
        each.close()
    return pid, ours if pid else theirs


def serve(level: Isolation, orders: socket.socket, command: tuple[str, ...] = ()) -> bool:
    """Obey until the end. Returns in each environment, once it is complete: whether it is custom.

    So it runs on a stack that holds nothing of ours. `command` is a program to go on as, if any.
    """
    order = Order()
    plan = _plan(level, order, command)
    thread_id = kernel.thread_id_place()
    birthplaces = (-1, CGROUPS if level.is_unified else -1)
    forkings = [kernel.forking(level.spaces, each, thread_id) for each in birthplaces]
    closing = kernel.prepared(*kernel.closing_from(FIRST))
    room = socket.CMSG_SPACE((CGROUPS - FIRST + len(level.cgroups)) * _NUMBER.size)
    orders = _settled(level, orders)
    _left.extend((orders, order, plan, forkings, closing))
    gc.freeze()
    while True:
        size, beside, flags, _ = orders.recvmsg_into((order,), room)
        # Either the end, or nothing lies where it is looked for.
        if not size or flags or _NUMBER.unpack_from(beside[0][2]) != (FIRST,):
            os._exit(0)
        given = order.given
        try:
            if kernel.fork(forkings[bool(given & wire.WITH_CGROUP)]) == 0:
                orders.detach()  # its number may soon be the user's file
                _become(plan, given, command)
                return bool(given & wire.AS_CUSTOM)
        except OSError as error:
            _tell(REPORT, error)
        kernel.make(*closing)


def _plan(level: Isolation, order: Order, command: tuple[str, ...]) -> _Plan:
    """The calls that make an environment, with the WITH_* bits of an order that each is for."""
    begin = ("dup3", REPORT, REPORT_FD, os.O_CLOEXEC)
    hide = kernel.overwriting(*heritage.argument_range())  # which name places of the host
    done = ("write", REPORT_FD, ERRNO.pack(0), ERRNO.size)
    # At once, though the template may not have closed its end yet. A program does without.
    ends = [] if command else [("shutdown", REPORT_FD, socket.SHUT_WR), ("close", REPORT_FD)]
    steps = [(0, begin), (0, hide), *level.plan(order), *((0, words) for words in (done, *ends))]
    return tuple((needed, kernel.prepared(*words)) for needed, words in steps)


def _settled(level: Isolation, orders: socket.socket) -> socket.socket:
    """`orders` again, once this process is what all environments have in common."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()  # Ctrl-C reaches the whole terminal, but only the launcher decides about the end
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if level.bits & wire.ISOLATION_MOUNT:
        kernel.join_namespaces(level.view, kernel.CLONE_NEWNS)
        kernel.unshare(kernel.CLONE_NEWUTS)
        socket.sethostname(view.HOST_NAME)
    for limit, value in _LIMITS.items():
        resource.setrlimit(limit, (value, value))
    os.dup2(orders.detach(), _ORDERS)
    kernel.close_from(FIRST)
    return socket.socket(fileno=_ORDERS)


def _become(plan: _Plan, given: int, command: tuple[str, ...]) -> None:
    """All that stands between the fork and the user's code. Ends this process if it fails."""
    try:
        for needed, call in plan:
            if not needed & ~given:
                kernel.make(*call)
        if command:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.execve(command[0], command, _VARIABLES)
    except BaseException as error:
        _tell(REPORT_FD, error)
        os._exit(1)


def _tell(report: int, error: BaseException) -> None:
    with contextlib.suppress(OSError):  # the zygote is gone, and so is whoever waits
        os.write(report, ERRNO.pack(getattr(error, "errno", None) or errno.EPROTO))
