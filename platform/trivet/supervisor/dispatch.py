"""Dispatch: events from the lanes find the fleet of their function version."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

import anyio
import anyio.abc
import structlog

from trivet.bus import frames
from trivet.core import scaling
from trivet.core.functions import Function, FunctionVersion
from trivet.settings import Settings
from trivet.store.functions import FunctionStore
from trivet.supervisor.deadlines import Deadlines
from trivet.supervisor.fleet import Fleet
from trivet.supervisor.policies import Policies
from trivet.supervisor.pool import Pool
from trivet.supervisor.settlement import Settlement

log = structlog.get_logger()

SWEEP_S = 1.0
# A function without a slot waits this long before it takes one from a busy fleet: two hot
# functions on one slot would otherwise start cold for every call.
PATIENCE_S = 0.1


class Dispatcher:
    """Implements `consume.Taker` and `dequeue.Taker`."""

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        store: FunctionStore,
        deadlines: Deadlines,
        policies: Policies,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._settings = settings
        self._policies = policies
        self._pool = pool
        self._store = store
        self._deadlines = deadlines
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._fleets: dict[tuple[str, str], Fleet] = {}
        self._by_function: dict[str, list[Fleet]] = {}
        # Events whose version is being fetched.
        self._loading: dict[tuple[str, str], list[frames.Delivery]] = {}
        # Functions whose record was changed since it was read here, and which change that was.
        self._changes: dict[str, int] = {}
        self._count_changes = itertools.count(1)
        self._finished: anyio.Event | None = None  # set once nothing runs or waits any more
        self._is_starved = False  # some fleet wants a slot and has none
        # Functions without a fleet whose events are not read for want of a slot, and since when.
        self._unserved: dict[str, float] = {}
        # Given by the composition root, since lanes and dispatcher need each other.
        self.settlement: Settlement

    def __repr__(self) -> str:
        return f"<Dispatcher {len(self._fleets)} fleets, {len(self._loading)} loading>"

    # ------------------------------------------------------------- the lanes' Taker

    def room(self, function: str) -> int:
        if self.settlement.is_behind:
            return 0
        fleets = self._by_function.get(function)
        if not fleets:
            # Unknown here: take as many as could start, and learn its version from the first.
            return max(1, min(self._pool.free_slots, 4)) if not self._is_loading(function) else 0
        demand = fleets[-1].demand(loading=self._count_loading(function))
        free = self._pool.free_slots
        if free == 0 and not demand.busy and self._could_make_room(fleets):
            free = 1
        room = scaling.room(demand, free_slots=free)
        if room == 0:
            self._is_starved = True
        return room

    def take(self, deliveries: list[frames.Delivery]) -> None:
        touched = set()
        now_ms = int(time.time() * 1000)
        for delivery in deliveries:
            if delivery.is_expired(now_ms):
                self.settlement.throttled(delivery)
                continue
            fleet = self._fleet_of(delivery)
            if fleet is None:
                self._load((delivery.function, delivery.version_key), delivery)
            elif not self.settlement.refused(delivery):
                fleet.queue.append(delivery)
                touched.add(fleet)
        for fleet in touched:
            self._assign(fleet)

    def _fleet_of(self, delivery: frames.Delivery) -> Fleet | None:
        if delivery.version_key:
            return self._fleets.get((delivery.function, delivery.version_key))
        # An asynchronous event runs what is current when it runs, not when it was sent.
        if delivery.function in self._changes:
            return None  # what that is remains to be seen
        newest = self._by_function.get(delivery.function, ())
        return newest[-1] if newest and not newest[-1].is_superseded else None

    def durable_room(self, function: str, backlog: int) -> int:
        """Strict: what an environment is there for, or will be started for, and nothing ahead."""
        fleets = self._by_function.get(function)
        free = self._pool.free_slots
        if not fleets:
            return self._first_room(function, free)
        demand = fleets[-1].demand(loading=self._count_loading(function))
        if free == 0 and not demand.busy and self._could_make_room(fleets):
            free = 1
        room = scaling.strict_room(demand, free_slots=free, backlog=backlog)
        if room == 0:
            self._is_starved = True
        most = self._policies.most_at_once(function)
        if most:  # with none allowed, events are taken to be ended
            room = min(room, max(0, most - demand.busy - demand.waiting))
        return room

    def _first_room(self, function: str, free: int) -> int:
        """For a function that nothing is here of: the first events tell what it is like."""
        if self._is_loading(function):
            return 0
        if free == 0 and self._could_make_room([]):
            free = 1
        if free == 0:
            self._is_starved = True
            self._unserved.setdefault(function, self._loop.time())
        else:
            self._unserved.pop(function, None)
        return min(free, 4)

    def is_idle(self, function: str) -> bool:
        return not self._by_function.get(function) and not self._is_loading(function)

    def changed(self, function: str) -> None:
        self._changes[function] = next(self._count_changes)
        self._tasks.start_soon(self._retire_changed, function)

    # ------------------------------------------------------------------ fleets

    def _is_loading(self, function: str) -> bool:
        return any(name == function for name, _ in self._loading)

    def _count_loading(self, function: str) -> int:
        return sum(len(waiting) for (name, _), waiting in self._loading.items() if name == function)

    def _load(self, key: tuple[str, str], delivery: frames.Delivery) -> None:
        waiting = self._loading.get(key)
        if waiting is None:
            self._loading[key] = [delivery]
            self._tasks.start_soon(self._begin_fleet, key)
        else:
            waiting.append(delivery)

    async def _begin_fleet(self, key: tuple[str, str]) -> None:
        function, version_key = key
        version: FunctionVersion | None = None
        current: Function | None = None
        message = "The function's version is gone."
        is_gone = False
        try:
            current = await self._current(function)
            if current is not None and version_key in ("", current.latest.key):
                # An asynchronous event, which names none, runs what is current when it runs.
                version = current.latest
            elif version_key:
                version = await self._store.version(function, version_key)
            is_gone = version is None
        except Exception as error:
            # Whatever the durable server says, the callers must hear of it.
            log.error("version.unreadable", function=function, error=str(error))
            message = "The function's version could not be read."
        waiting = self._loading.pop(key)
        if version is not None and not self._pool.runs(version.runtime):
            message = f"The runtime {version.runtime} is not on this machine any more."
            version = None
        if version is None:
            for delivery in waiting:
                if is_gone:
                    self.settlement.dropped(delivery, message)
                else:
                    self.settlement.failed(delivery, message)
            self._rested(function)
            return
        if current is not None:
            self._policies.note(current)
        is_current = current is not None and current.latest.key == version.key
        fleet = self._fleet(version, is_current=is_current)
        fleet.queue.extend(d for d in waiting if not self.settlement.refused(d))
        self._assign(fleet)
        self.settlement.read(function)

    async def _current(self, function: str) -> Function | None:
        """Its record, as of now or of the last change that was told of. Raises Unavailable."""
        while True:
            seen = self._changes.get(function)
            current = await self._store.fetch(function)
            if self._changes.get(function) == seen:
                self._changes.pop(function, None)
                return current

    def _fleet(self, version: FunctionVersion, *, is_current: bool) -> Fleet:
        """The fleet of `version`, made if need be. Only the current one keeps anything warm."""
        key = (version.function, version.key)
        fleet = self._fleets.get(key)
        if fleet is None:
            fleet = self._fleets[key] = Fleet(
                version,
                self._pool,
                self._deadlines,
                init_limit_ms=self._settings.init_limit_ms,
                settlement=self.settlement,
                rested=self._rested,
                gives_way=self._gives_way,
            )
            self._by_function.setdefault(version.function, []).insert(0, fleet)
        if is_current:
            self._make_current(fleet)
        else:
            fleet.supersede()
        return fleet

    def _make_current(self, fleet: Fleet) -> None:
        """`fleet` is what the function runs now: the last of its fleets, and the only warm one."""
        fleets = self._by_function[fleet.version.function]
        fleets.remove(fleet)
        for older in fleets:
            older.supersede()
        fleets.append(fleet)
        fleet.is_superseded = False

    def _assign(self, fleet: Fleet) -> None:
        unmet = fleet.assign()
        if fleet.size or not fleet.queue:
            fleet.hungry_since = None
        elif fleet.hungry_since is None:
            fleet.hungry_since = self._loop.time()
        if unmet:
            self._is_starved = True
            if self._pool.is_full:
                self._make_room(fleet)

    def _make_room(self, hungry: Fleet) -> None:
        """The host is full: the environment idle longest elsewhere gives way."""
        oldest: Fleet | None = None
        for fleet in self._fleets.values():
            if fleet is hungry or not fleet.idle:
                continue
            if oldest is None or fleet.idle[0].idle_since < oldest.idle[0].idle_since:
                oldest = fleet
        if oldest is not None:
            oldest.retire(idle_before=oldest.idle[0].idle_since + 1e-9)

    def _gives_way(self, fleet: Fleet) -> bool:
        """A function with work and no slot gets one from the fleet that holds the most."""
        if not (self._is_starved and self._pool.is_full):
            return False
        waits = [f.hungry_since for f in self._hungry() if f.hungry_since is not None]
        longest = min([*waits, *self._unserved.values()], default=None)
        if longest is None or longest >= self._loop.time() - PATIENCE_S:
            return False
        # Of equals the one that asks: with one slot each, they take turns.
        return fleet.size >= max(f.size for f in self._fleets.values())

    def _hungry(self) -> list[Fleet]:
        return [f for f in self._fleets.values() if f.queue and not f.size]

    def _could_make_room(self, hungry: list[Fleet]) -> bool:
        """Whether the host is full, and an idle environment of another function could give way."""
        others = (fleet for fleet in self._fleets.values() if fleet not in hungry)
        return self._pool.is_full and any(fleet.idle for fleet in others)

    def _rested(self, function: str) -> None:
        if self._finished is not None and not self.is_busy:
            self._finished.set()
        self.settlement.read(function)
        # An idle environment of one function is a slot that another may take over.
        if self._is_starved and len(self._by_function) + len(self._unserved) > 1:
            self.slot_freed()

    def slot_freed(self) -> None:
        """A start became possible: those who wanted one go first, in turn."""
        if self._is_starved:
            self._is_starved = False
            self._loop.call_soon(self._feed)

    def _feed(self) -> None:
        # Those with the fewest slots first, or the first function would always win.
        waiting = [f for f in self._fleets.values() if f.queue]
        for fleet in sorted(waiting, key=lambda f: (f.size, f.hungry_since or float("inf"))):
            self._assign(fleet)
        for function in [*self._unserved, *self._by_function]:
            self.settlement.read(function)

    async def _retire_changed(self, function: str) -> None:
        """A function was updated or deleted: what is warm of its old version goes."""
        if function not in self._by_function and not self._is_loading(function):
            self._changes.pop(function, None)
            return
        try:
            current: Function | None = await self._current(function)
        except Exception as error:
            # Not urgent: the next event brings the new version's key along, or has it read again.
            log.warning("function.unreadable", function=function, error=str(error))
            return
        if current is not None:
            self._policies.note(current)
        for fleet in list(self._by_function.get(function, [])):
            if current is not None and fleet.version.key == current.latest.key:
                self._make_current(fleet)
            else:
                fleet.supersede()

    # ------------------------------------------------------------------ what keeps it going

    async def sweep(self, left: Callable[[], None]) -> None:
        """Retire what idled too long; `left` lets go of streams that nobody needs here."""
        while True:
            await anyio.sleep(SWEEP_S)
            idle_before = self._loop.time() - self._settings.keep_warm_ms / 1000
            now_ms = int(time.time() * 1000)
            for key, fleet in list(self._fleets.items()):
                retired = fleet.retire(idle_before=idle_before)
                if retired:
                    log.info("environments.retired", function=key[0], count=retired)
                fleet.fail_expired(now_ms)
                if fleet.is_busy:
                    self.settlement.read(key[0])  # and so may be what runs
                if fleet.queue:
                    self._assign(fleet)  # what it waits for may take longer than was to be expected
                if fleet.is_empty:
                    fleet.close()
                    del self._fleets[key]
                    self._by_function[key[0]].remove(fleet)
                    if not self._by_function[key[0]]:
                        del self._by_function[key[0]]
                        self._policies.forget(key[0])
                        self._changes.pop(key[0], None)
            left()
            self._unserved.clear()  # whoever still has events asks again

    @property
    def is_busy(self) -> bool:
        return bool(self._loading) or any(f.is_busy for f in self._fleets.values())

    async def finished(self) -> None:
        """Returns once nothing runs or waits here."""
        if self.is_busy:
            self._finished = anyio.Event()
            await self._finished.wait()
