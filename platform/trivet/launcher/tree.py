"""Tree: one loop that starts every part, restarts what dies and ends everything in order."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from trivet.errors import TrivetError
from trivet.launcher import announce, kernel, processes
from trivet.launcher.ending import Ending, grace_s, hurry
from trivet.launcher.link import GATEWAY, PROVISIONER, SUPERVISOR
from trivet.launcher.members import Member, Pair, Servant, Server, Service, State
from trivet.launcher.orders import ALL, ZYGOTES, Order, Orders
from trivet.launcher.processes import Process
from trivet.launcher.refusals import EXIT_UNUSABLE, PartFailed, Unusable
from trivet.launcher.restarts import spoken
from trivet.launcher.rolling import Rolling
from trivet.launcher.standbys import Standbys

_ORPHAN_GRACE_S = 2.0

# Before it was ever ready, a part gets this many tries.
_FIRST_TRIES = 3

_TRIM_EVERY_S = 30.0

# How often a rolling restart is looked at beside what wakes the loop: only its deadlines need it.
_ROLLING_LOOK_S = 0.25

_END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Tree:
    """All parts. `run` returns when none is left; whatever happens, it leaves no process."""

    def __init__(
        self,
        *,
        servers: Sequence[Server],
        services: Sequence[Service],
        servants: Sequence[Servant],
        on_ready: Callable[[], None],
        on_isolation: Callable[[int], TrivetError | None] = lambda bits: None,
        clear_environments: Callable[[], None] = lambda: None,
        on_ending: Callable[[], None] = lambda: None,
        run_path: Path | None = None,
    ) -> None:
        """`on_isolation` hears the bits of each READY of the supervisor, and may refuse them.

        `clear_environments` is called when a supervisor died: at once, and again when its zygotes
        are gone and before there can be new environments. `run_path`: where the operator's orders
        are taken; None: nowhere.
        """
        self.servers = servers
        self.services = services
        self.servants = servants
        self._members: list[Member] = [*servers, *services, *servants]
        self._pairs = _pairs(services)
        self._on_ready = on_ready
        self._on_isolation = on_isolation
        self._clear_environments = clear_environments
        self._on_ending = on_ending
        self._selector = selectors.DefaultSelector()
        self._rolling: Rolling | None = None
        self._orders = Orders(run_path, take=self._ordered) if run_path is not None else None
        self._standbys = Standbys(self._members, watch=self._watch)
        self._ending: Ending | None = None
        self._failure: TrivetError | None = None
        self._was_ready = False
        self._has_doomed = False  # a supervisor died, and not all that was its own has ended
        # Children of whoever exec'd us are not ours to end.
        self._strangers: set[int] = set()
        self._trim_at = time.monotonic() + _TRIM_EVERY_S

    def __repr__(self) -> str:
        return f"<Tree {' '.join(f'{m.name}:{m.state.name}' for m in self._members)}>"

    def run(self) -> None:
        """Start everything and stay until it has ended.

        Raises TrivetError when a part does not get ready at the first start.
        """
        self._strangers = processes.children()
        kernel.adopt_orphans()
        with _signals() as wakeups:
            self._selector.register(wakeups, selectors.EVENT_READ, lambda: self._woken(wakeups))
            if self._orders is not None:
                listener = self._orders.socket
                self._selector.register(listener, selectors.EVENT_READ, self._accept_order)
            try:
                for member in self._members:
                    if not self._is_ending:  # one before it could not even be started
                        self._start(member)
                while not all(member.is_over for member in self._members):
                    self._turn()
            finally:
                self._kill_everything()
                self._selector.close()
                for member in self._members:
                    member.close()
                if self._orders is not None:
                    self._orders.close()
        if self._failure is not None:
            raise self._failure

    def member(self, name: str) -> Member | None:
        return next((member for member in self._members if member.name == name), None)

    # ------------------------------------------------------------------- the loop

    def _turn(self) -> None:
        dues = [m.due for m in self._members if m.due is not None and not self._is_held(m)]
        dues += self._standbys.dues()
        if self._rolling is not None:
            dues.append(time.monotonic() + _ROLLING_LOOK_S)
        timeout_s = min([self._trim_at, *dues]) - time.monotonic()
        for key, _ in self._selector.select(max(0.0, timeout_s)):
            # What came before it in this turn may have been its end.
            if key in self._selector.get_map().values():
                key.data()
        now = time.monotonic()
        for member in self._members:
            if member.due is not None and now >= member.due and not self._is_held(member):
                self._attend(member)
        self._standbys.tend(now)
        if now >= self._trim_at:
            self._trim_at = now + _TRIM_EVERY_S
            for member in self._members:
                member.trim_log()
        self._hand_over()
        if self._has_doomed and not any(zygote.state is State.ENDING for zygote in self._zygotes):
            self._has_doomed = False
            self._kill_orphans()
            self._clear_environments()
        if self._rolling is not None and self._rolling.has_ended():
            self._rolling = None
        if self._ending is not None:
            self._ending.go_on()
        elif not self._was_ready and self._all_ready():
            self._was_ready = True
            self._on_ready()

    def _woken(self, wakeups: socket.socket) -> None:
        for number in wakeups.recv(4096):
            if number == signal.SIGINT and self._is_ending:
                hurry(self._members)
            elif number in _END_SIGNALS and not self._is_ending:
                self._on_ending()
                self._begin_end()
        self._reap()

    def _is_held(self, member: Member) -> bool:
        """Whether its start must wait: nothing new may stand among the environments of a dead
        supervisor when they are cleared away."""
        if not self._has_doomed or member.state is not State.DOWN:
            return False
        return member.name == SUPERVISOR or member in self._zygotes

    def _attend(self, member: Member) -> None:
        """Its due time has come: what that means depends on its state."""
        if member.state is State.DOWN:
            self._start(member)
        elif member.state is State.ENDING:
            member.kill()
        elif member.state is State.STARTING and member.will_not_start():
            # A service cannot be ready before the servers it talks to.
            if isinstance(member, Service) and not self._servers_ready():
                member.due = time.monotonic() + 1.0
            elif self._was_ready:
                announce.say_loudly(f"{member.name} did not become ready, and is killed")
                member.kill()
            else:
                self._fail(member, "did not become ready in time")

    def _watch(self, member: Member, process: Process) -> None:
        """Hear what `process` says."""
        if isinstance(member, Service) and (link := process.link) is not None:
            end = link.socket
            hear = partial(self._listen, member, process, end)
            self._selector.register(end, selectors.EVENT_READ, hear)
        if (turn := process.turn) is not None:
            hear = partial(self._hear_turn, process, turn.socket)
            self._selector.register(turn.socket, selectors.EVENT_READ, hear)

    def _unwatch(self, process: Process) -> None:
        ends = [each.socket for each in (process.link, process.turn) if each is not None]
        for end in ends:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(end)

    def _hear_turn(self, process: Process, end: socket.socket) -> None:
        with contextlib.suppress(EOFError):
            process.has_arrived = process.turn is not None and process.turn.hear()
        self._selector.unregister(end)

    def _start(self, member: Member) -> None:
        is_new = member.standby is None
        try:
            process = member.start()
        except OSError as error:
            member.died()
            if self._was_ready or _is_optional(member):
                self._retry(member, f"could not be started ({error})")
            else:
                self._fail(member, f"could not be started ({error})")
            return
        if is_new:
            self._watch(member, process)

    def _listen(self, service: Service, process: Process, end: socket.socket) -> None:
        try:
            service.listen(process)
        except EOFError:
            # It has ended, or leaves: whatever is given to it now would be lost.
            self._selector.unregister(end)
            end.close()
            process.link = None
        else:
            if process is not service.process:
                return
            if service.name == SUPERVISOR and service.state is State.READY:
                self._judge(service.number)

    def _judge(self, bits: int) -> None:
        """Go on with this isolation of environments, or end at once: they run hostile code."""
        refusal = self._on_isolation(bits)
        if refusal is not None and self._failure is None and not self._is_ending:
            self._failure = refusal
            self._begin_end()
            hurry(self._members)

    def _all_ready(self) -> bool:
        waiting = (*self.servers, *self.services)
        return all(member.state is State.READY for member in waiting)

    def _servers_ready(self) -> bool:
        return all(server.state is State.READY for server in self.servers)

    def _hand_over(self) -> None:
        # Who just died, or is about to end, takes nothing; its successor will.
        supervisor = self.member(SUPERVISOR)
        if not isinstance(supervisor, Service) or supervisor.state is State.ENDING:
            return
        if supervisor.link is not None:
            for servant in self.servants:
                with contextlib.suppress(OSError):
                    servant.hand_to(supervisor.link)
        for pair in self._pairs:
            with contextlib.suppress(OSError):
                pair.join()

    # ------------------------------------------------------------ rolling restarts

    def _accept_order(self) -> None:
        if self._orders is not None and (asker := self._orders.accept()) is not None:
            self._selector.register(asker, selectors.EVENT_READ, lambda: self._hear_order(asker))

    def _hear_order(self, asker: socket.socket) -> None:
        self._selector.unregister(asker)
        if self._orders is not None:
            self._orders.hear(asker)

    def _ordered(self, part: str, order: Order) -> None:
        """Begin to restart a part, or all. The supervisor's servants come anew with it."""
        if self._is_ending or not self._was_ready:
            return order.end(f"the platform is {'ending' if self._is_ending else 'starting'}")
        if self._rolling is not None:
            return order.end("another restart is under way")
        members: list[Member] = [s for s in self.services if part in (ALL, s.name)]
        if part == ZYGOTES:
            members += self._zygotes
        elif part == PROVISIONER:
            members += [s for s in self.servants if not s.is_zygote]
        if not members:
            return order.end(f"there is no {part} here")
        self._rolling = Rolling(
            members, self.servants, prepare=self._standbys.prepare, tell=order.tell, ended=order.end
        )

    # ------------------------------------------------------------------ what died

    def _reap(self) -> None:
        by_pid = {p.pid: (member, p) for member in self._members for p in member.living}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in by_pid:
                member, process = by_pid[pid]
                self._unwatch(process)
                if process is member.process:
                    self._died(member, status)
                elif process is member.standby:
                    member.standby_died()
                else:
                    member.left(process)

    def _died(self, member: Member, status: int) -> None:
        was_asked = member.state is State.ENDING
        member.died()
        if member.name == SUPERVISOR:
            self._doom_servants()
        if self._is_ending:
            member.gone()
        elif was_asked:  # a doomed servant, or one that is restarted
            member.wait_to_start(0.0)
        elif _is_optional(member) and os.waitstatus_to_exitcode(status) == EXIT_UNUSABLE:
            self._do_without(member)
        elif self._was_ready or self._may_try_again(member, status):
            was_refusal = os.waitstatus_to_exitcode(status) > 0
            words = member.last_words() if was_refusal else ""
            self._retry(member, f"ended ({processes.how_it_ended(status)})", words)
        else:
            self._fail(member, f"ended ({processes.how_it_ended(status)})", status)

    def _may_try_again(self, member: Member, status: int) -> bool:
        """Whether one that died before all were ready is worth another try."""
        is_final = os.waitstatus_to_exitcode(status) == EXIT_UNUSABLE or isinstance(member, Server)
        has_tries = member.restarts.count < _FIRST_TRIES or _is_optional(member)
        return not is_final and has_tries

    def _retry(self, member: Member, what: str, words: str = "") -> None:
        delay_s = member.delay_s
        member.wait_to_start(delay_s)
        said = f"; it said: {words}" if words else ""
        lost = f"; {member.without_it}" if isinstance(member, Servant) and delay_s else ""
        announce.say_loudly(f"{member.name} {what}, {spoken(delay_s)}{lost}{said}")

    def _do_without(self, member: Member) -> None:
        """It cannot work on this machine, as it says: another try would not help."""
        member.state = State.DOWN
        lost = member.without_it if isinstance(member, Servant) else ""
        announce.say_loudly(f"there is no {member.name}: {member.last_words()}; {lost}")

    def _doom_servants(self) -> None:
        """The environments of a dead supervisor end, and all that served it with them."""
        self._has_doomed = True
        for servant in self.servants:
            servant.doubt_standby()
            if servant.is_with_supervisor:
                servant.end(grace_s(servant))
        # Their zygotes kill them, but a frozen one would not die before it is thawed.
        self._clear_environments()

    @property
    def _zygotes(self) -> list[Servant]:
        return [servant for servant in self.servants if servant.is_zygote]

    def _fail(self, member: Member, what: str, status: int | None = None) -> None:
        if self._failure is not None:
            return
        words = member.last_words()
        where = f"its whole output: {member.log_path}"
        if isinstance(member, Server) and member.lane == "durable" and status is not None:
            self._failure = Unusable(
                f"the durable data cannot be used: {words}",
                hint=f"mend or move it, nothing here was changed; {where}",
            )
        elif status is not None and os.waitstatus_to_exitcode(status) == EXIT_UNUSABLE:
            self._failure = Unusable(words or f"{member.name} {what}", hint=where)
        else:
            said = f": {words}" if words else ""
            message = f"the platform cannot start: {member.name} {what}{said}"
            self._failure = PartFailed(message, hint=where, lines=member.tail().splitlines()[-10:])
        self._begin_end()
        hurry(self._members)

    # -------------------------------------------------------------------- the end

    @property
    def _is_ending(self) -> bool:
        return self._ending is not None

    def _begin_end(self) -> None:
        self._ending = Ending(self.servers, self.services, self.servants)
        if self._rolling is not None:
            self._rolling.give_up("the platform is ending")
            self._rolling = None
        self._standbys.end()
        for member in self._members:
            if not member.is_alive:
                member.gone()
        self._ending.go_on()

    def _kill_everything(self) -> None:
        """Members, if the loop was left early; then whatever they left behind."""
        for member in self._members:
            for process in member.living:
                process.signal(signal.SIGKILL)
        deadline = time.monotonic() + _ORPHAN_GRACE_S
        while (left := processes.children() - self._strangers) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass

    def _kill_orphans(self) -> None:
        """Environments that a killed zygote could not end. While their supervisor lives they
        serve on without a zygote; with it gone, nobody answers for them."""
        ours = {process.pid for member in self._members for process in member.living}
        for pid in processes.children() - self._strangers - ours:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _is_optional(member: Member) -> bool:
    return isinstance(member, Servant) and bool(member.without_it)


def _pairs(services: Sequence[Service]) -> list[Pair]:
    """Gateway and supervisor talk to each other directly."""
    by_name = {service.name: service for service in services}
    if GATEWAY in by_name and SUPERVISOR in by_name:
        return [Pair(by_name[SUPERVISOR], by_name[GATEWAY])]
    return []


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """Signals as bytes of a socket: nothing runs in a handler. They stay deaf afterwards, so
    that an impatient Ctrl-C cannot cut the last clean-up short."""
    wakeups, end = socket.socketpair()
    for side in (wakeups, end):
        side.setblocking(False)
    signal.set_wakeup_fd(end.fileno(), warn_on_full_buffer=False)
    for number in (*_END_SIGNALS, signal.SIGCHLD):
        # Under nohup a hang-up is to be ignored.
        if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGCHLD:
            signal.signal(number, lambda *_: None)
    try:
        yield wakeups
    finally:
        signal.set_wakeup_fd(-1)
        wakeups.close()
        end.close()
