"""Members: the parts of the tree, each of which knows how it starts, gets ready and ends.

DOWN --start--> STARTING --ready--> READY        from each of these, when it dies:
                   \\                  |            DOWN (to be started again) or GONE
                    `---------------- ENDING <-- asked to end
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from enum import Enum, auto
from pathlib import Path

from trivet.launcher import link as links
from trivet.launcher import processes, turns
from trivet.launcher.embedded import EmbeddedServer, ask, reason
from trivet.launcher.link import Link
from trivet.launcher.processes import Process, ServiceSpec
from trivet.launcher.restarts import HEALTHY_AFTER_S, Restarts
from trivet.launcher.services import ServantSpec
from trivet.launcher.turns import Turn

# A part that is not ready after this long will not be: a Python service needs about one second
# on a quiet machine.
READY_WITHIN_S = 20.0

# A standby is started when its part has settled, and has left the processor to its callers; one
# that ended by itself will hardly do better at once.
STANDBY_AFTER_S = 1.0
STANDBY_AGAIN_S = 60.0

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
        self.process: Process | None = None  # the one that serves, or is to
        self.standby: Process | None = None  # takes over from it
        self.leaving: list[Process] = []  # finish what they have begun
        self.due: float | None = None
        self.standby_due: float | None = None  # when another standby is to be started
        self.restarts = Restarts()
        self.log_path = run_path / f"{_file_name(spec.name)}.log"
        self._log = -1

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.state.name} pid {self.pid}>"

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0

    @property
    def is_alive(self) -> bool:
        return self.process is not None

    @property
    def is_over(self) -> bool:
        """Nothing is left of it, and nothing will come."""
        return self.state is State.GONE and self.standby is None and not self.leaving

    @property
    def living(self) -> list[Process]:
        """All that live."""
        return [p for p in (self.process, self.standby, *self.leaving) if p is not None]

    def start(self) -> Process:
        """Start it, or give its standby the turn. Raises OSError."""
        self.state = State.STARTING
        process, self.standby = self.standby or self._new_process(), None
        self.due = time.monotonic() + READY_WITHIN_S
        self.process = process
        process.take_turn()
        if process.is_ready:
            self.ready()
        return process

    def stand_by(self) -> Process:
        """Start a process that waits until it is needed. Raises OSError."""
        self.standby_due = None
        self.standby = self._new_process()
        return self.standby

    def succeed(self, within_s: float) -> None:
        """The standby serves: let it have the place. Who had it has `within_s` to leave."""
        former = self.process
        self.process, self.standby = self.standby, None
        self.ready()
        if former is not None:
            former.due = time.monotonic() + within_s
            self.leaving.append(former)
            former.signal(signal.SIGHUP)

    def _new_process(self) -> Process:
        """A process of this part, which waits for its turn if its program does."""
        turn = Turn() if self.spec.waits else None
        ends = [] if turn is None else [turn.process_end.fileno()]
        variables = {turns.VARIABLE: str(ends[0])} if ends else {}
        try:
            process = self._started(variables, ends)
        except BaseException:
            if turn is not None:
                turn.close()
            raise
        process.turn = turn
        if turn is not None:
            turn.process_end.close()
        return process

    def _started(self, variables: dict[str, str], ends: list[int]) -> Process:
        return self._process(variables, ends)

    def _process(self, variables: dict[str, str], ends: Sequence[int], *arguments: str) -> Process:
        if self._log < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._log = os.open(self.log_path, flags, 0o640)
        pid = processes.start(
            self.spec, arguments=arguments, variables=variables, descriptors=ends, log=self._log
        )
        return Process(pid, time.monotonic())

    def ready(self) -> None:
        if self.state is State.STARTING or self.state is State.READY:
            self.state = State.READY
            self.due = None
            if self.spec.stands_by and self.standby is None:
                self.standby_due = time.monotonic() + STANDBY_AFTER_S

    def will_not_start(self) -> bool:
        """At `due` while STARTING: look after it, and say whether to give it up."""
        return True

    def died(self) -> None:
        """Its process is reaped: forget it, and reckon when it may start again."""
        lived_s = 0.0
        if self.process is not None:
            if self.state is not State.STARTING:
                lived_s = time.monotonic() - self.process.started_at
            self.process.close()
            self.process = None
        self.due = None
        if self.state is not State.ENDING:
            self.restarts = self.restarts.after_death(lived_s)
        elif lived_s >= HEALTHY_AFTER_S:  # it was asked to, and is not to blame
            self.restarts = Restarts()

    @property
    def delay_s(self) -> float:
        """How long to wait before it is started again. A standby has been started already."""
        return 0.0 if self.standby is not None else self.restarts.delay_s

    def standby_died(self) -> None:
        """It is reaped. Without one a successor takes longer, and that is all."""
        if self.standby is not None:
            self.standby.close()
            self.standby = None
        if self.spec.stands_by:
            self.standby_due = time.monotonic() + STANDBY_AGAIN_S

    def kill_leaving(self, now: float = float("inf")) -> None:
        """Kill those that were to have left by `now` (of the monotonic clock)."""
        for process in self.leaving:
            if process.due is not None and now >= process.due:
                process.due = None
                process.signal(signal.SIGKILL)

    def left(self, process: Process) -> None:
        """One that was leaving is reaped."""
        process.close()
        self.leaving.remove(process)

    def wait_to_start(self, delay_s: float) -> None:
        self.state = State.DOWN
        self.due = time.monotonic() + delay_s

    def gone(self) -> None:
        self.state = State.GONE
        self.due = None

    def dismiss(self) -> None:
        """No standby is wanted any more; it is reaped like any other."""
        self.standby_due = None
        if self.standby is not None:
            self.standby.signal(signal.SIGKILL)

    def end(self, within_s: float) -> None:
        """Ask it to end; after `within_s` it is to be killed."""
        if not self.is_alive:
            return self.gone()
        self.state = State.ENDING
        self.due = time.monotonic() + within_s
        self._ask_to_end()

    def _ask_to_end(self) -> None:
        if self.process is not None:
            self.process.signal(signal.SIGTERM)

    def kill(self) -> None:
        self.due = None
        if self.process is not None:
            self.process.signal(signal.SIGKILL)

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
        for process in self.living:
            process.close()
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

    def start(self) -> Process:
        process = super().start()
        self._late_at = process.started_at + READY_WITHIN_S
        self.due = process.started_at + _ASK_EVERY_S
        return process

    def _started(self, variables: dict[str, str], ends: list[int]) -> Process:
        return self._process(variables, [*ends, self._lock])

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
        self.number = 0  # of its READY message

    @property
    def link(self) -> Link | None:
        return self.process.link if self.process is not None else None

    @property
    def is_joinable(self) -> bool:
        """Whether there is one, and nobody before it still speaks for this part."""
        return self.link is not None and not any(p.link is not None for p in self.leaving)

    def _started(self, variables: dict[str, str], ends: list[int]) -> Process:
        link = Link()
        end = link.service_end.fileno()
        try:
            process = self._process({**variables, links.VARIABLE: str(end)}, [*ends, end])
        except BaseException:
            link.close()
            raise
        link.service_end.close()
        process.link = link
        return process

    def listen(self, process: Process) -> None:
        """Read a link, which has something. Raises EOFError when it was closed."""
        if process.link is None or (number := process.link.receive_ready()) is None:
            return
        process.is_ready = True
        if process is self.process:
            self.number = number
            self.ready()


class Servant(Member):
    """A zygote or the provisioner: it serves the supervisor alone; here it counts once it runs.

    It ends when the supervisor's end of its command link is closed, or ours of its parent pipe,
    and takes with it what it made: a zygote its environments.
    """

    def __init__(self, servant: ServantSpec, run_path: Path) -> None:
        super().__init__(servant.spec, run_path)
        self.without_it = servant.without_it

    @property
    def is_zygote(self) -> bool:
        return self.name.startswith(links.ZYGOTE_OF)

    @property
    def is_with_supervisor(self) -> bool:
        """Whether a supervisor was given its end: it serves that one, and no other."""
        return self.process is not None and self.process.supervisor_end is None

    def start(self) -> Process:
        process = super().start()
        self.ready()
        return process

    def _started(self, variables: dict[str, str], ends: list[int]) -> Process:
        ours, commands = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kept, parent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = ("--commands", str(commands.fileno()), "--parent", str(parent.fileno()))
        try:
            process = self._process(
                variables, [*ends, commands.fileno(), parent.fileno()], *arguments
            )
        except BaseException:
            ours.close()
            kept.close()
            raise
        finally:
            commands.close()
            parent.close()
        process.parent_end = kept.detach()
        process.supervisor_end = ours
        return process

    def hand_to(self, link: Link) -> None:
        """Give the supervisor its end, once. Raises OSError when that is gone."""
        process = self.process
        if process is not None and process.supervisor_end is not None:
            link.send_peer(self.name, process.supervisor_end)
            process.supervisor_end.close()
            process.supervisor_end = None

    def _ask_to_end(self) -> None:
        # Not SIGTERM, which would end a zygote before its environments.
        if self.process is not None:
            self.process.let_go()

    def dismiss(self) -> None:
        if self.standby is not None:
            self.standby.let_go()
        super().dismiss()

    def doubt_standby(self) -> None:
        """Cgroups are about to be cleared. A zygote that tries meanwhile what works here would
        take it that they do not."""
        standby = self.standby
        if self.is_zygote and standby is not None and not standby.is_prepared:
            self.dismiss()
            self.leaving.append(standby)
            self.standby = None


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
        if not (one.is_joinable and other.is_joinable):
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
