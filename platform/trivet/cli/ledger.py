"""trivet ledger: whether every asynchronous event ended once, was billed for and was told of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from trivet.cli.door import Door, named
from trivet.cli.names import complete_function
from trivet.cli.options import Data, Json
from trivet.cli.running import require_running
from trivet.cli.screen import DIM, GREEN, RED, command, harmless, paint
from trivet.errors import CallerError, PlatformError
from trivet.settings import read_settings

app = typer.Typer(help="The ledger of asynchronous events.", no_args_is_help=True)

PATIENCE_S = 900

_MOST_ACCEPTED_BYTES = 10_000_000  # as the model has it: 270,000 ids


@app.command()
def check(
    function: Annotated[
        str,
        typer.Option(help="Only this one.", autocompletion=complete_function, show_default=False),
    ] = "",
    accepted: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Request ids that a client saw accepted, one a line."),
    ] = None,
    quiesced: Annotated[
        bool, typer.Option("--quiesced", help="Nothing may be in flight or untold.")
    ] = False,
    most_aborted: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="More aborted deliveries than this are too many."),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Recompute from all that is kept whether nothing was lost, and print a line per invariant.

    Exit code 1 says that one of them does not hold. The platform may be at work meanwhile.
    """
    settings = read_settings(flags={"data": data})
    wanted: dict[str, Any] = {"Quiesced": quiesced}
    if function:
        wanted["Function"] = named(function).name
    if accepted is not None:
        wanted["Accepted"] = _ids(accepted)
    if most_aborted is not None:
        wanted["MostAborted"] = most_aborted
    door = Door(settings, require_running(settings))
    with door.answers():
        told = door.client("trivet", patience_s=PATIENCE_S).check_ledger(**wanted)
    if as_json:
        print(json.dumps(_record(told)))
    else:
        print("\n".join(lines(told)))
    broken = [each["Name"] for each in told["Invariants"] if not each["Holds"]]
    if broken:
        verb = "does" if len(broken) == 1 else "do"
        message = f"the ledger does not add up: {', '.join(broken)} {verb} not hold"
        raise PlatformError(message, hint=f"{command()} ledger check --json")


def _ids(path: Path) -> bytes:
    try:
        ids = path.read_bytes()
    except OSError as error:
        raise CallerError(f"{path} cannot be read: {error.strerror}") from error
    if len(ids) > _MOST_ACCEPTED_BYTES:
        size = f"{len(ids):,} bytes of {_MOST_ACCEPTED_BYTES:,}"
        hint = f"split --lines=250000 {path}  # and check each part"
        raise CallerError(f"{path} is too long for one check: {size}", hint=hint)
    return ids


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    """What CheckLedger answered: one line for each invariant, and below it what breaks it."""
    for each in told["Invariants"]:
        mark = paint("✓", GREEN) if each["Holds"] else paint("✗", RED)
        yield f"{mark} {each['Name']}  {harmless(each['Words'])}"
        for problem in each["Problems"]:
            yield f"      {harmless(problem)}"
        if more := each["ProblemCount"] - len(each["Problems"]):
            yield f"      and {more:,} more"
        if each["Advice"]:
            yield f"      → {harmless(each['Advice'])}"
    count = told["Functions"]
    yield paint(f"  {count:,} function{'' if count == 1 else 's'} checked", DIM)


def _record(told: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "holds": told["Holds"],
        "functions": told["Functions"],
        "invariants": [
            {
                "name": each["Name"],
                "holds": each["Holds"],
                "words": each["Words"],
                "figures": each["Figures"],
                "problems": each["Problems"],
                "problemCount": each["ProblemCount"],
                "advice": each["Advice"],
            }
            for each in told["Invariants"]
        ],
    }
