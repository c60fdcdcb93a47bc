"""Operations: what a client can do, written once for the blocking and the asynchronous one."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from typing import Any
from urllib.parse import quote

from trivet.client.answers import LogLine, Result, checked, ids_of, result_of
from trivet.client.flights import Connections, Flight
from trivet.client.wires import Network
from trivet.core.arns import parse_function_ref
from trivet.errors import CallerError, FunctionNotFound, TrivetError

# Longer than any function may run, be started and wait for room.
INVOKE_TIMEOUT_S = 960.0
PUBLISH_TIMEOUT_S = 30.0

POLL_S = 0.25
LOOK_BACK_MS = 60_000  # lines may come a little out of order

MOST_IN_BATCH = 1_000
# Well below what the platform takes as one request.
BATCH_BYTES = 4 << 20
# Batches on their way at once: the next one is packed while the disk takes the ones before.
BATCHES_IN_FLIGHT = 4

Publication = tuple[str, Any] | tuple[str, Any, str]
"""Function, payload, and the `once` key if there is one."""


class Operations:
    """Every method raises the errors of `trivet.errors`, rebuilt from the platform's answer."""

    def __init__(self, connections: Connections, network: Network) -> None:
        self._connections = connections
        self._network = network

    async def invoke(self, function: str, payload: Any, timeout_s: float) -> Result:
        path = f"/2015-03-31/functions/{quote(function, safe='')}/invocations"
        headers = {b"x-amz-log-type": b"Tail"}
        body = packed(payload)
        answer = await self._connections.ask(
            "POST", path, "lambda", body, headers, timeout_s=timeout_s
        )
        return result_of(checked(answer))

    async def publish_many(self, events: Iterable[Publication], timeout_s: float) -> list[str]:
        """Ids in the order of the events; empty for those that `once` dropped.

        After the first refusal nothing more is sent. What was accepted by then, the error holds
        in its member "ids".
        """
        ids: list[str] = []
        flights: deque[tuple[Flight, int]] = deque()
        try:
            refusal = await self._publish(_batches(events), flights, ids, timeout_s)
        finally:
            for flight, _ in flights:
                await flight.abandon()
        if refusal is not None:
            refusal.members["ids"] = ids
            raise refusal
        return ids

    async def _publish(
        self,
        batches: Iterator[list[bytes]],
        flights: deque[tuple[Flight, int]],
        ids: list[str],
        timeout_s: float,
    ) -> TrivetError | None:
        """Keep some batches on their way until all have landed; the first refusal."""
        refusal: TrivetError | None = None
        batch = next(batches, None)
        while flights or (batch is not None and refusal is None):
            flight: Flight | None = None
            try:
                if batch is not None and refusal is None and len(flights) < BATCHES_IN_FLIGHT:
                    # Whoever holds a connection must not wait for another: others might as well.
                    flight = await self._begin(batch, timeout_s, may_wait=not flights)
                if flight is None:
                    refused = await _landed(*flights.popleft(), ids)
                    refusal = refusal or refused
            except TrivetError as error:
                refusal = refusal or error
            if flight is not None and batch is not None:
                flights.append((flight, len(batch)))
                batch = next(batches, None)
        return refusal

    async def _begin(
        self, batch: list[bytes], timeout_s: float, *, may_wait: bool
    ) -> Flight | None:
        body = b'{"Events":[' + b",".join(batch) + b"]}"
        return await self._connections.begin(
            "POST",
            "/2026-11-23/events",
            "trivet",
            body,
            {b"content-type": b"application/json"},
            timeout_s=timeout_s,
            may_wait=may_wait,
        )

    async def logs(
        self, function: str, follow: bool, since_s: float, timeout_s: float
    ) -> AsyncGenerator[LogLine, None]:
        ref = parse_function_ref(function)
        if ref is None:
            raise CallerError(f"'{function}' is not the name or the ARN of a function")
        begin_ms = max(0, int((time.time() - since_s) * 1000))
        told: dict[str, int] = {}  # event id to time, of lines that a next poll may bring again
        is_known = False
        while True:
            try:
                async for event in self._events(ref.name, begin_ms, timeout_s):
                    if event["eventId"] not in told:
                        told[event["eventId"]] = event["timestamp"]
                        yield LogLine(
                            at_ms=event["timestamp"],
                            text=event["message"].removesuffix("\n"),
                            stream=event["logStreamName"],
                        )
            except FunctionNotFound:
                # A log begins with its function's first line. Is there a function?
                if not is_known:
                    await self._require(function, timeout_s)
                    is_known = True
            if not follow:
                return
            begin_ms = max([begin_ms, *(at_ms - LOOK_BACK_MS for at_ms in told.values())])
            told = {event_id: at_ms for event_id, at_ms in told.items() if at_ms >= begin_ms}
            await self._network.sleep(POLL_S)

    async def _events(
        self, name: str, begin_ms: int, timeout_s: float
    ) -> AsyncIterator[dict[str, Any]]:
        asked = {"logGroupName": f"/aws/lambda/{name}", "startTime": begin_ms}
        headers = {
            b"content-type": b"application/x-amz-json-1.1",
            b"x-amz-target": b"Logs_20140328.FilterLogEvents",
        }
        while True:
            body = json.dumps(asked).encode()
            answer = await self._connections.ask(
                "POST", "/", "logs", body, headers, timeout_s=timeout_s
            )
            page = json.loads(checked(answer).body)
            for event in page["events"]:
                yield event
            if not page.get("nextToken"):
                return
            asked["nextToken"] = page["nextToken"]

    async def _require(self, function: str, timeout_s: float) -> None:
        """Raises FunctionNotFound."""
        path = f"/2015-03-31/functions/{quote(function, safe='')}/configuration"
        checked(await self._connections.ask("GET", path, "lambda", timeout_s=timeout_s))

    async def close(self) -> None:
        await self._connections.close()


def packed(payload: Any) -> bytes:
    """A payload as JSON. Bytes are taken for JSON as they are."""
    if isinstance(payload, bytes):
        return payload
    return json.dumps(payload, allow_nan=False, separators=(",", ":")).encode()


def _batches(events: Iterable[Publication]) -> Iterator[list[bytes]]:
    """The events as the platform takes them, as many in a request as it may hold."""
    batch: list[bytes] = []
    size = 0
    for function, payload, *once in events:
        entry = {"Function": function, "Payload": packed(payload).decode()}
        if once and once[0]:
            entry["Once"] = once[0]
        event = json.dumps(entry, separators=(",", ":")).encode()
        if batch and (len(batch) >= MOST_IN_BATCH or size + len(event) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += len(event) + 1
    if batch:
        yield batch


async def _landed(flight: Flight, count: int, ids: list[str]) -> TrivetError | None:
    """Add the ids of a batch of so many events, and give the first refusal in it."""
    try:
        body = json.loads(checked(await flight.answer()).body)
    except TrivetError as error:
        ids.extend([""] * count)  # nobody knows, or none was taken
        return error
    found, refusal = ids_of(body["Results"])
    ids.extend(found)
    return refusal
