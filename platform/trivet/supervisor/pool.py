"""Pool: all environments on this host, and what they share: slots, uids, zygotes, cells."""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial

import anyio
import structlog

from trivet.core.functions import FunctionVersion
from trivet.runtimes import Runtime
from trivet.settings import Settings
from trivet.store.blobs import Blobs
from trivet.store.logs import LogWriter
from trivet.supervisor.bodies import Body
from trivet.supervisor.counters import Counters
from trivet.supervisor.environments import Environment, Owner, pack_init
from trivet.supervisor.journal import Journal
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
        *,
        freed: Callable[[], None],
    ) -> None:
        """`freed` is called when a start became possible that was not before."""
        self._settings = settings
        self._blobs = blobs
        self._writer = writer
        self._freed = freed
        self.zygotes = {name: Zygote(name) for name in runtimes}
        self._has_cells = {name for name, runtime in runtimes.items() if runtime.kind == "node"}
        self._cells: dict[str, deque[Body]] = {name: deque() for name in self._has_cells}
        self._bodies: set[Body] = set()
        self._uids = iter(range(settings.first_uid, settings.first_uid + 60_000))
        self._free_uids: deque[int] = deque()
        self._living: set[Environment] = set()
        self._emptied: anyio.Event | None = None  # set once nothing lives any more
        self.starting = 0
        self.counters = Counters()
        for name in self.zygotes:
            self.zygotes[name].on_ready = partial(self._zygote_ready, name)

    def __repr__(self) -> str:
        states = [e.state.value for e in self._living]
        counts = ", ".join(f"{states.count(s)} {s}" for s in ("idle", "busy", "starting"))
        return f"<Pool {counts}>"

    def census(self) -> dict[str, int]:
        """How many environments are in each state; a cell is one that has no function yet."""
        states = Counter(environment.state.value for environment in self._living)
        return {**states, "cell": sum(map(len, self._cells.values()))}

    @property
    def free_slots(self) -> int:
        """How many more environments may be started now."""
        slots = self._settings.max_environments - len(self._living)
        return max(0, min(slots, STARTS_AT_ONCE - self.starting))

    @property
    def is_full(self) -> bool:
        return len(self._living) >= self._settings.max_environments

    def runs(self, runtime: str) -> bool:
        return runtime in self.zygotes

    def can_start(self, runtime: str) -> bool:
        """Whether its zygote ever said how far it isolates: an environment is made to that."""
        return self.zygotes[runtime].ready.is_set()

    # ------------------------------------------------------------------ starting

    def start(self, owner: Owner, version: FunctionVersion) -> Environment:
        """Begin an environment of `version`. Raises FileNotFoundError if its code is gone."""
        name = version.runtime
        tree = _open_tree(str(self._blobs.tree(version.code_sha256)))
        cells = self._cells.get(name)
        if cells is None:
            body, furniture = self._new_body(name, tree), None
        else:
            body, furniture = cells.popleft() if cells else self._new_body(name, None), tree
        stream = time.strftime("%Y/%m/%d/", time.gmtime())
        stream += f"[{version.version}]{secrets.token_hex(16)}"
        journal = Journal(
            self._writer, version, stream, body.log_pipe, self._settings.log_bytes_per_s
        )
        walled = self.zygotes[name].isolation & wire.ISOLATION_MOUNT
        root = TASK_ROOT if walled else str(self._blobs.tree(version.code_sha256))
        init = pack_init(version, region=self._settings.region, task_root=root, log_stream=stream)
        environment = Environment(owner, version, body, journal, init)
        self._living.add(environment)
        self.starting += 1
        body.move_in(environment, furniture)
        if cells is not None:
            self._refill(name)
        return environment

    def _new_body(self, runtime: str, tree: int | None) -> Body:
        zygote = self.zygotes[runtime]
        body = Body(zygote, self._lease_uid(zygote), ended=self._on_body_ended, tree=tree)
        self._bodies.add(body)
        return body

    def _zygote_ready(self, runtime: str) -> None:
        if runtime in self._has_cells:
            self._refill(runtime)
        self._freed()

    def _refill(self, runtime: str) -> None:
        cells = self._cells[runtime]
        while len(cells) < self._settings.cells and self.zygotes[runtime].ready.is_set():
            cells.append(self._new_body(runtime, None))

    def _lease_uid(self, zygote: Zygote) -> int:
        if not zygote.isolation & wire.ISOLATION_UID:
            return 0  # the whole tree runs as one user, who cannot become another
        return self._free_uids.popleft() if self._free_uids else next(self._uids)

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
        if body.uid:
            self._free_uids.append(body.uid)
        cells = self._cells.get(body.zygote.runtime)
        if cells is not None and body in cells:
            cells.remove(body)
            log.warning("cell.ended", runtime=body.zygote.runtime)

    def kill_all(self) -> None:
        for body in self._bodies:
            body.kill()

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
