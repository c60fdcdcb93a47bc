"""trivet ls: the functions that are deployed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from trivet.cli import names
from trivet.cli.door import Door
from trivet.cli.options import Data, Json
from trivet.cli.running import require_running
from trivet.cli.screen import DIM, aligned, command, paint, say, size
from trivet.settings import read_settings

_HEAD = ("function", "runtime", "handler", "memory", "timeout", "size", "changed")
_STEPS = ((60, "s"), (60, "min"), (24, "h"), (1_000_000, "d"))


def ls(data: Data = None, as_json: Json = False) -> None:
    """List the functions."""
    settings = read_settings(flags={"data": data})
    door = Door(settings, require_running(settings))
    with door.answers():
        functions = list(_functions(door.client("lambda")))
    names.remember(settings, (function["FunctionName"] for function in functions))
    if as_json:
        print(json.dumps(functions))
        return
    if not functions:
        say(f"  there are no functions; begin with: {command()} deploy FILE")
        return
    head, *rows = aligned([_HEAD, *map(_row, functions)])
    print(paint(head, DIM))
    print("\n".join(rows))


def _functions(api: Any) -> Iterator[dict[str, Any]]:
    arguments: dict[str, str] = {}
    while True:
        page = api.list_functions(**arguments)
        yield from page["Functions"]
        if not page.get("NextMarker"):
            return
        arguments["Marker"] = page["NextMarker"]


def _row(function: dict[str, Any]) -> tuple[str, ...]:
    changed = datetime.strptime(function["LastModified"], "%Y-%m-%dT%H:%M:%S.%f%z")
    return (
        function["FunctionName"],
        function.get("Runtime", ""),
        function.get("Handler", ""),
        f"{function['MemorySize']} MB",
        f"{function['Timeout']} s",
        size(function["CodeSize"]),
        _ago(time.time() - changed.timestamp()),
    )


def _ago(elapsed_s: float) -> str:
    number = max(0, int(elapsed_s))
    for count, unit in _STEPS:
        if number < count:
            return f"{number} {unit} ago"
        number //= count
    return "long ago"
