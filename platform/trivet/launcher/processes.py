"""Processes: how one is started, holding nothing of the launcher's but what it is given."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trivet.launcher import kernel
from trivet.launcher.identities import Identity
from trivet.launcher.link import Link
from trivet.launcher.turns import Turn

# Enough for ten thousand connections, and a table the kernel need not grow large for.
_MAX_OPEN_FILES = 65_536

_OUR_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """What to run for one part of the platform."""

    name: str  # as the loud lines call it
    argv: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)  # beside the minimal environment
    descriptors: tuple[int, ...] = ()  # inherited under their numbers
    identity: Identity | None = None  # None: the launcher's own
    # False only for a zygote: its environments must not outlive it, so it ends by an EOF that it
    # sees, not by a signal that it cannot.
    dies_with_launcher: bool = True
    umask: int = 0o027
    waits: bool = False  # it loads what it needs, and serves once it is given its turn
    stands_by: bool = False  # another one that waits is kept ready, to take over from a dead one


@dataclass(slots=True, eq=False)
class Process:
    """One process of a part, and the launcher's ends of what it holds."""

    pid: int
    started_at: float  # monotonic; when its turn came, if it stood by before
    turn: Turn | None = None
    link: Link | None = None  # of a service
    supervisor_end: socket.socket | None = None  # of a servant, until the supervisor has it
    parent_end: int = -1  # of a servant
    has_arrived: bool = False  # it waits for its turn, with all loaded
    has_turn: bool = False
    is_ready: bool = False
    due: float | None = None  # when it is to be killed, if it was asked to leave

    @property
    def is_prepared(self) -> bool:
        """Whether one that stands by has all that it needs to serve."""
        if self.turn is not None:
            return self.has_arrived
        # A zygote greets its supervisor, which it has not met yet.
        end = self.supervisor_end
        return end is None or bool(select.select([end], [], [], 0)[0])

    def take_turn(self) -> None:
        """From here on it serves, as soon as it can."""
        self.started_at = time.monotonic()
        self.has_turn = True
        if self.turn is not None:
            self.turn.give()

    def signal(self, number: signal.Signals) -> None:
        # The pid is ours until it is reaped, so it cannot name another process.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def let_go(self) -> None:
        """Close the ends of a servant, which ends it."""
        if self.parent_end >= 0:
            os.close(self.parent_end)
            self.parent_end = -1
        if self.supervisor_end is not None:
            self.supervisor_end.close()
            self.supervisor_end = None

    def close(self) -> None:
        self.let_go()
        if self.turn is not None:
            self.turn.close()
        if self.link is not None:
            self.link.close()


# Not the caller's PATH: root must not look for programs where others write.
MINIMAL_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/"}


def start(
    spec: ServiceSpec,
    *,
    arguments: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
    log: int,
) -> int:
    """Start `spec` with further `arguments` and `variables`; its pid, once it has exec'd.

    It inherits those of `spec`, `descriptors`, and `log` as its output: no other.
    Raises OSError when it cannot be started.
    """
    argv = [*spec.argv, *arguments]
    environment = {**MINIMAL_ENVIRONMENT, **spec.variables, **(variables or {})}
    launcher = os.getpid()
    failure, failure_end = os.pipe()
    # A signal to the launcher's group must not reach our handlers in the child: they would
    # wake the launcher as if the signal had come to it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OUR_SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            kept = [*spec.descriptors, *descriptors, failure_end]
            _become(spec, argv, environment, launcher, kept, log)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(failure_end)
    with os.fdopen(failure, "rb") as file:
        reason = file.read(1024)
    if reason:
        os.waitpid(pid, 0)
        raise OSError(reason.decode(errors="replace"))
    return pid


def _become(
    spec: ServiceSpec,
    argv: Sequence[str],
    environment: Mapping[str, str],
    launcher: int,
    descriptors: Sequence[int],
    log: int,
) -> None:
    """In the child, and never back: the order is what makes it safe."""
    failure_end = descriptors[-1]
    try:
        os.setsid()  # a terminal's Ctrl-C is for the launcher alone
        _reset_signals()
        os.chdir("/")
        os.umask(spec.umask)
        _set_limits()  # while root: the hard limits too
        null = os.open(os.devnull, os.O_RDWR)
        for ours, theirs in ((null, 0), (log, 1), (log, 2)):
            os.dup2(ours, theirs)
        _close_all_but(descriptors)
        for descriptor in descriptors[:-1]:
            os.set_inheritable(descriptor, True)
        if spec.identity is not None:
            _drop_to(spec.identity)  # everything above may need root
        if spec.dies_with_launcher:
            kernel.forbid_new_privileges()
            kernel.die_with_parent(signal.SIGKILL)  # after the drop, which clears it
            if os.getppid() != launcher:
                os._exit(1)
        os.execve(argv[0], list(argv), dict(environment))
    except BaseException as error:
        os.write(failure_end, f"{argv[0]}: {error}".encode(errors="replace")[:1024])
    finally:
        os._exit(127)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (*_OUR_SIGNALS, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _set_limits() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, hard))
    # A core file would hold payloads and keys.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _close_all_but(kept: Iterable[int]) -> None:
    """Close all from 3 on but `kept`."""
    low = 3
    for descriptor in sorted(set(kept)):
        if descriptor > low:  # an empty range would be taken for a boundless one
            os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 2**31 - 1)


def _drop_to(identity: Identity) -> None:
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)


def how_it_ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"status {code}"


def children() -> set[int]:
    """Pids of all children of this process, adopted ones included."""
    ours = str(os.getpid())
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(errors="replace")
            except OSError:
                continue
            # The name stands in brackets and may hold anything, brackets and spaces too.
            if stat.rpartition(")")[2].split()[1] == ours:
                found.add(int(entry.name))
    return found
