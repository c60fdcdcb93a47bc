"""Slots: what an environment holds of this host while it lives: a uid, and the cgroup of that name.

A cgroup takes milliseconds to make and to remove. So both happen in threads: a few are made ahead
of need, and a uid is used again once nothing that ran as it is left.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog

from trivet.supervisor.cgroups import Cgroup, CgroupTree
from trivet_worker.wire import MOST_UIDS

log = structlog.get_logger()

STOCK = 2 * (os.cpu_count() or 1) + 4
# A process that was killed leaves its cgroup when the kernel has taken it apart.
RETRY_S = 0.005
LONGEST_RETRY_S = 1.0


T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    uid: int  # 0: the platform's own, where nobody can become another
    cgroup: Cgroup | None = None


Got = Callable[[Slot | None], None]


class Slots:
    """The slots of this host."""

    def __init__(self, first_uid: int, tree: CgroupTree | None) -> None:
        self._tree = tree
        self._loop = asyncio.get_running_loop()
        self._uids = deque(range(first_uid, first_uid + MOST_UIDS))
        self._stock: deque[Slot] = deque()
        self._waiting: deque[Got] = deque()
        self._making = 0
        self._removing = 0
        self._is_closed = False
        # One thread each: a crowd that ends does not hold up those that start.
        self._maker = ThreadPoolExecutor(1, "cgroup-make")
        self._remover = ThreadPoolExecutor(1, "cgroup-remove")
        self._fill()

    def __repr__(self) -> str:
        return f"<Slots {len(self._stock)} ready, {self._removing} being removed>"

    @property
    def has_cgroups(self) -> bool:
        return self._tree is not None

    def take(self, got: Got) -> None:
        """Call `got` with a slot, at once if one is ready; with None when none can be made."""
        if self._tree is None:
            got(Slot(self._uids.popleft()) if self._uids else None)
            return
        if self._stock:
            slot = self._stock.popleft()
            if len(self._stock) <= STOCK // 2:
                self._fill()
            got(slot)
            return
        self._waiting.append(got)
        self._fill()

    def give_back(self, slot: Slot) -> None:
        """What ran in it has ended, or is about to."""
        if slot.cgroup is None:
            if slot.uid:
                self._uids.append(slot.uid)
            return
        self._removing += 1
        self._remove(slot, slot.cgroup, RETRY_S)

    def close(self) -> None:
        """Make no more, and wait for the one that is being made.

        What is not removed yet stays for whoever owns the tree.
        """
        self._is_closed = True
        for executor in (self._maker, self._remover):
            executor.shutdown(cancel_futures=True)

    # ------------------------------------------------------------------ making

    def _fill(self) -> None:
        tree = self._tree
        if tree is None or self._is_closed:
            return
        missing = STOCK + len(self._waiting) - len(self._stock) - self._making
        for _ in range(missing):
            if not self._uids:
                break
            self._making += 1
            uid = self._uids.popleft()
            self._in(self._maker, partial(tree.make, str(uid)), partial(self._made, uid))

    def _made(self, uid: int, made: Future[Cgroup]) -> None:
        self._making -= 1
        error = made.exception()
        if error is None:
            slot = Slot(uid, made.result())
            if self._waiting:
                self._waiting.popleft()(slot)
            else:
                self._stock.append(slot)
            return
        self._uids.append(uid)
        log.error("cgroup.refused", uid=uid, error=str(error))
        if self._waiting:
            self._waiting.popleft()(None)

    # ------------------------------------------------------------------ removing

    def _remove(self, slot: Slot, cgroup: Cgroup, retry_s: float) -> None:
        if not self._is_closed:
            self._in(self._remover, cgroup.remove, partial(self._removed, slot, cgroup, retry_s))

    def _removed(self, slot: Slot, cgroup: Cgroup, retry_s: float, removed: Future[bool]) -> None:
        error = removed.exception()
        if error is None and removed.result():
            self._removing -= 1
            self._uids.append(slot.uid)
            if self._waiting:
                self._fill()
            return
        if error is not None or retry_s >= LONGEST_RETRY_S:
            log.warning("cgroup.remains", uid=slot.uid, error=str(error or "something lives in it"))
        with suppress(OSError):
            cgroup.kill()
        later_s = min(2 * retry_s, LONGEST_RETRY_S)
        self._loop.call_later(retry_s, self._remove, slot, cgroup, later_s)

    def _in(
        self, executor: ThreadPoolExecutor, work: Callable[[], T], done: Callable[[Future[T]], None]
    ) -> None:
        """Work in a thread; `done` hears of it in the loop, unless this is closed by then."""

        def finished(future: Future[T]) -> None:
            if not future.cancelled() and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(done, future)

        executor.submit(work).add_done_callback(finished)
