"""Fleet: the environments of one function version on this host, and the events waiting for them."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from trivet.bus import frames
from trivet.core import outcomes, scaling
from trivet.core.billing import Reading, billed_ms
from trivet.core.functions import FunctionVersion
from trivet.core.lifecycle import Signal, State
from trivet.core.outcomes import Outcome
from trivet.supervisor.counters import DURABLE, EXPRESS
from trivet.supervisor.deadlines import Deadline, Deadlines, clear
from trivet.supervisor.environments import Environment
from trivet.supervisor.journal import Ended
from trivet.supervisor.pool import Pool
from trivet.supervisor.settlement import Settlement
from trivet_worker import wire

log = structlog.get_logger()

# A zygote that refuses this often in a row will refuse again: tell the callers.
MOST_REFUSALS = 3
SMOOTHING = 0.2  # weight of the newest measurement
OLDEST_S = 24 * 3_600  # the credentials that an environment was started with expire some time


@dataclass(slots=True, eq=False)
class Attempt:
    """One try at an invocation in one environment."""

    delivery: frames.Delivery
    began_ns: int
    deadline: Deadline


class Fleet:
    """Implements `environments.Owner`: decides what each report means."""

    def __init__(
        self,
        version: FunctionVersion,
        pool: Pool,
        deadlines: Deadlines,
        *,
        init_limit_ms: int,
        settlement: Settlement,
        rested: Callable[[str], None],
        gives_way: Callable[[Fleet], bool],
    ) -> None:
        """`rested(function)` says that an environment fell idle."""
        self.version = version
        self.queue: deque[frames.Delivery] = deque()
        self.idle: list[Environment] = []  # newest last: it is the warmest, so it is used first
        self.is_superseded = False
        self._pool = pool
        self._deadlines = deadlines
        self._init_limit_ms = init_limit_ms
        self._settlement = settlement
        self._rested = rested
        self._gives_way = gives_way
        self.hungry_since: float | None = None  # loop time: work, and not one slot
        self._loop = asyncio.get_running_loop()
        self._running: dict[Environment, Attempt] = {}
        self._starting: dict[Environment, Deadline] = {}
        self._run_ms: float | None = None
        self._cold_start_ms: float | None = None
        self._refusals = 0
        # Initialisations that took too long and are to be repeated, and those that repeat one.
        self._repeats = 0
        self._repeating: set[Environment] = set()

    def __repr__(self) -> str:
        counts = (len(self.idle), len(self._running), len(self._starting), len(self.queue))
        return "<Fleet {} {} idle, {} busy, {} starting, {} waiting>".format(
            self.version.function, *counts
        )

    @property
    def is_empty(self) -> bool:
        return not (self.idle or self._running or self._starting or self.queue)

    @property
    def size(self) -> int:
        """How many slots it holds."""
        return len(self.idle) + len(self._running) + len(self._starting)

    @property
    def is_busy(self) -> bool:
        return bool(self._running or self._starting or self.queue)

    def demand(self, *, loading: int = 0) -> scaling.Demand:
        """`loading`: events taken that wait for their version to be fetched."""
        return scaling.Demand(
            waiting=len(self.queue) + loading,
            idle=len(self.idle),
            busy=len(self._running),
            starting=len(self._starting),
            run_ms=self._expected_run_ms(),
            cold_start_ms=self._cold_start_ms,
        )

    def _expected_run_ms(self) -> float | None:
        """What is usual, or what the oldest attempt has taken already, if that is longer."""
        if self._run_ms is None or not self._running:
            return self._run_ms
        oldest = next(iter(self._running.values()))
        return max(self._run_ms, (time.monotonic_ns() - oldest.began_ns) / 1e6)

    # ------------------------------------------------------------------ giving work

    def assign(self) -> int:
        """Give waiting events to idle environments, and start others where that pays.

        Returns how many more it would start if the host had the slots.
        """
        queue, idle = self.queue, self.idle
        while queue and idle:
            self._invoke(idle.pop(), queue.popleft())
        if not queue:
            return 0
        # One of the durable lane was only taken because it is worth an environment.
        owed = sum(delivery.is_durable for delivery in queue) - len(self._starting)
        wanted = max(owed, scaling.starts(self.demand(), free_slots=len(queue)))
        free = self._pool.free_slots if self._pool.can_start(self.version.runtime) else 0
        for _ in range(min(wanted, free)):
            self._start()
        return max(0, wanted - free)

    def _start(self) -> None:
        try:
            environment = self._pool.start(self, self.version)
        except OSError as error:
            log.error("environment.refused", function=self.version.function, error=str(error))
            self._fail_all("The function's code could not be read.")
            return
        limit_ms = self._init_limit_ms
        if self._repeats:
            self._repeats -= 1
            self._repeating.add(environment)
            limit_ms = self.version.timeout_ms
        self._starting[environment] = self._deadlines.after(
            limit_ms / 1000, lambda: self._init_expired(environment)
        )

    def _invoke(self, environment: Environment, delivery: frames.Delivery) -> None:
        environment.journal.begin(delivery.request_id, keep_tail=delivery.wants_log_tail)
        timeout_ms = self.version.timeout_ms
        strings = (
            delivery.request_id.encode(),
            delivery.invoked_arn.encode(),
            delivery.trace_id.encode(),
            delivery.client_context,
        )
        head = wire.EVENT_HEAD.pack(
            int(time.time() * 1000) + timeout_ms, *[len(s) for s in strings]
        )
        deadline = self._deadlines.after(
            timeout_ms / 1000, lambda: self._attempt_expired(environment)
        )
        self._running[environment] = Attempt(delivery, time.monotonic_ns(), deadline)
        environment.invoke(head + b"".join(strings), delivery.payload)

    # ------------------------------------------------------------------ environments.Owner

    def initialised(self, environment: Environment) -> None:
        clear(self._starting.pop(environment))
        self._repeating.discard(environment)
        self._refusals = 0
        took_ns = time.monotonic_ns() - environment.asked_ns
        self._cold_start_ms = _smoothed(self._cold_start_ms, took_ns / 1e6)
        init_ns = environment.init_ns
        self._pool.counters.environment_started(took_ns - init_ns, init_ns)
        self._rest(environment)
        self._pool.initialised()

    def init_failed(self, environment: Environment, payload: bytes) -> None:
        self._give_up_start(environment, outcomes.raised(payload))

    def answered(self, environment: Environment, is_error: bool, payload: bytes) -> None:
        attempt = self._running.pop(environment)
        clear(attempt.deadline)
        run_ns = time.monotonic_ns() - attempt.began_ns
        self._run_ms = _smoothed(self._run_ms, run_ns / 1e6)
        outcome = outcomes.raised(payload) if is_error else outcomes.returned(payload)
        self._close(environment, attempt, outcome, run_ns)
        environment.move(Signal.ANSWERED)
        # The kernel may have chosen a child of the runtime, which then answers all the same. What
        # is left of it is not to be trusted with another event. Nobody waits for this look if
        # there is none: the next one is asked for before.
        if self.queue and environment.ran_out_of_memory:
            self._wear_out(environment)
            return
        self._rest(environment)
        if environment.state is State.IDLE and environment.ran_out_of_memory:
            self.idle.remove(environment)
            self._wear_out(environment)

    def _wear_out(self, environment: Environment) -> None:
        self._end(environment)
        self.assign()
        self._rested(self.version.function)

    def broke_protocol(self, environment: Environment) -> None:
        attempt = self._running.pop(environment, None)
        log.warning("environment.broke_protocol", function=self.version.function)
        if attempt is None:
            if environment in self._starting:
                waiting = self.queue[0].request_id if self.queue else ""
                self._give_up_start(environment, outcomes.broke_protocol(waiting))
            else:
                self.lost(environment)
                self._end(environment)
                self.assign()
            return
        clear(attempt.deadline)
        outcome = outcomes.broke_protocol(attempt.delivery.request_id)
        self._close(environment, attempt, outcome, time.monotonic_ns() - attempt.began_ns)
        self._end(environment)
        self.assign()
        self._rested(self.version.function)

    def exited(self, environment: Environment, status: int | None) -> None:
        attempt = self._running.pop(environment, None)
        if attempt is not None:
            clear(attempt.deadline)
            outcome = _ended(environment, attempt.delivery.request_id, status)
            self._close(environment, attempt, outcome, time.monotonic_ns() - attempt.began_ns)
        elif environment in self._starting:
            self._exited_starting(environment, status)
        if environment in self.idle:
            self.idle.remove(environment)
        self._pool.release(environment)
        self.assign()
        self._rested(self.version.function)

    def _exited_starting(self, environment: Environment, status: int | None) -> None:
        if environment.state is State.STARTING:
            # It never ran: the platform's fault, so the waiting events are not to blame. A zygote
            # that died took its unborn with it, and the next one starts them.
            self._refusals += environment.is_refused
            self._drop_start(environment)
            if self._refusals >= MOST_REFUSALS:
                self._refusals = 0
                self._fail_all("No execution environment could be started.")
            self.assign()
            return
        environment.init_ns = time.monotonic_ns() - environment.asked_ns
        waiting = self.queue[0].request_id if self.queue else ""
        self._give_up_start(environment, _ended(environment, waiting, status))

    # ------------------------------------------------------------------ deadlines

    def _attempt_expired(self, environment: Environment) -> None:
        attempt = self._running.pop(environment)
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        timeout_ms = self.version.timeout_ms
        outcome = outcomes.timed_out(attempt.delivery.request_id, timeout_ms, now)
        self._close(environment, attempt, outcome, timeout_ms * 1_000_000)
        self._end(environment)
        self.assign()
        self._rested(self.version.function)

    def _init_expired(self, environment: Environment) -> None:
        environment.init_ns = time.monotonic_ns() - environment.asked_ns
        environment.journal.init_report("timeout", environment.init_ns)
        if environment in self._repeating:
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            request_id = self.queue[0].request_id if self.queue else ""
            outcome = outcomes.timed_out(request_id, self.version.timeout_ms, now)
            self._give_up_start(environment, outcome)
            return
        # AWS initialises once more, within the function's own timeout.
        self._repeats += 1
        self._drop_start(environment)
        self._end(environment)
        self.assign()

    # ------------------------------------------------------------------ ending things

    def _give_up_start(self, environment: Environment, outcome: Outcome) -> None:
        """An initialisation failed: the event that waited longest is its invocation."""
        self._drop_start(environment)
        if self.queue:
            delivery = self.queue.popleft()
            environment.journal.begin(delivery.request_id, keep_tail=delivery.wants_log_tail)
            attempt = Attempt(delivery, 0, [None])
            environment.is_fresh = False
            self._close(environment, attempt, outcome, environment.init_ns)
        self._end(environment)
        self.assign()
        self._rested(self.version.function)

    def _drop_start(self, environment: Environment) -> None:
        clear(self._starting.pop(environment))
        self._repeating.discard(environment)
        self._pool.initialised()

    def _close(
        self, environment: Environment, attempt: Attempt, outcome: Outcome, run_ns: int
    ) -> None:
        """Log and answer an attempt that has ended."""
        delivery = attempt.delivery
        init_ns = environment.init_ns if environment.is_fresh else None
        environment.is_fresh = False
        reading = Reading(
            request_id=delivery.request_id,
            function=self.version.function,
            version=self.version.version,
            ended_ms=int(time.time() * 1000),
            memory_mb=self.version.memory_mb,
            billed_ms=billed_ms(run_ns, init_ns or 0),
            init_ms=None if init_ns is None else init_ns / 1e6,
            start="warm" if init_ns is None else "cold",
            status=outcome.status,
        )
        tail = environment.journal.end(
            Ended(outcome, run_ns, reading.billed_ms, init_ns, environment.peak_mb)
        )
        self._settlement.ended(delivery, outcome, reading, tail)
        lane = DURABLE if delivery.is_durable else EXPRESS
        is_error = outcome.function_error is not None
        self._pool.counters.attempt_ended(lane, reading.function, run_ns, is_error=is_error)

    def _rest(self, environment: Environment) -> None:
        if self.queue and not self._gives_way(self):
            self._invoke(environment, self.queue.popleft())
        elif self.queue or self.is_superseded:
            self._end(environment)
        else:
            environment.idle_since = self._loop.time()
            self.idle.append(environment)
            self._rested(self.version.function)  # which asks for its next event
            environment.rest()
            self._pool.used(self.version)
            return
        self._rested(self.version.function)

    def _end(self, environment: Environment) -> None:
        environment.kill()
        self._pool.release(environment)

    def retire(self, *, idle_before: float) -> int:
        """End the environments idle since before that instant of the loop's clock, and the old."""
        retired = [e for e in self.idle if e.idle_since < idle_before or e.age_s > OLDEST_S]
        self.idle = [e for e in self.idle if e not in retired]
        for environment in retired:
            self._end(environment)
        return len(retired)

    def lost(self, environment: Environment) -> None:
        """It is ending by itself: while it does, it gets no work."""
        if environment in self.idle:
            self.idle.remove(environment)

    def supersede(self) -> None:
        """Another version took this one's place: finish what waits, and keep nothing warm."""
        self.is_superseded = True
        self.retire(idle_before=float("inf"))
        self._pool.unused(self.version)

    def close(self) -> None:
        """It is empty, and is being forgotten."""
        self._pool.unused(self.version)

    def fail_expired(self, now_ms: int) -> None:
        """Refuse the events that waited too long here while nothing could run them."""
        while self.queue and not self._starting and self.queue[0].is_expired(now_ms):
            self._settlement.throttled(self.queue.popleft())

    def _fail_all(self, message: str) -> None:
        while self.queue:
            self._settlement.failed(self.queue.popleft(), message)


def _ended(environment: Environment, request_id: str, status: int | None) -> Outcome:
    """What it means that an environment ended by itself."""
    if status in (None, -signal.SIGKILL) and environment.ran_out_of_memory:
        return outcomes.out_of_memory(request_id)
    return outcomes.exited(request_id, status)


def _smoothed(old: float | None, new: float) -> float:
    return new if old is None else old + SMOOTHING * (new - old)
