"""trivet rm: delete a function, and the triggers that would lead to nothing."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from trivet.cli import names, sources, trigger
from trivet.cli.door import Door, named
from trivet.cli.options import Data, Json, Quiet
from trivet.cli.running import require_running
from trivet.cli.screen import harmless, say
from trivet.settings import read_settings


def rm(
    name: Annotated[
        str,
        typer.Argument(help="Name or ARN of the function.", autocompletion=names.complete_function),
    ],
    data: Data = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Delete a function and its triggers. Its logs stay, and so does what it cost."""
    settings = read_settings(flags={"data": data})
    function = named(name).name
    running = require_running(settings)
    door = Door(settings, running)
    door.require_function(function)
    with door.answers():
        removed = trigger.remove_all(door, running, function)
        for source in [each for each in sources.sources(door) if each.function == function]:
            sources.remove(door, source.name)
            removed.append(source.expression or source.folder)
        door.client("lambda").delete_function(FunctionName=function)
    names.forget_one(settings, function)
    if as_json:
        print(json.dumps({"function": function, "triggers": removed}))
    elif not quiet:
        say(f"  ✓ removed {function}{''.join(f', {harmless(each)}' for each in removed)}")
