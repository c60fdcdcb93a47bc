"""Ledger: asynchronous events as they are kept, sent again, and checked to add up."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from trivet.aws.lambda_.names import named
from trivet.aws.services import Caller, Operation, Services
from trivet.bus import frames, keys
from trivet.core.audit import Demands, Finding, report
from trivet.core.destinations import Destination, parse_destination
from trivet.core.invocations import Event
from trivet.core.ledger import DELAYED, STANDINGS, WAITING, Record
from trivet.core.retries import STATES, Attempt
from trivet.errors import (
    CallerError,
    Conflict,
    FunctionNotFound,
    ValidationFailed,
)
from trivet.store.audits import Auditor

from .events import json_payload

_LISTED = 50  # events on a page
_MOST_PROBLEMS = 20
_LOOKS = 3  # for accepted ids that are nowhere, while events move


# -------------------------------------------------------------------------- the check


async def check_ledger(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    functions = await _functions(services, params, "CheckLedger")
    accepted = {line.decode("latin-1") for line in params.get("Accepted", b"").split()}
    unseen = set(accepted)
    auditor = Auditor(services.ledgers, services.bills)
    found: list[list[Finding]] = []
    for _ in range(_LOOKS):
        found = [await auditor.findings(function, unseen) for function in functions]
        if not unseen:
            break
    demands = Demands(
        is_quiesced=params.get("Quiesced", False), most_aborted=params.get("MostAborted")
    )
    seen = len(accepted) if "Accepted" in params else None
    findings = report(found, demands, seen, unseen)
    return {
        "Holds": all(finding.holds for finding in findings),
        "Functions": len(functions),
        "Invariants": [
            {
                "Name": finding.invariant,
                "Holds": finding.holds,
                "Words": finding.words,
                "Figures": finding.figures,
                "Problems": finding.problems[:_MOST_PROBLEMS],
                "ProblemCount": len(finding.problems),
                "Advice": finding.advice,
            }
            for finding in findings
        ],
    }


# -------------------------------------------------------------------------- events


async def list_events(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    marker = params.get("Marker", "")
    if marker and "Function" not in params:
        raise ValidationFailed("Events are listed page by page of one function only.")
    standings = (params["State"],) if "State" in params else STANDINGS
    most = params.get("MaxItems", _LISTED)
    found: list[Record] = []
    more = ""
    for function in await _functions(services, params, "ListEvents"):
        try:
            page, more = await services.ledgers.newest(function, standings, most, marker)
        except ValueError:
            raise ValidationFailed("The Marker is not one of this operation.") from None
        found += page
    found.sort(key=lambda record: record.progress.accepted_ms, reverse=True)
    return {
        "Events": [_described(record) for record in found[:most]],
        "NextMarker": more if more and "Function" in params else None,
    }


async def get_event(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    record = await _found(services, params, "GetEvent")
    answer = _described(record)
    if record.packed:
        answer["Payload"] = _delivery(record).payload.decode(errors="replace")
    if record.standing == WAITING:
        answer["RunBy"] = await services.ledgers.running(record) or None
    if record.standing in STATES:
        answer["Destination"] = await _destination(services, record)
    return answer


async def replay_event(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    record = await _found(services, params, "ReplayEvent")
    if record.standing not in STATES:
        raise Conflict(f"The event {record.request_id} has not ended: it is {record.standing}.")
    if not record.packed and "Payload" not in params:
        raise Conflict(
            f"The payload of {record.request_id} was too large to be kept: send it with one."
        )
    before = _delivery(record) if record.packed else None
    own = before.payload if before else b""
    event = Event(
        id=str(uuid.uuid4()),
        function=record.function,
        source="replay",
        payload=json_payload(params["Payload"]) if "Payload" in params else own,
        client_context=before.client_context if before else b"",
        invoked_arn=before.invoked_arn if before else "",
    )
    await services.publisher.publish(event)
    return {"Id": event.id, "Function": event.function}


async def _functions(services: Services, params: dict[str, Any], operation: str) -> Sequence[str]:
    """The function meant, which may have been deleted; or all."""
    if "Function" in params:
        return [named(services, {"FunctionName": params["Function"]}, operation).name]
    return await services.ledgers.functions()


async def _found(services: Services, params: dict[str, Any], operation: str) -> Record:
    """The event meant. Raises what AWS answers for a function that is not there."""
    request_id = params["Id"]
    functions = await _functions(services, params, operation)
    if "Entry" in params:
        if "Function" not in params:
            raise ValidationFailed("An Entry is one of a Function.")
        record = await services.ledgers.entry(functions[0], params["Entry"])
        if record is not None and record.request_id == request_id:
            return record
    record = await services.ledgers.find(request_id, functions)
    if record is None:
        raise FunctionNotFound(f"Event not found: {request_id}")
    return record


def _described(record: Record) -> dict[str, Any]:
    progress = record.progress
    described: dict[str, Any] = {
        "Function": record.function,
        "Id": record.request_id,
        "State": record.standing,
        "Condition": record.condition or None,
        "AcceptedTime": _time(progress.accepted_ms),
        "Attempts": [_attempt(attempt) for attempt in progress.attempts],
        "Aborted": progress.aborted,
        "HasPayload": bool(record.packed),
    }
    if record.standing in STATES:
        described["Entry"] = record.entry_id
        described["EndedTime"] = _time(int(record.entry_id.partition("-")[0]))
    if record.standing == DELAYED and record.due_ms is not None:
        described["DueTime"] = _time(record.due_ms)
    return described


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "EndedTime": _time(attempt.ended_ms),
        "Status": attempt.status,
        "ErrorType": attempt.error_type or None,
        "Version": attempt.version,
        "BilledMs": attempt.billed_ms,
        "MemoryMb": attempt.memory_mb,
    }


async def _destination(services: Services, record: Record) -> dict[str, Any] | None:
    """Who was told of its end, as far as that is known."""
    origin = record.progress.origin
    async for page in services.ledgers.outbox(record.function):
        for told in page:
            if told.origin == origin:
                body = told.body.decode(errors="replace")
                return {"Target": told.target, "Status": "waiting", "Record": body}
    arn = record.target
    if not arn:
        return None
    once = keys.told_once(record.function, origin)
    try:
        destination: Destination | None = parse_destination(arn, services.place)
    except ValueError:
        destination = None
    if destination is None or not await services.ledgers.was_told(destination, once):
        return {"Target": arn, "Status": "unknown"}
    told_as = str(uuid.uuid5(uuid.NAMESPACE_OID, once)) if destination.kind == "function" else None
    return {"Target": arn, "Status": "delivered", "Id": told_as}


def _delivery(record: Record) -> frames.Delivery:
    try:
        return frames.unpack_event(record.function, b"", [b"e", record.packed])
    except frames.MalformedEvent as error:
        raise CallerError(f"The event {record.request_id} cannot be read: {error}") from None


def _time(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


OPERATIONS: Mapping[str, Operation] = {
    "CheckLedger": check_ledger,
    "ListEvents": list_events,
    "GetEvent": get_event,
    "ReplayEvent": replay_event,
}
