"""trivet logs: what a function wrote, and what the platform says about its invocations.

Every line shows who wrote it: the platform's stand behind a dot, the handler's behind a bar. No
text can change that, for what it holds of line breaks and control characters is shown, not obeyed.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import typer

from trivet.cli.door import Door, Refused, named
from trivet.cli.names import complete_function
from trivet.cli.options import Data, Json
from trivet.cli.running import find_running, require_running
from trivet.cli.screen import CYAN, DIM, harmless, paint, say
from trivet.settings import Settings, read_settings

POLL_S = 0.25
LOOK_BACK_MS = 60_000

NO_GROUP = "ResourceNotFoundException"

_DURATION = re.compile(r"(\d{1,9})(s|m|h|d)\Z", re.ASCII)
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

# Node.js functions write a carriage return for a line break within one entry, as on AWS.
_BREAK = re.compile(r"\r\n|\r|\n")

_PLATFORM_MARK, _FUNCTION_MARK = "·", "|"
_SHORT_ID = 8  # hex digits of a request id: as many as its first group has


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log, as far as its source can tell."""

    at_ms: int
    kind: str  # "function", "platform"; empty: not told
    request_id: str
    stream: str
    text: str


def logs(
    name: Annotated[
        str,
        typer.Argument(help="Name or ARN of the function.", autocompletion=complete_function),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    since: Annotated[str, typer.Option(help="How far back to begin: 30s, 5m, 2h, 1d.")] = "10m",
    text: Annotated[
        str, typer.Option("--filter", help="Only lines that hold this text.", show_default=False)
    ] = "",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Print what a function wrote, and the START, END and REPORT of its invocations."""
    settings = read_settings(flags={"data": data})
    function = named(name).name
    since_ms = max(0, time.time_ns() // 1_000_000 - _duration_ms(since))
    is_empty = True
    for line in _lines(settings, function, since_ms, text, follow):
        is_empty = False
        if as_json:
            print(_json(function, line), flush=follow)
        else:
            print("\n".join(_shown(function, line)), flush=follow)
    if is_empty:
        say(f"  no lines of {function} in the last {since}")


def _duration_ms(text: str) -> int:
    match = _DURATION.match(text)
    if match is None:
        raise typer.BadParameter(f"'{text}' is not a duration as 30s, 5m, 2h or 1d are")
    return int(match[1]) * _UNIT_MS[match[2]]


def _lines(
    settings: Settings, function: str, since_ms: int, text: str, follow: bool
) -> Iterator[Line]:
    """From the files, which tell the platform's lines from the handler's; where they are not ours
    to read, from the AWS endpoint, which does not."""
    if os.access(settings.logs_path, os.R_OK | os.X_OK):
        polls = _from_files(settings, function, since_ms)
    else:
        polls = _from_endpoint(Door(settings, require_running(settings)), function, since_ms)
    is_known = False
    for lines, is_all in polls:
        yield from (line for line in lines if text in line.text)
        is_known = is_known or bool(lines)
        if not is_known and (running := find_running(settings)):
            # No lines may mean no such function, which is the better thing to say.
            Door(settings, running).require_function(function)
            is_known = True
        if is_all and not follow:
            return
        if is_all:
            time.sleep(POLL_S)


# Lines, and whether they are all there are by now.
Poll = tuple[Sequence[Line], bool]


def _from_files(settings: Settings, function: str, since_ms: int) -> Iterator[Poll]:
    from trivet.store.logs import LogReader

    reader = LogReader(settings.logs_path)
    after: str | None = None
    while True:
        found, more = reader.filter(function, start_ms=since_ms, after=after)
        after = more or (found[-1].after if found else after)
        lines = [Line(n.at_ms, n.kind, n.request_id, n.stream, n.text) for n in found]
        yield lines, more is None


def _from_endpoint(door: Door, function: str, since_ms: int) -> Iterator[Poll]:
    api = door.client("logs")
    begin_ms = since_ms
    told: dict[str, int] = {}  # event id to time, of events that a next poll may bring again
    while True:
        events: list[Any] = []
        try:
            with door.answers():
                events = [e for e in _events(api, function, begin_ms) if e["eventId"] not in told]
        except Refused as error:
            if error.kind != NO_GROUP:  # as long as the function has not run
                raise
        told.update((event["eventId"], event["timestamp"]) for event in events)
        lines = [
            Line(event["timestamp"], "", "", event["logStreamName"], event["message"])
            for event in events
        ]
        yield lines, True
        # Lines may come a little out of order, so each poll looks back over the latest.
        begin_ms = max([begin_ms, *(at_ms - LOOK_BACK_MS for at_ms in told.values())])
        told = {event_id: at_ms for event_id, at_ms in told.items() if at_ms >= begin_ms}


def _events(api: Any, function: str, begin_ms: int) -> Iterator[Any]:
    arguments: dict[str, Any] = {"logGroupName": f"/aws/lambda/{function}", "startTime": begin_ms}
    while True:
        page = api.filter_log_events(**arguments)
        yield from page["events"]
        if not page.get("nextToken"):
            return
        arguments["nextToken"] = page["nextToken"]


def _shown(function: str, line: Line) -> Iterable[str]:
    is_platform = line.kind == "platform"
    mark, colour = (_PLATFORM_MARK, CYAN) if is_platform else (_FUNCTION_MARK, "")
    at = datetime.fromtimestamp(line.at_ms / 1000).astimezone()
    head = f"{at:%H:%M:%S}.{line.at_ms % 1000:03d} {function} "
    request = harmless(line.request_id)[:_SHORT_ID].ljust(_SHORT_ID)
    for part in _BREAK.split(line.text.rstrip()):
        words = harmless(part.expandtabs(4))
        yield f"{paint(head + request, DIM)} {mark} {paint(words, colour) if colour else words}"


def _json(function: str, line: Line) -> str:
    record = {
        "timestamp": line.at_ms,
        "function": function,
        "kind": line.kind,
        "requestId": line.request_id,
        "logStream": line.stream,
        "message": line.text,
    }
    return json.dumps(record)
