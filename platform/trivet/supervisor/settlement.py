"""Settlement: what becomes of an attempt that has ended, by the lane its event came on."""

from __future__ import annotations

from functools import partial

from trivet.bus import frames
from trivet.bus.consume import Intake
from trivet.bus.dequeue import DurableIntake
from trivet.core.billing import Reading
from trivet.core.outcomes import Outcome
from trivet.supervisor.meter import Meter


class Settlement:
    """An express event is answered and metered; a durable one is committed with its Reading."""

    def __init__(
        self, express: Intake, durable: DurableIntake, meter: Meter, *, is_strict: bool
    ) -> None:
        """`is_strict`: an express answer waits until its Reading is on disk."""
        self._is_strict = is_strict
        self._express = express
        self._durable = durable
        self._meter = meter

    def ended(
        self, delivery: frames.Delivery, outcome: Outcome, reading: Reading, tail: bytes
    ) -> None:
        """The attempt ran, and this is how it ended."""
        if delivery.is_durable:
            self._durable.commit(delivery, (reading,))
            return
        reply = frames.pack_reply(
            delivery.call, outcome.payload, outcome.function_error, reading.version, tail
        )
        if self._is_strict:
            self._durable.meter((reading,), partial(self._express.answer, delivery, reply))
        else:
            self._express.answer(delivery, reply)
            self._meter.add(reading)

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
            self._durable.commit(delivery, ())
        else:
            self.failed(delivery, message)

    def read(self, function: str) -> None:
        """Something changed for `function`: there may be room for more of it."""
        self._express.read(function)
        self._durable.read(function)
