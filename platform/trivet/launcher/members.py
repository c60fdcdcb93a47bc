"""Members: the parts of the tree, each of which knows how it starts, gets ready and ends.

DOWN --start--> STARTING --ready--> READY        from each of these, when it dies:
                   \\                  |            DOWN (to be started again) or GONE
                    `---------------- ENDING <-- asked to end
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from enum import Enum, auto
from pathlib import Path

from trivet.launcher import link as links
from trivet.launcher import processes
from trivet.launcher.embedded import EmbeddedServer, ask, reason
from trivet.launcher.link import Link
from trivet.launcher.processes import ServiceSpec
from trivet.launcher.restarts import Restarts
from trivet.launcher.services import ServantSpec

# A part that is not ready after this long will not be: a Python service needs about one second
# on a quiet machine.
READY_WITHIN_S = 20.0

# A server start takes 12 to 90 ms.
_ASK_EVERY_S = 0.01

# What is kept of a part's output, for its last words.
_MAX_LOG_BYTES = 4_000_000
_TAIL_BYTES = 4_000


class State(Enum):
    DOWN = auto()
    STARTING = auto()
    READY = auto()
    ENDING = auto()
    GONE = auto()


class Member:
    """A part of the tree. `due` is the instant at which it next wants attention."""

    def __init__(self, spec: ServiceSpec, run_path: Path) -> None:
        self.spec = spec
        self.state = State.DOWN
        self.pid = 0
        self.due: float | None = None
        self.restarts = Restarts()
        self.log_path = run_path / f"{_file_name(spec.name)}.log"
        self._log = -1
        self._started_at = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.state.name} pid {self.pid}>"

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def is_alive(self) -> bool:
        return self.pid > 0

    def start(self) -> None:
        """Start the process. Raises OSError."""
        if self._log < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._log = os.open(self.log_path, flags, 0o640)
        self._started_at = time.monotonic()
        self.state = State.STARTING
        self.due = self._started_at + READY_WITHIN_S
        self.pid = self._start()

    def _start(self) -> int:
        return processes.start(self.spec, log=self._log)

    def ready(self) -> None:
        if self.state is State.STARTING:
            self.state = State.READY
            self.due = None

    def will_not_start(self) -> bool:
        """At `due` while STARTING: look after it, and say whether to give it up."""
        return True

    def died(self) -> None:
        """Its process is reaped: forget it, and reckon when it may start again."""
        lived_s = time.monotonic() - self._started_at
        self.pid = 0
        self.due = None
        self.restarts = self.restarts.after_death(lived_s)

    def wait_to_start(self, delay_s: float) -> None:
        self.state = State.DOWN
        self.due = time.monotonic() + delay_s

    def gone(self) -> None:
        self.state = State.GONE
        self.due = None

    def end(self, within_s: float) -> None:
        """Ask it to end; after `within_s` it is to be killed."""
        if not self.is_alive:
            return self.gone()
        self.state = State.ENDING
        self.due = time.monotonic() + within_s
        self._ask_to_end()

    def _ask_to_end(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self.due = None
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # The pid is ours until it is reaped, so it cannot name another process.
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def last_words(self) -> str:
        """The last line that it wrote, or nothing."""
        lines = self.tail().splitlines()
        return lines[-1].strip() if lines else ""

    def tail(self) -> str:
        """The end of what it wrote, without blank lines."""
        if self._log < 0:
            return ""
        size = os.fstat(self._log).st_size
        text = os.pread(self._log, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace")
        return "\n".join(line for line in text.splitlines() if line.strip())

    def trim_log(self) -> None:
        if self._log >= 0 and os.fstat(self._log).st_size > _MAX_LOG_BYTES:
            os.ftruncate(self._log, 0)

    def close(self) -> None:
        if self._log >= 0:
            os.close(self._log)
            self._log = -1


class Server(Member):
    """An embedded Valkey: ready when it answers."""

    def __init__(self, server: EmbeddedServer, run_path: Path, lock: int) -> None:
        super().__init__(server.spec, run_path)
        self.lane = server.lane
        self.version = ""
        self.log_path = run_path / f"{server.lane}.log"
        self._socket_path = server.socket_path
        self._lock = lock
        self._late_at = 0.0

    def _start(self) -> int:
        self._late_at = self._started_at + READY_WITHIN_S
        self.due = self._started_at + _ASK_EVERY_S
        return processes.start(self.spec, descriptors=(self._lock,), log=self._log)

    def will_not_start(self) -> bool:
        answer = ask(self._socket_path)
        now = time.monotonic()
        if answer.is_ready:
            self.version = answer.version
            self.ready()
            return False
        if answer.is_loading:  # as long as it takes: giving up would start it over
            self._late_at = now + READY_WITHIN_S
        self.due = now + _ASK_EVERY_S
        return now > self._late_at

    def last_words(self) -> str:
        return reason(self.tail())


class Service(Member):
    """A service of ours: ready when it says so on its link."""

    def __init__(self, spec: ServiceSpec, run_path: Path) -> None:
        super().__init__(spec, run_path)
        self.link: Link | None = None
        self.number = 0  # of its READY message

    def _start(self) -> int:
        self.link = Link()
        end = self.link.service_end.fileno()
        try:
            return processes.start(
                self.spec,
                variables={links.VARIABLE: str(end)},
                descriptors=(end,),
                log=self._log,
            )
        finally:
            self.link.service_end.close()

    def listen(self) -> None:
        """Read its link, which has something. Raises EOFError when it was closed."""
        if self.link is not None and (number := self.link.receive_ready()) is not None:
            self.number = number
            self.ready()

    def died(self) -> None:
        super().died()
        if self.link is not None:
            self.link.close()
            self.link = None


class Servant(Member):
    """A zygote or the provisioner: it serves the supervisor alone; here it counts once it runs.

    It ends when the supervisor's end of its command link is closed, or ours of its parent pipe,
    and takes with it what it made: a zygote its environments.
    """

    def __init__(self, servant: ServantSpec, run_path: Path) -> None:
        super().__init__(servant.spec, run_path)
        self.without_it = servant.without_it
        self.supervisor_end: socket.socket | None = None  # until the supervisor has it
        self._parent_end = -1

    @property
    def is_zygote(self) -> bool:
        return self.name.startswith(links.ZYGOTE_OF)

    def _start(self) -> int:
        ours, commands = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kept, parent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._parent_end = kept.detach()
        self.supervisor_end = ours
        try:
            pid = processes.start(
                self.spec,
                arguments=("--commands", str(commands.fileno()), "--parent", str(parent.fileno())),
                descriptors=(commands.fileno(), parent.fileno()),
                log=self._log,
            )
        finally:
            commands.close()
            parent.close()
        self.ready()
        return pid

    def hand_to(self, link: Link) -> None:
        """Give the supervisor its end, once. Raises OSError when that is gone."""
        if self.supervisor_end is not None and self.is_alive:
            link.send_peer(self.name, self.supervisor_end)
            self.supervisor_end.close()
            self.supervisor_end = None

    def _ask_to_end(self) -> None:
        # Not SIGTERM, which would end a zygote before its environments.
        self._let_go()

    def died(self) -> None:
        super().died()
        self._let_go()

    def _let_go(self) -> None:
        if self._parent_end >= 0:
            os.close(self._parent_end)
            self._parent_end = -1
        if self.supervisor_end is not None:
            self.supervisor_end.close()
            self.supervisor_end = None


class Pair:
    """The direct link of two services, made anew whenever one of them was."""

    def __init__(self, one: Service, other: Service) -> None:
        self._services = (one, other)
        self._joined: tuple[Link, Link] | None = None  # by these, when both last had an end

    def __repr__(self) -> str:
        one, other = self._services
        return f"<Pair {one.name} {other.name} {'joined' if self._joined else 'apart'}>"

    def join(self) -> None:
        """Give each its end, once for any two that live. Raises OSError when one is gone."""
        one, other = self._services
        if one.link is None or other.link is None or self._joined == (one.link, other.link):
            return
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            one.link.send_peer(other.name, ends[0])
            other.link.send_peer(one.name, ends[1])
            self._joined = (one.link, other.link)
        finally:
            for end in ends:
                end.close()


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
