"""Deployed triggers: those that come with a function, made where they are not there yet."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from trivet.cli import trigger
from trivet.cli.door import Door
from trivet.cli.running import Running
from trivet.core.arns import Place
from trivet.errors import CallerError


@dataclass(frozen=True, slots=True)
class Triggers:
    """What `trivet deploy` was told to run a function by."""

    paths: tuple[str, ...]
    expressions: tuple[str, ...]
    folders: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """A trigger that is there now."""

    kind: str  # "http", "schedule", "files"
    place: str  # URL, expression, folder
    told: str  # for people


def make(door: Door, running: Running, function: str, wanted: Triggers) -> list[Made]:
    """Make the triggers that a function has to have. Those that it had and has not, stay."""
    with door.answers():
        return [
            *_http(door, running, function, wanted.paths),
            *_schedules(door, function, wanted.expressions),
            *_files(door, function, wanted.folders),
        ]


def check(wanted: Triggers) -> None:
    """Raise CallerError for what cannot be, before anything is changed."""
    for folder in wanted.folders:
        if not folder.is_dir():
            hint = f"mkdir -p {shlex.quote(str(folder))}"
            raise CallerError(f"there is no folder {folder}", hint=hint)


def _http(door: Door, running: Running, function: str, paths: tuple[str, ...]) -> Iterator[Made]:
    arn = Place(running.region, running.account).function_arn(function)
    for path in paths:
        is_key = path == "$default" or " " in path
        key = path if is_key else f"ANY /{path.lstrip('/')}"
        url = trigger.ensure_http(door, running, arn, key).url
        yield Made("http", url, url)


def _schedules(door: Door, function: str, expressions: tuple[str, ...]) -> Iterator[Made]:
    for expression in expressions:
        put = door.client("trivet").put_schedule
        slot = put(Function=function, ScheduleExpression=expression).get("NextTime")
        yield Made("schedule", expression, f"{expression}  {_when(slot)}".rstrip())


def _when(slot: datetime | None) -> str:
    if slot is None:
        return ""
    local = slot.astimezone()
    seconds = max(0, round((slot - datetime.now(slot.tzinfo)).total_seconds()))
    in_time = f"in {seconds} s" if seconds < 120 else f"in {seconds // 60} min"
    day = "" if local.date() == datetime.now().astimezone().date() else f"{local:%Y-%m-%d} "
    return f"next {day}{local:%H:%M:%S} ({in_time})"


def _files(door: Door, function: str, folders: tuple[Path, ...]) -> Iterator[Made]:
    for folder in folders:
        place = os.path.realpath(folder)
        door.client("trivet").put_file_trigger(Function=function, Folder=place)
        bucket = os.path.basename(place) or "root"
        yield Made("files", place, f"{folder} → s3:ObjectCreated:*  bucket={bucket}")
