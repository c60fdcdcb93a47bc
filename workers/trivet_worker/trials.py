"""Trials: a zygote finds the strongest level of isolation that works here, and prepares for it.

What works is tried, each time by a process of its own that brings an environment up and ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

from trivet_worker import filters, kernel, landlock, link, making, template, view, wire
from trivet_worker.heritage import Options
from trivet_worker.isolation import Isolation

# The strongest first.
_SPACES = (
    wire.ISOLATION_PID | wire.ISOLATION_MOUNT | wire.ISOLATION_NETWORK,
    wire.ISOLATION_PID | wire.ISOLATION_MOUNT,
    wire.ISOLATION_PID,
)
_EXTRAS = (wire.ISOLATION_SECCOMP, wire.ISOLATION_LANDLOCK, wire.ISOLATION_CGROUP)

# Uids are used again before new ones are: a machine full of environments needs no more names.
_NAMED_UIDS = 2_000

_NOBODY = 65_534  # who trial environments run as: any id but root's will do


def establish(options: Options) -> Isolation:
    """The strongest level that works here, but for what the options leave out."""
    without = options.without
    own = wire.ISOLATION_USER if os.geteuid() else wire.ISOLATION_UID
    spaces = [*(own | each for each in _SPACES), own & wire.ISOLATION_UID]
    if not (options.cgroups and own & ~without & wire.ISOLATION_UID):
        without |= wire.ISOLATION_CGROUP  # which are named like uids
    # As nearly everywhere all works: one trial instead of four.
    candidates = [each & ~without for each in (spaces[0] | sum(_EXTRAS), *spaces)]
    bits = next((each for each in candidates if _works(each, options)), 0)
    without |= 0 if bits & wire.ISOLATION_UID else wire.ISOLATION_CGROUP
    for extra in _EXTRAS:
        if not (bits | without) & extra and _works(bits | extra, options):
            bits |= extra
    return _prepared(bits, options)


def _works(bits: int, options: Options) -> bool:
    """Whether an environment can be brought up at this level. Changes nothing here."""
    pid = os.fork() or _carry_out(lambda: _try(bits, options))
    failure = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if failure:
        reason = os.strerror(failure)
        print(f"zygote: isolation {bits} cannot be had here: {reason}", file=sys.stderr)
    return not failure


def _try(bits: int, options: Options) -> None:
    name = f"trial-{os.getpid()}" if bits & wire.ISOLATION_CGROUP else ""
    with contextlib.ExitStack() as stack:
        for base in options.cgroups if name else ():
            os.makedirs(f"{base}/{name}", exist_ok=True)
            stack.callback(os.rmdir, f"{base}/{name}")
        level = _prepared(bits, options)
        pid, orders = template.fork()
        if pid == 0:  # a template, or an environment that has succeeded
            _carry_out(lambda: template.serve(level, orders))
        null = os.open(os.devnull, os.O_RDWR)
        code = os.open(os.path.dirname(__file__), os.O_PATH | os.O_DIRECTORY)
        given = {"channel": null, "log": null, "code": code}
        second = wire.WITH_CODE | wire.WITH_CGROUP * bool(name)
        environment, order, beside = making.prepare(level, 0, _NOBODY, second, given, name)
        link.send(orders, bytes(order), beside)
        link.close_all({*beside})
        environment.report.setblocking(True)
        failure = environment.read()
        orders.close()
        with contextlib.suppress(ChildProcessError):
            while True:  # both end now
                os.wait()
        if failure:
            raise OSError(failure, "an environment could not be made")


def _carry_out(task: Callable[[], object]) -> NoReturn:
    """Exit with 0, or with the errno that kept this process from it."""
    status = errno.EPROTO
    try:
        task()
        status = 0
    except OSError as error:
        status = error.errno or errno.EPROTO
    finally:
        os._exit(status)


def _prepared(bits: int, options: Options) -> Isolation:
    """Bring this process to the level `bits`: once, and for all that it will fork."""
    folders = view.outermost(options.folders)
    level = Isolation(bits, folders, masks=view.masks())
    if bits & wire.ISOLATION_USER:
        _own_user_namespace(bits)
    if bits & wire.ISOLATION_MOUNT:
        inside, rules = _build_view(bits, options, folders)
        level = replace(level, view=inside, rules=rules)
    # Inherited by every environment, and no hindrance to this process: done once, here.
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if bits & wire.ISOLATION_UID:
        os.setgroups([])
        kernel.prctl(kernel.PR_SET_SECUREBITS, kernel.SECURE_NOROOT_LOCKED)
    if bits & (wire.ISOLATION_UID | wire.ISOLATION_USER):
        kernel.drop_bounding_set()
    if bits & wire.ISOLATION_SECCOMP:
        first, last = filters.programs(os.uname().machine)
        kernel.call(*kernel.filtering(first))
        level = replace(level, last_filter=last)
    if bits & wire.ISOLATION_NETWORK:
        level = replace(level, host_network=os.stat("/proc/self/ns/net").st_ino)
        kernel.unshare(kernel.CLONE_NEWNET)  # where it comes back to: nobody can to the host's
        level = replace(level, network=os.open("/proc/self/ns/net", os.O_RDONLY))
    if bits & wire.ISOLATION_CGROUP:
        is_unified = os.path.exists(f"{options.cgroups[0]}/cgroup.controllers")
        level = replace(level, cgroups=options.cgroups, is_unified=is_unified)
    return level


def _own_user_namespace(bits: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    has_mounts = bool(bits & wire.ISOLATION_MOUNT)
    kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS * has_mounts)
    # The same ids inside as outside: as uid 0, a program would get its capabilities back.
    maps = (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"))
    for name, content in maps:
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)
    if has_mounts:
        kernel.make_private("/")


def _build_view(bits: int, options: Options, folders: Sequence[str]) -> tuple[int, int]:
    """The mount namespace with the root that environments see, and rules of Landlock for it."""
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    kernel.unshare(kernel.CLONE_NEWNS)
    inside = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    uids = range(options.first_uid, options.first_uid + _NAMED_UIDS)
    view.build(
        folders,
        options.libraries,
        uids=uids if options.first_uid else [os.geteuid()],
        keeps_proc=bool(bits & wire.ISOLATION_USER),
    )
    rules = landlock.rules_of_a_view() if bits & wire.ISOLATION_LANDLOCK else -1
    kernel.join_namespaces(home, kernel.CLONE_NEWNS)
    os.close(home)
    return inside, rules
