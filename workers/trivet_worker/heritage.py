"""Heritage: what a zygote takes over from its launcher, and what it lets go of."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Callable

from trivet_worker import kernel

# An environment has 0 to 3, and one more while it is being made.
_HIGHEST_RESERVED_FD = 4

# How an option is read, by the type of its field.
_READ: dict[str, Callable[[str], Any]] = {
    "int": int,
    "str": str,
    "tuple[str, ...]": lambda text: tuple(filter(None, text.split(":"))),
}


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
        """SystemExit with one line, if they are not understood."""
        known = {f"--{each.name.replace('_', '-')}": each for each in fields(cls)}
        given = {}
        try:
            for option, value in zip(argv[::2], argv[1::2]):
                given[known[option].name] = _READ[str(known[option].type)](value)
            options = cls(**given)
        except (KeyError, TypeError, ValueError) as error:
            raise SystemExit(f"zygote: an option is missing or not known: {error}") from None
        has_program = bool(options.program and options.bootstrap)
        if len(argv) % 2 or not {"python": True, "node": has_program}.get(options.kind):
            raise SystemExit(f"zygote: the options are not understood: {' '.join(argv)}")
        return options

    @property
    def command(self) -> tuple[str, ...]:
        """What environments go on as, unless they stay this interpreter."""
        return (self.program, self.bootstrap) if self.kind == "node" else ()

    @property
    def folders(self) -> tuple[str, ...]:
        """What an environment must be able to read: the interpreter that it runs on."""
        own = (sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix)
        return tuple(map(os.path.dirname, self.command)) or own


def take_descriptors(*numbers: int) -> tuple[socket.socket, ...]:
    """The given sockets, and nothing else that was inherited. Keeps 0 to 4 out of use.

    An environment's own descriptors go there, so whatever is received must lie above.
    """
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10) for number in numbers]
    first = 3
    for number in moved:  # each is above the one before
        os.closerange(first, number)
        first = number + 1
    kernel.close_from(first)
    while os.open(os.devnull, os.O_RDWR) < _HIGHEST_RESERVED_FD:
        pass
    return tuple(socket.socket(fileno=number) for number in moved)


def forget_variables() -> None:
    """Leave no trace of the inherited environment, which every forked process could read."""
    os.environ.clear()
    kernel.call(*kernel.overwriting(*_range(47)))  # from env_start to env_end, see proc(5)


def argument_range() -> tuple[int, int]:
    """Address and size of the command line that /proc shows."""
    return _range(45)  # from arg_start to arg_end


def _range(field: int) -> tuple[int, int]:
    with open("/proc/self/stat") as file:
        numbers = file.read().rpartition(")")[2].split()
    start, end = int(numbers[field]), int(numbers[field + 1])
    return start, end - start


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
