"""Sources: triggers that are not HTTP: folders whose files run functions, and schedules."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from trivet.cli.door import Door, Refused
from trivet.cli.options import Data, Json, Quiet
from trivet.cli.running import require_running
from trivet.cli.screen import command, harmless
from trivet.errors import CallerError
from trivet.settings import read_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A schedule or a file trigger, as the platform describes it."""

    type: str  # "files" or "schedule"
    name: str
    function: str
    folder: str = ""
    expression: str = ""
    timezone: str = ""

    @property
    def row(self) -> tuple[str, ...]:
        what = self.folder or self.expression
        zone = "" if self.timezone in ("", "UTC") else self.timezone
        return (self.type, self.name, what, self.function, zone)


Name = Annotated[
    str | None,
    typer.Option(help="Name of the trigger; made up if left out.", show_default=False),
]
Function = Annotated[str, typer.Argument(help="Name or ARN.")]


def files(
    function: Function,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder of this machine.")],
    name: Name = None,
    data: Data = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Let every file completed in DIR, or below it, run FUNCTION with an S3 event.

    Files that are there already run nothing; nor do links, and names that are hidden or temporary:
    .name, ~name, name~, name.part, name.tmp and their like.
    """
    path = os.path.realpath(folder)
    if not os.path.isdir(path):
        raise CallerError(f"there is no folder {folder}", hint=f"mkdir -p {folder}")
    _make(data, "put_file_trigger", function, {"Folder": path}, name, quiet, as_json)


def schedule(
    function: Function,
    expression: Annotated[
        str, typer.Argument(help="'rate(5 minutes)' or 'cron(0 9 ? * MON-FRI *)'")
    ],
    timezone: Annotated[str, typer.Option(help="Of a cron expression: Europe/Berlin.")] = "UTC",
    name: Name = None,
    data: Data = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run FUNCTION at the slots of an EventBridge expression, each of them once."""
    arguments = {"ScheduleExpression": expression, "ScheduleExpressionTimezone": timezone}
    _make(data, "put_schedule", function, arguments, name, quiet, as_json)


def sources(door: Door) -> Iterator[Source]:
    """All schedules and file triggers."""
    pages = door.client("trivet").get_paginator("list_triggers")
    for page in pages.paginate():
        yield from map(_source, page["Triggers"])


def remove(door: Door, name: str) -> bool:
    """Remove a schedule or a file trigger. False if there is none of that name."""
    try:
        with door.answers():
            door.client("trivet").delete_trigger(Name=name)
    except Refused as error:
        if error.kind != "ResourceNotFoundException":
            raise
        return False
    return True


def _make(
    data: str | None,
    operation: str,
    function: str,
    arguments: Mapping[str, str],
    name: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    settings = read_settings(flags={"data": data})
    door = Door(settings, require_running(settings))
    named = {"Name": name} if name else {}
    with door.answers():
        door.require_function(function)
        api = door.client("trivet")
        made = _source(getattr(api, operation)(Function=function, **arguments, **named))
    if as_json:
        print(json.dumps(asdict(made)))
    elif not quiet:
        kind, trigger_name, what, function_name, _ = made.row
        print(f"{kind}  {harmless(what)}  ->  {function_name}")
        print(f"       remove it with: {command()} trigger rm {trigger_name}")


def _source(described: Mapping[str, Any]) -> Source:
    return Source(
        type=described["Type"],
        name=described["Name"],
        function=described["Function"],
        folder=described.get("Folder", ""),
        expression=described.get("ScheduleExpression", ""),
        timezone=described.get("ScheduleExpressionTimezone", ""),
    )
