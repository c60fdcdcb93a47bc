"""Pool: all environments on this host, and what they share: places, zygotes, cells and spares."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial

import anyio
import structlog

from trivet.core.functions import FunctionVersion
from trivet.runtimes import CUSTOM_NAMES, Runtime
from trivet.settings import Settings
from trivet.store.blobs import Blobs
from trivet.store.logs import LogWriter
from trivet.supervisor.bodies import Body
from trivet.supervisor.briefing import Briefing
from trivet.supervisor.counters import Counters
from trivet.supervisor.environments import Environment, Owner
from trivet.supervisor.frost import Frost
from trivet.supervisor.journal import Journal
from trivet.supervisor.quarters import Premises
from trivet.supervisor.spares import Spares
from trivet.supervisor.zygotes import Zygote
from trivet_worker import wire

log = structlog.get_logger()

# Starts at once: enough to hide a slow import behind others, few enough that a thundering herd
# does not starve the environments that already answer.
STARTS_AT_ONCE = max(16, 8 * (os.cpu_count() or 1))
TASK_ROOT = "/var/task"


class Pool:
    """Starts environments and accounts for them; which and when is decided by the fleets."""

    def __init__(
        self,
        settings: Settings,
        runtimes: Mapping[str, Runtime],
        blobs: Blobs,
        writer: LogWriter,
        premises: Premises,
        briefing: Briefing,
        *,
        freed: Callable[[], None],
    ) -> None:
        """`freed` is called when a start became possible that was not before."""
        self._settings = settings
        self._blobs = blobs
        self._writer = writer
        self._premises = premises
        self._briefing = briefing
        self._freed = freed
        self.zygotes = {name: Zygote(name) for name in runtimes}
        # Our own interpreter, the first of them, starts what functions bring along.
        self._custom = next((n for n, runtime in runtimes.items() if runtime.kind == "python"), "")
        self._has_cells = {name for name, runtime in runtimes.items() if runtime.kind == "node"}
        self._cells: dict[str, deque[Body]] = {name: deque() for name in self._has_cells}
        self._bodies: set[Body] = set()
        self._living: set[Environment] = set()
        self._emptied: anyio.Event | None = None  # set once nothing lives any more
        self.starting = 0
        self._is_ending = False
        self.counters = Counters()
        self._frost = Frost(settings.freeze_after_ms / 1000)
        self._spares = Spares(settings.spares, asyncio.get_running_loop(), self._make_spare)
        for name in self.zygotes:
            self.zygotes[name].on_ready = partial(self._zygote_ready, name)
        # Called when a zygote said how far it isolates.
        self.on_isolation: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        states = [e.state.value for e in self._living]
        counts = ", ".join(f"{states.count(s)} {s}" for s in ("idle", "frozen", "busy", "starting"))
        return f"<Pool {counts}>"

    def census(self) -> dict[str, int]:
        """How many environments are in each state; a cell is one that has no function yet, and a
        spare one that has run nothing of its function yet."""
        states = Counter(environment.state.value for environment in self._living)
        cells = sum(map(len, self._cells.values()))
        return {**states, "cell": cells, "spare": len(self._spares)}

    @property
    def free_slots(self) -> int:
        """How many more environments may be started now. Spares give way to them."""
        slots = self._settings.max_environments - len(self._living)
        return max(0, min(slots, STARTS_AT_ONCE - self.starting))

    @property
    def is_full(self) -> bool:
        return len(self._living) >= self._settings.max_environments

    def runs(self, runtime: str) -> bool:
        return self._zygote_name(runtime) in self.zygotes

    def can_start(self, runtime: str) -> bool:
        """Whether its zygote ever said how far it isolates: an environment is made to that."""
        return self.zygotes[self._zygote_name(runtime)].ready.is_set()

    def _zygote_name(self, runtime: str) -> str:
        return self._custom if runtime in CUSTOM_NAMES else runtime

    # ------------------------------------------------------------------ starting

    def start(self, owner: Owner, version: FunctionVersion) -> Environment:
        """Begin an environment of `version`. Raises OSError if its code is gone, say."""
        name = self._zygote_name(version.runtime)
        body, furniture = self._body_for(name, version)
        stream = time.strftime("%Y/%m/%d/", time.gmtime())
        stream += f"[{version.version}]{secrets.token_hex(16)}"
        journal = Journal(
            self._writer, version, stream, body.log_pipe, self._settings.log_bytes_per_s
        )
        isolation = self.zygotes[name].isolation
        is_walled = isolation & wire.ISOLATION_MOUNT
        root = TASK_ROOT if is_walled else str(self._blobs.tree(version.code_sha256))
        init = self._briefing.pack(version, isolation=isolation, task_root=root, log_stream=stream)
        environment = Environment(owner, version, body, journal, init, self._frost)
        self._living.add(environment)
        self.starting += 1
        body.move_in(environment, version, furniture)
        if name in self._has_cells:
            self._refill(name)
        return environment

    def _body_for(self, zygote: str, version: FunctionVersion) -> tuple[Body, int | None]:
        """A body for a new tenant, and the code that is to be moved into it then."""
        cells = self._cells.get(zygote)
        spare = self._spares.take(version.key)
        if spare is not None:
            return spare, None
        if len(self._living) + len(self._spares) >= self._settings.max_environments:
            self._give_up(self._spares.give_up())
        tree = _open_tree(str(self._blobs.tree(version.code_sha256)))
        if cells is None:
            return self._new_body(zygote, version, tree), None
        if cells and self._premises.suit_anyone(version):
            return cells.popleft(), tree
        try:
            return self._new_body(zygote, version, None), tree
        except OSError:
            os.close(tree)
            raise

    def _new_body(self, zygote: str, version: FunctionVersion | None, tree: int | None) -> Body:
        body = Body(self.zygotes[zygote], self._premises, version, tree, ended=self._on_body_ended)
        self._bodies.add(body)
        return body

    def _zygote_ready(self, runtime: str) -> None:
        if runtime in self._has_cells:
            self._refill(runtime)
        self.on_isolation()
        self._freed()

    def _refill(self, runtime: str) -> None:
        cells = self._cells[runtime]
        if self._is_ending:
            return
        while len(cells) < self._settings.cells and self.zygotes[runtime].ready.is_set():
            try:
                cells.append(self._new_body(runtime, None, None))
            except OSError as error:
                log.error("cell.refused", runtime=runtime, error=str(error))
                return

    # ------------------------------------------------------------------ spares

    def used(self, version: FunctionVersion) -> None:
        """`version` is in use, and an environment of it fell idle: the next start may be near."""
        if self._spares.lacks(version.key) and version.runtime not in self._has_cells:
            self._spares.want(version)

    def unused(self, version: FunctionVersion) -> None:
        """No start of `version` is to be expected any more."""
        for body in self._spares.forget(version.key):
            self._give_up(body)

    def _make_spare(self, version: FunctionVersion) -> Body | None:
        """None when the host has something better to do with the place, or with the time."""
        zygote = self.zygotes[self._zygote_name(version.runtime)]
        held = len(self._living) + len(self._spares)
        if self._is_ending:
            return None
        if self.starting or held >= self._settings.max_environments or not zygote.is_up:
            return None
        try:
            tree = _open_tree(str(self._blobs.tree(version.code_sha256)))
            return self._new_body(zygote.runtime, version, tree)
        except OSError as error:
            log.warning("spare.refused", function=version.function, error=str(error))
            return None

    def _give_up(self, spare: Body | None) -> None:
        if spare is not None:
            spare.kill()

    # ------------------------------------------------------------------ ending

    def initialised(self) -> None:
        """A start is over, well or not: another may begin."""
        self.starting -= 1
        self._freed()

    def release(self, environment: Environment) -> None:
        """The environment is being killed: its slot is free."""
        if environment in self._living:
            self._living.remove(environment)
            self._freed()

    def _on_body_ended(self, body: Body) -> None:
        self._bodies.discard(body)
        if not self._bodies and self._emptied is not None:
            self._emptied.set()
        if self._spares.discard(body):
            log.warning("spare.ended", runtime=body.zygote.runtime)
        cells = self._cells.get(body.zygote.runtime)
        if cells is not None and body in cells:
            cells.remove(body)
            log.warning("cell.ended", runtime=body.zygote.runtime)

    def kill_all(self) -> None:
        """End everything; nothing is kept ready any more."""
        self._is_ending = True
        # By its environment where a body has one: else it might be frozen while it dies.
        for environment in list(self._living):
            environment.kill()
        for body in list(self._bodies):
            body.kill()

    def thaw_all(self) -> None:
        """Let what is frozen be ended by others."""
        for body in self._bodies:
            body.thaw()

    async def emptied(self) -> None:
        """Returns when every process is gone."""
        if self._bodies:
            self._emptied = anyio.Event()
            await self._emptied.wait()

    # ------------------------------------------------------------------ zygotes

    async def ready(self) -> None:
        """Returns when every zygote has said that it serves."""
        for zygote in self.zygotes.values():
            await zygote.ready.wait()

    @property
    def isolation(self) -> int:
        """The wire.ISOLATION_* bits that hold for every runtime."""
        bits = -1
        for zygote in self.zygotes.values():
            bits &= zygote.isolation
        return max(0, bits)


def _open_tree(path: str) -> int:
    """A descriptor of a code folder: it names the folder and grants nothing."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
