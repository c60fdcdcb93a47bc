"""trivet ls: the functions that are deployed."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from trivet.cli import names
from trivet.cli.door import Door
from trivet.cli.options import Data, Json
from trivet.cli.running import require_running
from trivet.cli.screen import DIM, aligned, command, paint, say, size
from trivet.settings import read_settings

_HEAD = ("function", "runtime", "handler", "memory", "timeout", "size", "isolation", "changed")
_ANSWER_WITHIN_S = 5.0
_STEPS = ((60, "s"), (60, "min"), (24, "h"), (1_000_000, "d"))


def ls(data: Data = None, as_json: Json = False) -> None:
    """List the functions."""
    settings = read_settings(flags={"data": data})
    running = require_running(settings)
    door = Door(settings, running)
    with door.answers():
        functions = list(_functions(door.client("lambda")))
    level_of = _levels(running.aws_url)
    for function in functions:
        function["Isolation"] = level_of(function.get("Runtime", ""))
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


def _levels(aws_url: str) -> Callable[[str], str]:
    """The isolation of functions by their runtime, of which AWS's own answers know nothing."""
    # No proxy is asked for what is here.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{aws_url}/health", timeout=_ANSWER_WITHIN_S) as answer:
            told = json.load(answer)["isolation"]
    except (OSError, ValueError, KeyError):  # a platform that is not well says so elsewhere
        return lambda runtime: "unknown"
    runtimes = told.get("runtimes", {})
    return lambda runtime: str(runtimes.get(runtime, told["level"]))


def _row(function: dict[str, Any]) -> tuple[str, ...]:
    changed = datetime.strptime(function["LastModified"], "%Y-%m-%dT%H:%M:%S.%f%z")
    return (
        function["FunctionName"],
        function.get("Runtime", ""),
        function.get("Handler", ""),
        f"{function['MemorySize']} MB",
        f"{function['Timeout']} s",
        size(function["CodeSize"]),
        function["Isolation"],
        _ago(time.time() - changed.timestamp()),
    )


def _ago(elapsed_s: float) -> str:
    number = max(0, int(elapsed_s))
    for count, unit in _STEPS:
        if number < count:
            return f"{number} {unit} ago"
        number //= count
    return "long ago"
