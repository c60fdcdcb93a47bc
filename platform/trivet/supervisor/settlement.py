"""Settlement: what becomes of an attempt that has ended, by the lane its event came on."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from functools import partial

import structlog

from trivet.bus import frames
from trivet.bus.consume import Intake
from trivet.bus.dequeue import DurableIntake
from trivet.core import destinations, retries
from trivet.core.arns import LATEST, Place
from trivet.core.billing import Reading
from trivet.core.lineage import passes
from trivet.core.outcomes import Outcome
from trivet.core.retries import Attempt, Over, Progress, untold
from trivet.supervisor.meter import Meter
from trivet.supervisor.policies import Policies

log = structlog.get_logger()


class Settlement:
    """An express event is answered and metered; a durable one is committed with its Reading."""

    def __init__(
        self,
        express: Intake,
        durable: DurableIntake,
        meter: Meter,
        policies: Policies,
        place: Place,
        *,
        waits_ms: Sequence[int],
        is_strict: bool,
    ) -> None:
        """`waits_ms`: before each attempt after the first. `is_strict`: an express answer waits
        until its Reading is on disk."""
        self._express = express
        self._durable = durable
        self._meter = meter
        self._policies = policies
        self._place = place
        self._waits_ms = waits_ms
        self._is_strict = is_strict

    @property
    def is_behind(self) -> bool:
        """Whether so much waits to be metered that no call should be taken on."""
        return self._meter.is_full

    def ended(
        self, delivery: frames.Delivery, outcome: Outcome, reading: Reading, tail: bytes
    ) -> None:
        """The attempt ran, and this is how it ended."""
        if delivery.progress is not None:
            self._ended_durable(delivery, delivery.progress, outcome, reading)
            return
        reply = frames.pack_reply(
            delivery.call, outcome.payload, outcome.function_error, reading.version, tail
        )
        if self._is_strict:
            self._durable.meter((reading,), partial(self._express.answer, delivery, reply))
        else:
            self._express.answer(delivery, reply)
            self._meter.add(reading)

    def _ended_durable(
        self, delivery: frames.Delivery, before: Progress, outcome: Outcome, reading: Reading
    ) -> None:
        attempt = Attempt(
            reading.ended_ms,
            outcome.ended,
            outcome.error_type,
            reading.version,
            reading.billed_ms,
            reading.memory_mb,
        )
        progress = before.with_attempt(attempt)
        policy = self._policies.of(delivery.function)
        now_ms = int(time.time() * 1000)
        verdict = retries.after_attempt(progress, policy, self._waits_ms, now_ms)
        record = b""
        if isinstance(verdict, Over):
            verdict, record = self._told(delivery, verdict, progress, outcome)
        self._durable.commit(delivery, progress, verdict, (reading,), record)

    def _told(
        self, delivery: frames.Delivery, over: Over, progress: Progress, outcome: Outcome | None
    ) -> tuple[Over, bytes]:
        """What the target of `over` is to be told, if it has one that can be."""
        if not over.target:
            return over, b""
        now_ms = int(time.time() * 1000)
        try:
            record = destinations.record(
                self._place,
                delivery.function,
                request_id=delivery.request_id,
                condition=over.condition,
                invoke_count=len(progress.attempts),
                at_ms=now_ms,
                request=delivery.payload,
                response=None if outcome is None else outcome.payload,
                function_error=None if outcome is None else outcome.function_error,
                version=progress.attempts[-1].version if progress.attempts else LATEST,
            )
            target = destinations.parse_destination(over.target, self._place)
            if target.kind == "bus":
                record = destinations.bus_entry(
                    self._place,
                    delivery.function,
                    target.name,
                    record,
                    condition=over.condition,
                    event_id=str(uuid.uuid5(uuid.NAMESPACE_OID, delivery.request_id)),
                    at_ms=now_ms,
                )
        except (destinations.RecordTooLarge, ValueError) as error:
            log.warning("destination.untold", function=delivery.function, reason=str(error))
            return untold(over), b""
        return over, record

    def refused(self, delivery: frames.Delivery) -> bool:
        """Whether an asynchronous event is not to be run any more: then it ends here."""
        if delivery.progress is None:
            return False
        policy = self._policies.of(delivery.function)
        count = passes(delivery.trace_id, delivery.function) if delivery.trace_id else 0
        now_ms = int(time.time() * 1000)
        over = retries.before_attempt(delivery.progress, policy, count, now_ms)
        if over is None:
            return False
        self._durable.end(delivery, *self._told(delivery, over, delivery.progress, None))
        return True

    def failed(self, delivery: frames.Delivery, message: str) -> None:
        """The platform could not run it, which is the platform's fault."""
        self._refuse(delivery, "ServiceException", 500, message)

    def throttled(self, delivery: frames.Delivery) -> None:
        """Nobody had room for it in time."""
        self._refuse(delivery, "TooManyRequestsException", 429, "Rate Exceeded.")

    def _refuse(
        self, delivery: frames.Delivery, error_type: str, status: int, message: str
    ) -> None:
        if delivery.is_durable:
            self._durable.retry(delivery)
        else:
            failed = frames.pack_failure(delivery.call, error_type, status, message)
            self._express.answer(delivery, failed)

    def dropped(self, delivery: frames.Delivery, message: str) -> None:
        """Its function is gone: nothing can ever run it."""
        if delivery.is_durable:
            self._durable.end(delivery, retries.deleted())
        else:
            self.failed(delivery, message)

    def read(self, function: str) -> None:
        """Something changed for `function`: there may be room for more of it."""
        self._express.read(function)
        self._durable.read(function)
