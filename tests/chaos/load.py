"""Load: the clients of the platform that is harmed, each of which writes down what it was told."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
from tests.chaos.accepted import Accepted, AcceptedFile
from tests.chaos.functions import ECHO, Planned

from trivet.client import AsyncClient
from trivet.errors import Throttled, TrivetError, Unavailable

ANSWER_WITHIN_S = 12.0  # of a publish
CALL_WITHIN_S = 25.0  # longer than a call may wait for room and run
PAUSE_S = 0.1  # after a refusal
WINDOW_S = 0.2  # of one batch
FILE_EVERY_S = 1.0


@dataclass
class Asynchronous:
    """Publishes until `most` events were accepted, `per_s` of them, in batches.

    Every other event carries an idempotency key: what came of it unknown, it is sent again. The
    others are sent once, and what became of them may stay unknown.
    """

    client: AsyncClient
    file: AcceptedFile
    source: Iterator[Planned]
    per_s: float
    most: int
    doubtful: set[int] = field(default_factory=set)  # may be there or not
    refusals: Counter[str] = field(default_factory=Counter)
    slowest_refusal_s: float = 0.0
    again: list[Planned] = field(default_factory=list)

    async def run(self) -> None:
        begun, sent = time.monotonic(), 0
        while self.file.count < self.most:
            room = int((time.monotonic() - begun) * self.per_s) - sent
            left = self.most - self.file.count
            fresh = [next(self.source) for _ in range(max(0, min(room, left, 500)))]
            sent += len(fresh)
            batch, self.again = [*self.again, *fresh], []
            if batch:
                await self._publish(batch)
            await anyio.sleep(PAUSE_S if self.again else WINDOW_S)

    async def settle(self) -> None:
        """Send again what has a key and is not known to be there."""
        while self.again:
            batch, self.again = self.again, []
            await self._publish(batch)
            if self.again:
                await anyio.sleep(PAUSE_S)

    async def _publish(self, batch: list[Planned]) -> None:
        asked_at = time.monotonic()
        events = [(each.function, each.payload, _once(each)) for each in batch]
        is_whole = True
        try:
            ids = await self.client.publish_many(events, timeout=ANSWER_WITHIN_S)
        except (Unavailable, Throttled) as error:
            is_whole = False
            self.refusals[_reason(error)] += 1
            self.slowest_refusal_s = max(self.slowest_refusal_s, time.monotonic() - asked_at)
            told = error.members.get("ids", [])
            ids = told if isinstance(told, list) else []
        found = []
        for place, each in enumerate(batch):
            event_id = ids[place] if place < len(ids) else ""
            if event_id or (is_whole and _once(each)):
                found.append(Accepted(event_id, each.n, each.function, each.kind))
            elif _once(each):
                self.again.append(each)
            else:
                self.doubtful.add(each.n)
        await anyio.to_thread.run_sync(self.file.add, found)


def _reason(error: TrivetError) -> str:
    """What it says, without the numbers and the address in it."""
    words = re.sub(r"http://\S+", "it", error.message)
    return f"{error.error_type}: {re.sub('[0-9]+', 'N', words)}"


def _once(event: Planned) -> str:
    return f"chaos-{event.n}" if event.n % 2 else ""


@dataclass(frozen=True, slots=True)
class Answered:
    """A synchronous call that had an answer, right or a crash of the function."""

    request_id: str
    at: float  # seconds since the epoch


@dataclass
class Synchronous:
    """Calls one after the other, each with a number of its own."""

    client: AsyncClient
    pause_s: float
    first: int
    answered: list[Answered] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    crashed: int = 0  # of the function, as told: 200 and Runtime.ExitError
    refusals: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    last_right_at: float = 0.0  # monotonic; of a call that began after the one before ended
    last_begun_at: float = 0.0

    async def run(self) -> None:
        n = self.first
        while True:
            n += 1
            await self._call(n)
            await anyio.sleep(self.pause_s)

    async def _call(self, n: int) -> None:
        begun = time.monotonic()
        try:
            result = await self.client.invoke(ECHO, {"n": n, "kind": "echo"}, timeout=CALL_WITHIN_S)
        except (Unavailable, Throttled) as error:
            self.refusals[_reason(error)] += 1
            await anyio.sleep(PAUSE_S)
            return
        except TrivetError as error:
            if error.status < 500:
                self.wrong.append(f"{type(error).__name__}: {error.message}")
            self.refusals[_reason(error)] += 1
            return
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
        self.answered.append(Answered(result.request_id, time.time()))
        if result.function_error:
            if "signal: killed" in str(result.payload):
                self.crashed += 1
            else:
                self.wrong.append(str(result.payload))
        elif result.payload != {"n": n, "square": n * n}:
            self.wrong.append(f"{n}: {result.payload}")
        else:
            self.last_right_at, self.last_begun_at = time.monotonic(), begun


@dataclass
class Files:
    """Drops a file into a watched folder now and then."""

    folder: Path
    dice: random.Random
    names: list[str] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            name = f"file-{len(self.names):06}.txt"
            (self.folder / name).write_bytes(self.dice.randbytes(64))
            self.names.append(name)
            await anyio.sleep(FILE_EVERY_S)
