"""trivet events: asynchronous events, those that ended and those in flight, and one of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from trivet.cli.door import Door, named
from trivet.cli.names import complete_function
from trivet.cli.options import Data, Json
from trivet.cli.running import require_running
from trivet.cli.screen import BOLD, DIM, aligned, harmless, paint, say
from trivet.settings import read_settings

REQUEST_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)

_HEAD = ("accepted", "request id", "function", "state", "attempts", "last error", "condition")
_MOST_ON_A_PAGE = 1_000
_MOST_SHOWN = 4_000  # characters of a payload


class EventState(StrEnum):
    """How an event ended, or where it is."""

    SUCCESS = "success"
    DESTINATION = "destination"
    DEAD = "dead"
    EXPIRED = "expired"
    DROPPED = "dropped"
    WAITING = "waiting"
    DELAYED = "delayed"


def events(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FUNCTION|ID",
            help="Events of a function, or the one with this request id.",
            autocompletion=complete_function,
            show_default=False,
        ),
    ] = "",
    state: Annotated[
        EventState | None,
        typer.Option(help="Only these; dead: the dead letters.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The newest so many.")] = 20,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List asynchronous events, the newest first; or show one, with its attempts and payload."""
    settings = read_settings(flags={"data": data})
    door = Door(settings, require_running(settings))
    if REQUEST_ID.fullmatch(what):
        with door.answers():
            found = door.client("trivet").get_event(Id=what)
        print(json.dumps(record(found)) if as_json else "\n".join(described(found)))
        return
    function = named(what).name if what else ""
    with door.answers():
        listed = list(listing(door.client("trivet"), function, state, limit))
        if function and not listed:
            # No events may mean no such function, which is the better thing to say.
            door.require_function(function)
    if as_json:
        print(json.dumps([record(each) for each in listed]))
        return
    if not listed:
        say("  there are no such events")
        return
    head, *rows = aligned([_HEAD, *map(_row, listed)])
    print(paint(head, DIM))
    print("\n".join(rows))


def listing(
    api: Any, function: str, state: EventState | None, limit: int
) -> Iterator[Mapping[str, Any]]:
    """The newest events; of all functions together no more than a page of them."""
    arguments: dict[str, Any] = {}
    if function:
        arguments["Function"] = function
    if state is not None:
        arguments["State"] = state.value
    while limit > 0:
        page = api.list_events(MaxItems=min(limit, _MOST_ON_A_PAGE), **arguments)
        yield from page["Events"]
        limit -= len(page["Events"])
        if not page.get("NextMarker"):
            return
        arguments["Marker"] = page["NextMarker"]


def _row(event: Mapping[str, Any]) -> tuple[str, ...]:
    attempts = event["Attempts"]
    last = attempts[-1] if attempts else {}
    is_error = last.get("Status", "ok") != "ok"
    return (
        _moment(event["AcceptedTime"]),
        event["Id"],
        event["Function"],
        event["State"],
        str(len(attempts)),
        last.get("ErrorType") or (last["Status"] if is_error else ""),
        event.get("Condition") or "",
    )


def _moment(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def _exact(at: datetime) -> str:
    local = at.astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S}.{local.microsecond // 1000:03d}"


def described(event: Mapping[str, Any]) -> Iterator[str]:
    """The lines about one event, as GetEvent answers it."""
    yield paint(f"event {harmless(event['Id'])}", BOLD)
    yield from (f"  {line}" for line in aligned(list(_facts(event))))
    attempts = event["Attempts"]
    yield paint("attempts" if attempts else "no attempts", BOLD)
    yield from (f"  {line}" for line in aligned([_attempt(*each) for each in enumerate(attempts)]))
    if "Payload" not in event:
        yield paint("its payload was too large to be kept", BOLD)
        return
    yield paint("payload", BOLD)
    text = _pretty(event["Payload"])
    yield from (f"  {harmless(line)}" for line in text[:_MOST_SHOWN].splitlines())
    if (more := len(text) - _MOST_SHOWN) > 0:
        yield paint(f"  … {more:,} more characters: all of it with --json", DIM)


def _facts(event: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "function", event["Function"]
    condition = event.get("Condition")
    by = f", run by {event['RunBy']}" if event.get("RunBy") else ""
    yield "state", event["State"] + (f" ({condition})" if condition else by)
    yield "accepted", _exact(event["AcceptedTime"])
    if "EndedTime" in event:
        yield "ended", _exact(event["EndedTime"])
    if "DueTime" in event:
        yield "due", _exact(event["DueTime"])
    if event["Aborted"]:
        yield "aborted", f"{event['Aborted']} deliveries: what ran them died"
    if told := event.get("Destination"):
        yield "told", f"{told['Target']}: {_told(told)}"


def _told(told: Mapping[str, Any]) -> str:
    if told["Status"] == "waiting":
        return f"not yet; {told['Record']}"
    if told["Status"] == "delivered":
        return f"delivered, as request {told['Id']}" if told.get("Id") else "delivered"
    return "delivered more than a day ago, or not to be delivered"


def _attempt(index: int, attempt: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(index + 1),
        _exact(attempt["EndedTime"]),
        attempt["Status"],
        attempt.get("ErrorType") or "",
        attempt["Version"],
        f"billed {attempt['BilledMs']} ms at {attempt['MemoryMb']} MB",
    )


def _pretty(payload: str) -> str:
    try:
        return json.dumps(json.loads(payload), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return payload


def record(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event for scripts. Times are in milliseconds since the Unix epoch."""
    told = event.get("Destination")
    made: dict[str, Any] = {
        "requestId": event["Id"],
        "function": event["Function"],
        "state": event["State"],
        "condition": event.get("Condition"),
        "acceptedMs": _ms(event["AcceptedTime"]),
        "endedMs": _ms(event.get("EndedTime")),
        "dueMs": _ms(event.get("DueTime")),
        "attempts": [
            {
                "endedMs": _ms(each["EndedTime"]),
                "status": each["Status"],
                "errorType": each.get("ErrorType"),
                "version": each["Version"],
                "billedMs": each["BilledMs"],
                "memoryMb": each["MemoryMb"],
            }
            for each in event["Attempts"]
        ],
        "aborted": event["Aborted"],
        "hasPayload": event["HasPayload"],
    }
    if "Payload" in event:
        made["payload"] = _value(event["Payload"])
    if event.get("RunBy"):
        made["runBy"] = event["RunBy"]
    if told:
        made["destination"] = {
            "target": told["Target"],
            "status": told["Status"],
            "requestId": told.get("Id"),
            "record": _value(told["Record"]) if "Record" in told else None,
        }
    return made


def _ms(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1000)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
