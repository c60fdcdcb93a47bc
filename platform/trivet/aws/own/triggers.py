"""Triggers: schedules and watched folders."""

from __future__ import annotations

import time
import uuid
import zoneinfo
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from anyio.to_thread import run_sync

from trivet.aws.lambda_.names import found, named
from trivet.aws.own.folders import reachable
from trivet.aws.services import Caller, Operation, Services
from trivet.core.schedules import next_slot, parse_schedule
from trivet.core.triggers import FileTrigger, Schedule, Trigger, own_name
from trivet.errors import Conflict, FunctionNotFound, ValidationFailed

_LISTED = 100  # triggers on a page


async def put_file_trigger(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    # Taken first: a file dropped once this call has been answered is news.
    created_ms = time.time_ns() // 1_000_000
    function = await _function(services, params)
    folder = await run_sync(reachable, params["Folder"])
    wanted = FileTrigger(
        name=params.get("Name") or own_name(function, "files", folder),
        id=uuid.uuid4().hex,
        function=function,
        folder=folder,
        created_ms=created_ms,
    )
    return _described(await _put(services, wanted))


async def put_schedule(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    created_ms = time.time_ns() // 1_000_000
    function = await _function(services, params)
    expression = params["ScheduleExpression"]
    timezone = params.get("ScheduleExpressionTimezone", "UTC")
    parse_schedule(expression)
    await run_sync(_zone, timezone)
    wanted = Schedule(
        name=params.get("Name") or own_name(function, "schedule", expression, timezone),
        id=uuid.uuid4().hex,
        function=function,
        expression=expression,
        timezone=timezone,
        created_ms=created_ms,
    )
    return _described(await _put(services, wanted))


async def list_triggers(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    everything = await services.triggers.all()
    triggers: list[Trigger] = [*everything.schedules, *everything.files]
    if "Function" in params:
        wanted = named(services, {"FunctionName": params["Function"]}, "ListTriggers").name
        triggers = [trigger for trigger in triggers if trigger.function == wanted]
    triggers.sort(key=lambda trigger: trigger.name)
    rest = [trigger for trigger in triggers if trigger.name > params.get("Marker", "")]
    page = rest[: params.get("MaxItems", _LISTED)]
    return {
        "Triggers": [_described(trigger) for trigger in page],
        "NextMarker": page[-1].name if len(page) < len(rest) else None,
    }


async def delete_trigger(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    if not await services.triggers.delete(params["Name"]):
        raise FunctionNotFound(f"Trigger not found: {params['Name']}")
    return {}


async def _function(services: Services, params: Mapping[str, Any]) -> str:
    """The name of the function meant, which must be there."""
    wanted = named(services, {"FunctionName": params["Function"]}, "PutTrigger")
    return (await found(services, wanted)).name


async def _put(services: Services, wanted: Trigger) -> Trigger:
    """Keep a trigger. One that says the same already stays: it has a past."""
    present = await services.triggers.get(wanted.name)
    if present is not None and type(present) is not type(wanted):
        raise Conflict(f"Trigger already exists with another type: {wanted.name}")
    if present is not None:
        same = replace(present, id=wanted.id, created_ms=wanted.created_ms)
        if same == wanted:
            return present
    await services.triggers.put(wanted)
    return wanted


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        message = "The ScheduleExpressionTimezone is not valid."
        raise ValidationFailed(message) from None


def _described(trigger: Trigger) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "Name": trigger.name,
        "Function": trigger.function,
        "CreationTime": trigger.created_ms / 1000,
    }
    if isinstance(trigger, FileTrigger):
        return {**answer, "Type": "files", "Folder": trigger.folder}
    start = datetime.fromtimestamp(trigger.created_ms // 1000, UTC)
    expression = parse_schedule(trigger.expression)
    return {
        **answer,
        "Type": "schedule",
        "ScheduleExpression": trigger.expression,
        "ScheduleExpressionTimezone": trigger.timezone,
        "NextTime": next_slot(expression, datetime.now(UTC), _zone(trigger.timezone), start=start),
    }


OPERATIONS: Mapping[str, Operation] = {
    "DeleteTrigger": delete_trigger,
    "ListTriggers": list_triggers,
    "PutFileTrigger": put_file_trigger,
    "PutSchedule": put_schedule,
}
