"""Isolation: how far an environment is kept apart, and the steps that put it there.

Every environment gets exactly the level that its zygote established (see trials.py) or is refused;
none gets half of it. What is the same for all is prepared once, by the zygote and the template (see
template.py); what needs the host's files or network, by the zygote for each (see making.py). The
rest is a plan of system calls, put together once, that each carries out as it begins.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass

from trivet_worker import kernel, view, wire

# What an environment is given lies at fixed descriptors while it is made: these, then one for each
# hierarchy of cgroups. Where an order has none of a kind, some other is in its place.
NAMES = ("report", "channel", "log", "code", "layers", "network", "scratch", "rules")
FIRST = wire.CHANNEL_FD + 3
REPORT, CHANNEL, LOG, CODE, LAYERS, NETWORK, SCRATCH, RULES, CGROUPS = range(FIRST, FIRST + 9)
# Where an environment says how far it came, until it is complete.
REPORT_FD = wire.CHANNEL_FD + 1

OF_SPAWN = 0x3F  # bits that an order has from there
WITH_MEMORY = 0x40  # and its own: a /tmp of memory, made as `Order.tmp` says
ALL = 0

_PROC_FLAGS = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
_TMP_FLAGS = kernel.MS_NOSUID | kernel.MS_NODEV


class Order(ctypes.Structure):
    """What a template is told of one environment, beside the descriptors."""

    _fields_ = (("uid", ctypes.c_int), ("given", ctypes.c_uint), ("tmp", ctypes.c_char * 64))


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
    is_unified: bool = False  # cgroups are of version 2, where an environment is born in its own
    network: int = -1  # the zygote's own, which is empty
    host_network: int = 0  # the inode of what no environment enters

    @property
    def spaces(self) -> int:
        """The namespaces that an environment is born in."""
        spaces = kernel.CLONE_NEWPID if self.bits & wire.ISOLATION_PID else 0
        if self.bits & wire.ISOLATION_MOUNT:
            spaces |= kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
        return spaces

    def plan(self, order: Order) -> Iterator[tuple[int, kernel.Words]]:
        """The calls that turn a forked process into an environment, in this order.

        Each with the WITH_* bits of an order that it is for. What follows may be hostile code.
        """
        uid = ctypes.c_int.from_buffer(order, Order.uid.offset)
        yield ALL, ("setsid",)  # no terminal, and a group that one signal can reach
        for number, _ in enumerate(() if self.is_unified else self.cgroups):
            yield wire.WITH_CGROUP, ("write", CGROUPS + number, b"0", 1)  # this process joins
        if self.bits & wire.ISOLATION_MOUNT:
            yield from self._furnishing(order)
        else:
            yield wire.WITH_CODE, ("fchdir", CODE)
        if self.bits & wire.ISOLATION_NETWORK:
            yield ALL, ("setns", NETWORK, kernel.CLONE_NEWNET)
        if self.bits & wire.ISOLATION_LANDLOCK:
            yield ALL, ("landlock_restrict_self", RULES, 0)  # nothing can be mounted any more
        # Not a shared one: its state would be shared too. What is opened gets the lowest number.
        yield ALL, ("close", 0)
        yield ALL, ("open", "/dev/null", os.O_RDWR)
        for number, given in ((1, LOG), (2, LOG), (wire.CHANNEL_FD, CHANNEL)):
            yield ALL, ("dup2", given, number)
        yield ALL, kernel.closing_from(REPORT_FD + 1)
        if self.bits & wire.ISOLATION_UID:
            yield ALL, ("setresgid", uid, uid, uid)
            yield ALL, ("setresuid", uid, uid, uid)  # the capabilities go with it
        if self.bits & wire.ISOLATION_USER:
            yield ALL, kernel.dropping_capabilities()
        # The change of uid gave /proc/self to root.
        yield ALL, ("prctl", kernel.PR_SET_DUMPABLE, 1, 0, 0, 0)
        if self.bits & wire.ISOLATION_SECCOMP:
            yield ALL, kernel.filtering(self.last_filter)  # it denies most of the above

    def _furnishing(self, order: Order) -> Iterator[tuple[int, kernel.Words]]:
        # Only now it is in its cgroups: from here on they are the root of all that it is told of.
        yield ALL, ("unshare", kernel.CLONE_NEWCGROUP)
        # Made where its code will be; what is needed from below /tmp, if a clone lives there, has
        # been put into it when it covers the old one.
        options = ctypes.c_char_p(ctypes.addressof(order) + Order.tmp.offset)
        place = view.CODE_PATH
        yield WITH_MEMORY, kernel.mounting("tmpfs", place, _TMP_FLAGS, options)
        yield wire.WITH_SCRATCH, kernel.attaching(SCRATCH, place)
        for folder in view.ways(self.folders, "/tmp"):
            yield ALL, ("mkdir", place + folder.removeprefix("/tmp"), 0o755)
        for folder in [each for each in self.folders if view.is_inside(each, "/tmp")]:
            yield ALL, kernel.binding(folder, place + folder.removeprefix("/tmp"))
        yield ALL, kernel.moving(place, "/tmp")
        yield wire.WITH_CODE, kernel.attaching(CODE, view.CODE_PATH)
        yield wire.WITH_LAYERS, kernel.attaching(LAYERS, view.LAYERS_PATH)
        yield ALL, kernel.mounting("proc", "/proc", _PROC_FLAGS, "hidepid=invisible")
        for shown, path in self.masks:
            yield ALL, kernel.binding(shown, path)
        yield ALL, ("chdir", view.CODE_PATH)
