"""Triggers: stored bindings of a source to a function. Routes, for HTTP, are of their own kind."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_MOST_NAME_CHARACTERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Runs a function at each slot of an expression."""

    name: str
    id: str  # another one whenever what it says changes
    function: str
    expression: str  # "rate(5 minutes)", "cron(0 9 ? * MON-FRI *)"
    timezone: str = "UTC"  # of the wall times that a cron expression names
    created_ms: int  # since the Unix epoch; a rate counts from here


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTrigger:
    """Runs a function for each file that is completed in a folder or below it."""

    name: str
    id: str  # another one whenever what it says changes
    function: str
    folder: str  # absolute path
    created_ms: int  # since the Unix epoch; files from before it are nobody's news


Trigger = Schedule | FileTrigger


@dataclass(frozen=True, slots=True)
class TriggerSet:
    """All triggers of the account at one time, in the order of their names."""

    schedules: tuple[Schedule, ...] = ()
    files: tuple[FileTrigger, ...] = ()


def own_name(function: str, *what: str) -> str:
    """The name of a trigger that was given none: the same for the same binding."""
    digest = hashlib.sha256("\0".join(what).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{function[: _MOST_NAME_CHARACTERS - len(digest) - 1]}-{digest}"


def trigger_to_record(trigger: Trigger) -> dict[str, Any]:
    """Plain values for msgpack; the inverse of `trigger_from_record`."""
    kind = "schedule" if isinstance(trigger, Schedule) else "files"
    return {"kind": kind, **asdict(trigger)}


def trigger_from_record(record: Mapping[str, Any]) -> Trigger:
    members = {name: value for name, value in record.items() if name != "kind"}
    return Schedule(**members) if record["kind"] == "schedule" else FileTrigger(**members)
