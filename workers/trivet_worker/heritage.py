"""Heritage: what a zygote takes over from its launcher, and what it lets go of."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from trivet_worker import kernel
from trivet_worker.isolation import Needs

# An environment has 0 to 3, and one more while it is being made.
_HIGHEST_RESERVED_FD = 4


@dataclass(frozen=True)
class Options:
    """The command line: what kind of environments, and the descriptors of the two sockets."""

    commands: int
    parent: int
    kind: str
    program: str = ""
    bootstrap: str = ""
    libraries: tuple[str, ...] = ()  # shown at /var/runtime
    cgroups: tuple[str, ...] = ()  # folders that hold those of the environments
    first_uid: int = 0
    without: int = 0  # ISOLATION_* bits to leave out, for trials of lower levels

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Options:
        given = dict(zip(argv[::2], argv[1::2]))
        lists = {name: given.pop(f"--{name}", "") for name in ("libraries", "cgroups")}
        try:
            options = cls(
                commands=int(given.pop("--commands")),
                parent=int(given.pop("--parent")),
                kind=given.pop("--kind"),
                program=given.pop("--program", ""),
                bootstrap=given.pop("--bootstrap", ""),
                first_uid=int(given.pop("--first-uid", "0")),
                without=int(given.pop("--without", "0")),
                **{name: tuple(filter(None, text.split(":"))) for name, text in lists.items()},
            )
        except (KeyError, ValueError) as error:
            raise SystemExit(f"zygote: an option is missing or not a number: {error}") from None
        is_complete = options.kind == "python" or (options.program and options.bootstrap)
        if given or len(argv) % 2 or options.kind not in ("python", "node") or not is_complete:
            raise SystemExit(f"zygote: the options are not understood: {' '.join(argv)}")
        return options

    @property
    def needs(self) -> Needs:
        """What an environment must be able to read: the interpreter that it runs on, and more."""
        if self.kind == "node":
            folders = [os.path.dirname(self.program), os.path.dirname(self.bootstrap)]
        else:
            folders = [sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix]
        return Needs(tuple(folders), self.libraries, self.cgroups, self.first_uid)


def take_descriptors(*numbers: int) -> tuple[socket.socket, ...]:
    """The given sockets, and nothing else that was inherited. Keeps 0 to 4 out of use.

    An environment's own descriptors go there, so whatever is received must lie above.
    """
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10) for number in numbers]
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in moved:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own descriptor
    while os.open(os.devnull, os.O_RDWR) < _HIGHEST_RESERVED_FD:
        pass
    return tuple(socket.socket(fileno=number) for number in moved)


def forget_variables() -> None:
    """Leave no trace of the inherited environment, which every forked process could read."""
    os.environ.clear()
    kernel.overwrite(*_range(47))  # from env_start to env_end, see proc(5)


def argument_range() -> tuple[int, int]:
    """Address and size of the command line that /proc shows."""
    return _range(45)  # from arg_start to arg_end


def _range(field: int) -> tuple[int, int]:
    with open("/proc/self/stat") as file:
        numbers = file.read().rpartition(")")[2].split()
    start, end = int(numbers[field]), int(numbers[field + 1])
    return (start, end - start) if 0 < start < end else (start, 0)


def raise_file_limit() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a pidfd per environment


def forget_signals() -> None:
    """Undo whatever treatment of signals was inherited from those who started this process."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as every Python has it
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def signal_pipe() -> int:
    """A descriptor that becomes readable when a child ends or the zygote is asked to."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    # Ctrl-C reaches the whole terminal, but only the launcher decides about the end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return reader


def leave_signals() -> None:
    """Undo `signal_pipe`, in a child."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
