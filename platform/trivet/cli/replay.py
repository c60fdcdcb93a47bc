"""trivet replay: send an event that has ended again, as a new one; or all dead letters at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from trivet.cli.door import Door, Refused, named
from trivet.cli.events import REQUEST_ID, EventState, listing
from trivet.cli.names import complete_function
from trivet.cli.options import Data, Json, Quiet
from trivet.cli.running import require_running
from trivet.cli.screen import command, harmless, say
from trivet.errors import CallerError, PlatformError
from trivet.settings import Settings, read_settings

_MOST = 100_000  # events in one go


class Ended(StrEnum):
    """How an event that is to be sent again has ended."""

    SUCCESS = "success"
    DESTINATION = "destination"
    DEAD = "dead"
    EXPIRED = "expired"
    DROPPED = "dropped"


def replay(
    request_id: Annotated[
        str, typer.Argument(metavar="ID", help="Its request id.", show_default=False)
    ] = "",
    payload: Annotated[
        str | None,
        typer.Option(
            "--payload", "-d", metavar="JSON|FILE|-", help="Another payload.", show_default=False
        ),
    ] = None,
    function: Annotated[
        str,
        typer.Option(
            help="The function it is of.", autocompletion=complete_function, show_default=False
        ),
    ] = "",
    state: Annotated[
        Ended | None,
        typer.Option(help="All of --function that ended like this.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Also if they are several.")] = False,
    data: Data = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Send an event that has ended again: trivet replay ID, or replay --state dead --function F

    The new event has a request id of its own, which is printed.
    """
    settings = read_settings(flags={"data": data})
    name = named(function).name if function else ""
    if state is None:
        pairs = [_one(settings, request_id, name, payload)]
        failures: dict[str, str] = {}
    else:
        _check_all(request_id, name, payload)
        pairs, failures = _all(settings, name, EventState(state.value), is_agreed=yes)
    if as_json:
        records = [{"requestId": new, "replayOf": old} for old, new in pairs]
        print(json.dumps(records[0] if state is None else records))
    else:
        for old, new in pairs:
            print(new if quiet else f"{new}  again after {old}")
    for old, words in failures.items():
        say(f"  ✗ {old}: {harmless(words)}")
    if failures:
        message = f"{len(failures)} of {len(failures) + len(pairs)} were not sent again"
        raise PlatformError(message, hint=f"{command()} events {name} --state {state}")


Pair = tuple[str, str]  # request ids, the old one's and the new one's


def _one(settings: Settings, request_id: str, function: str, payload: str | None) -> Pair:
    if not REQUEST_ID.fullmatch(request_id):
        message = f"'{request_id}' is not a request id" if request_id else "which event?"
        raise CallerError(message, hint=f"{command()} events")
    wanted: dict[str, Any] = {"Id": request_id}
    if function:
        wanted["Function"] = function
    if payload is not None:
        wanted["Payload"] = _json(payload)
    door = Door(settings, require_running(settings))
    with door.answers():
        answer = _api(door).replay_event(**wanted)
    return request_id, answer["Id"]


def _check_all(request_id: str, function: str, payload: str | None) -> None:
    if request_id or payload is not None:
        hint = f"{command()} replay ID"
        raise CallerError("--state sends many events again, each as it was", hint=hint)
    if not function:
        hint = f"{command()} replay --state dead --function NAME"
        raise CallerError("--state sends the events of one --function again", hint=hint)


def _all(
    settings: Settings, function: str, state: EventState, *, is_agreed: bool
) -> tuple[list[Pair], dict[str, str]]:
    """Those that were sent again, and why the others were not."""
    door = Door(settings, require_running(settings))
    with door.answers():
        api = _api(door)
        found = list(listing(api, function, state, _MOST))
        if len(found) > 1 and not is_agreed:
            words = f"{len(found):,} events of {function} are {state.value}"
            hint = f"{command()} replay --state {state.value} --function {function} --yes"
            raise CallerError(f"{words}: nothing was sent again", hint=hint)
    say(f"  {len(found):,} events of {function} are {state.value}")
    pairs: list[Pair] = []
    failures: dict[str, str] = {}
    for event in reversed(found):  # in the order they came
        try:
            with door.answers():
                pairs.append((event["Id"], _again(api, event)))
        except Refused as error:
            failures[event["Id"]] = error.message
    return pairs, failures


def _again(api: Any, event: Mapping[str, Any]) -> str:
    answer = api.replay_event(Id=event["Id"], Function=event["Function"], Entry=event["Entry"])
    return str(answer["Id"])


def _api(door: Door) -> Any:
    # Once: an event that is sent again twice runs twice.
    return door.client("trivet", attempts=1)


def _json(payload: str) -> str:
    """What the option says: JSON, or a file of it. Raises CallerError."""
    path = Path(payload.removeprefix("@"))
    try:
        if payload == "-":
            text = sys.stdin.buffer.read().decode()
        elif payload.startswith("@") or (not _is_json(payload) and path.is_file()):
            text = path.read_text(encoding="utf-8")
        else:
            text = payload
        json.loads(text)
    except OSError as error:
        raise CallerError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CallerError(f"the payload is not JSON: {error}") from error
    return text


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
