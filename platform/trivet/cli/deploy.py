"""trivet deploy: a file, a folder or a zip becomes a function; what is equal is not sent again."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivet.cli import names
from trivet.cli.deployed_triggers import Made, Triggers, check, make
from trivet.cli.door import Door, named
from trivet.cli.options import Data, Json, Quiet
from trivet.cli.running import Running, require_running
from trivet.cli.screen import GREEN, command, harmless, paint, size
from trivet.errors import CallerError
from trivet.settings import read_settings

if TYPE_CHECKING:
    from trivet.cli.package import Package

# AWS wants one of every function; here it decides nothing yet.
DEFAULT_ROLE = "lambda-execution-role"

# Names that every function's file may have.
_TELL_NOTHING = frozenset({"index", "app", "lambda_function", "handler", "main", "function"})

Text = Annotated[str | None, typer.Option(show_default=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A function as it is after the verb."""

    name: str
    runtime: str
    handler: str
    size_bytes: int
    sha256: str  # hex
    what: str  # "created", "updated", "unchanged"


def deploy(
    source: Annotated[
        Path, typer.Argument(metavar="FILE|DIR|ZIP", help="index.mjs, app.py, a folder, a zip.")
    ],
    name: Annotated[
        str | None,
        typer.Option(
            help="The function; else the file's name, or its folder's.",
            autocompletion=names.complete_function,
            show_default=False,
        ),
    ] = None,
    runtime: Text = None,
    handler: Annotated[
        str | None, typer.Option(help="FILE.FUNCTION; else found.", show_default=False)
    ] = None,
    http: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Serve it there.", show_default=False)
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(metavar="EXPR", help="'rate(5 minutes)', 'cron(...)'", show_default=False),
    ] = None,
    watch: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Run it for every file there.", show_default=False),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="K=V", help="Its variables, all of them.", show_default=False),
    ] = None,
    memory: Annotated[
        int | None, typer.Option(metavar="MB", min=128, max=10_240, show_default=False)
    ] = None,
    timeout: Annotated[
        int | None, typer.Option(metavar="SECONDS", min=1, max=900, show_default=False)
    ] = None,
    role: Annotated[str | None, typer.Option(metavar="ARN", show_default=False)] = None,
    data: Data = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make or change a function: trivet deploy index.mjs --name hi --http /hi

    Runtime and handler are found in the files. What a function had and no option names stays.
    """
    from trivet.cli.package import read_package  # with zips and parsers, which help does without

    start = time.monotonic()
    settings = read_settings(flags={"data": data})
    running = require_running(settings)
    package = read_package(source)
    function = named(name).name if name else _name_of(source)
    told = {"Runtime": runtime, "Handler": handler, **_given(memory, timeout, role, env)}
    wanted = Triggers(tuple(http or ()), tuple(schedule or ()), tuple(watch or ()))
    check(wanted)
    door = Door(settings, running)
    deployed = _deployed(door, running, package, function, told)
    elapsed_ms = round((time.monotonic() - start) * 1000)
    names.remember_one(settings, function)
    if not quiet and not as_json:
        print(_line(deployed, elapsed_ms), flush=True)
    triggers = make(door, running, function, wanted)
    if as_json:
        print(json.dumps(_record(deployed, elapsed_ms, triggers)))
    elif not quiet:
        for made in triggers:
            print(f"    {made.kind:8}  {harmless(made.told)}")


# --------------------------------------------------------------------------- deciding


def _name_of(source: Path) -> str:
    """A function's name from that of its file; from its folder's, where the file's says nothing."""
    place = source.absolute()
    stem = place.name if source.is_dir() else place.stem
    if not source.is_dir() and stem in _TELL_NOTHING:
        stem = place.parent.name
    name = re.sub(r"[^a-zA-Z0-9_-]+", "-", stem).strip("-")[:64]
    if not name:
        raise CallerError(
            f"{source} gives no name for a function", hint=f"{command()} deploy {source} --name hi"
        )
    return name


def _given(
    memory: int | None, timeout: int | None, role: str | None, env: Sequence[str] | None
) -> dict[str, Any]:
    """The settings that options name, in AWS's words."""
    given: dict[str, Any] = {"MemorySize": memory, "Timeout": timeout, "Role": role}
    if env is not None:
        pairs = [text.partition("=") for text in env if text]
        if any(not (key and equals) for key, equals, _ in pairs):
            raise typer.BadParameter("a variable is KEY=VALUE", param_hint="'--env'")
        given["Environment"] = {"Variables": {key: value for key, _, value in pairs}}
    return given


def _runtimes(running: Running) -> list[str]:
    return [str(runtime["name"]) for runtime in running.details.get("runtimes", ())]


# --------------------------------------------------------------------------- carrying out


def _deployed(
    door: Door, running: Running, package: Package, function: str, told: Mapping[str, Any]
) -> Deployed:
    """Make the function, or change what differs. `told` are settings in AWS's words, or None."""
    from trivet.cli.handlers import Choice, choose

    present = door.function(function)
    before = present or {}
    choice = choose(
        package,
        Choice(told["Runtime"] or "", told["Handler"] or ""),
        Choice(before.get("Runtime", ""), before.get("Handler", "")),
        _runtimes(running),
    )
    chosen = {**told, "Runtime": choice.runtime, "Handler": choice.handler}
    wanted = {name: value for name, value in chosen.items() if value is not None}
    with door.answers():
        what = _carry_out(door.client("lambda"), running, function, package, present, wanted)
    return Deployed(
        name=function,
        runtime=choice.runtime,
        handler=choice.handler,
        size_bytes=len(package.zip_bytes),
        sha256=hashlib.sha256(package.zip_bytes).hexdigest(),
        what=what,
    )


def _carry_out(
    api: Any,
    running: Running,
    function: str,
    package: Package,
    present: Mapping[str, Any] | None,
    wanted: Mapping[str, Any],
) -> str:
    """Make the function, or change what differs; what was done."""
    if present is None:
        role = f"arn:aws:iam::{running.account}:role/{DEFAULT_ROLE}"
        settings = {"Role": role, **wanted}
        api.create_function(FunctionName=function, Code={"ZipFile": package.zip_bytes}, **settings)
        return "created"
    changes = {name: value for name, value in wanted.items() if _present(present, name) != value}
    has_other_code = present["CodeSha256"] != _digest(package)
    if has_other_code:
        api.update_function_code(FunctionName=function, ZipFile=package.zip_bytes)
    if changes:
        api.update_function_configuration(FunctionName=function, **changes)
    return "updated" if has_other_code or changes else "unchanged"


def _present(present: Mapping[str, Any], name: str) -> Any:
    if name == "Environment":
        return {"Variables": present.get("Environment", {}).get("Variables", {})}
    return present.get(name)


def _digest(package: Package) -> str:
    """As AWS writes it."""
    return base64.b64encode(hashlib.sha256(package.zip_bytes).digest()).decode()


# --------------------------------------------------------------------------- telling


def _line(deployed: Deployed, elapsed_ms: int) -> str:
    seconds = f"{elapsed_ms / 1000:.2f} s"
    done = f"unchanged, {seconds}" if deployed.what == "unchanged" else f"deployed in {seconds}"
    parts = (
        deployed.name,
        deployed.runtime,
        deployed.handler,
        size(deployed.size_bytes),
        f"sha {deployed.sha256[:4]}…",
        done,
    )
    return f"  {paint('✓', GREEN)} {harmless('  '.join(parts))}"


def _record(deployed: Deployed, elapsed_ms: int, triggers: Sequence[Made]) -> dict[str, Any]:
    return {
        "function": deployed.name,
        "runtime": deployed.runtime,
        "handler": deployed.handler,
        "codeSize": deployed.size_bytes,
        "codeSha256": deployed.sha256,
        "result": deployed.what,
        "elapsedMs": elapsed_ms,
        "triggers": [{"kind": made.kind, "place": made.place} for made in triggers],
    }
