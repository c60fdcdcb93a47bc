"""trivet runtime: the interpreters that functions run on; which there are, one more, one less."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from trivet.cli.options import Data, Json, Quiet
from trivet.cli.running import find_running, make_data_folder
from trivet.cli.screen import DIM, GREEN, RED, aligned, command, paint, say
from trivet.errors import CallerError, Conflict, PlatformError
from trivet.runtimes import NODE_NAMES, discover, folders, own_runtime
from trivet.settings import Settings, read_settings

app = typer.Typer(help="Runtimes: list them, add one, remove one.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="nodejs22.x, python3.12, ...")]

State = Literal["in use", "from the next start on", "refused", "not added"]
_COLOURS = {"in use": GREEN, "refused": RED, "not added": DIM}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A runtime as `trivet runtime list` tells of it."""

    name: str
    version: str = ""
    state: State
    place: str = ""  # the interpreter; of one that is refused the reason, else what adds it


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List the runtimes that are here, and those that can be added."""
    settings = read_settings(flags={"data": data})
    runtimes = list(_listed(settings))
    if as_json:
        print(json.dumps([asdict(runtime) for runtime in runtimes]))
        return
    lines = aligned([(r.name, r.version, r.state, r.place) for r in runtimes])
    for runtime, line in zip(runtimes, lines, strict=True):
        mark = "·" if runtime.state == "not added" else "✗" if runtime.state == "refused" else "✓"
        print(f"  {paint(f'{mark} {line}', _COLOURS.get(runtime.state, ''))}")


@app.command()
def add(name: Name, data: Data = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Add a runtime: Node.js is fetched; a Python is found on PATH, in pyenv or in uv."""
    settings = read_settings(flags={"data": data})
    start = time.monotonic()
    if name in NODE_NAMES:
        folder = _folder(settings)
        is_new = _add_node(name, folder / name, quiet=quiet)
    else:
        is_new = _add_python(settings, name)
    elapsed_s = time.monotonic() - start
    added = next((runtime for runtime in _listed(settings) if runtime.name == name), None)
    if added is None or added.state == "refused":
        reason = added.place if added else "it is not found afterwards"
        message = f"{name} was added and will not be used: {reason}"
        raise PlatformError(message, hint=f"{command()} runtime list")
    if as_json:
        print(json.dumps(asdict(added)))
    elif not quiet:
        done = f"added in {elapsed_s:.1f} s" if is_new else "is there already"
        say(f"  {paint('✓', GREEN)} {name} {added.version} {done}")
        _tell_when(settings, added)


@app.command()
def remove(name: Name, data: Data = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Remove a runtime that was added. The functions on it stay, and cannot run."""
    settings = read_settings(flags={"data": data})
    if name == own_runtime().name:
        message = f"{name} is what Trivet itself runs on"
        raise CallerError(message, hint=f"{command()} runtime list")
    if name in _in_use(settings):
        message = f"the running platform uses {name}"
        raise Conflict(message, hint=f"{command()} down; {command()} runtime remove {name}")
    if not any([_remove(folder, name) for folder in folders(settings)]):
        message = f"no runtime {name} was added"
        raise CallerError(message, hint=f"{command()} runtime list")
    if as_json:
        print(json.dumps({"removed": name}))
    elif not quiet:
        say(f"  {paint('✓', GREEN)} {name} removed")


# ------------------------------------------------------------------------- listing


def _listed(settings: Settings) -> Iterator[Listed]:
    found, refused = discover(settings)
    in_use = _in_use(settings)
    for runtime in found:
        state: State = "in use" if runtime.name in in_use else "from the next start on"
        yield Listed(name=runtime.name, version=runtime.version, state=state, place=runtime.program)
    for each in refused:
        yield Listed(name=each.name, state="refused", place=each.reason)
    present = {runtime.name for runtime in found} | {each.name for each in refused}
    for name in _addable():
        if name not in present:
            yield Listed(name=name, state="not added", place=f"{command()} runtime add {name}")


def _in_use(settings: Settings) -> frozenset[str]:
    running = find_running(settings)
    runtimes = running.details.get("runtimes", ()) if running else ()
    return frozenset(str(runtime["name"]) for runtime in runtimes)


def _addable() -> Iterator[str]:
    from trivet.cli.fetching import lock_of
    from trivet.cli.pythons import names_found

    yield from (name for name in NODE_NAMES if lock_of(name))
    yield from names_found(os.environ)


def _tell_when(settings: Settings, added: Listed) -> None:
    if added.state != "in use" and find_running(settings):
        again = f"{command()} down; {command()} up --detach"
        say(f"  it is used from the next start on: {again}")


# -------------------------------------------------------------------------- adding


def _folder(settings: Settings) -> Path:
    """The folder of runtimes to add to: beside the interpreter, if that is ours to write."""
    for folder in folders(settings):
        try:
            if folder == settings.data_path / "runtimes":
                make_data_folder(settings)
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    message = f"neither {' nor '.join(map(str, folders(settings)))} can be written"
    raise PlatformError(message, hint="export TRIVET_RUNTIMES=/a/folder/of/yours")


def _add_node(name: str, place: Path, *, quiet: bool) -> bool:
    """Whether it was fetched; it may be there already."""
    from trivet.cli.fetching import fetch, is_fetched, lock_of

    lock = lock_of(name)
    if lock is None:
        raise PlatformError(f"the lock of {name} is missing", hint=f"{command()} runtime list")
    if is_fetched(lock, place):
        return False
    if not quiet:
        say(f"  fetching Node.js {name.removeprefix('nodejs').removesuffix('.x')} (60 MB) ...")
    fetch(lock, place, quiet=quiet)
    return True


def _add_python(settings: Settings, name: str) -> bool:
    from trivet.cli import pythons

    if not pythons.NAME.fullmatch(name) or not pythons.is_new_enough(name):
        message = f"there is no runtime '{name}' to add: it is {', '.join(NODE_NAMES)}"
        raise CallerError(f"{message}, or python3.9 and later", hint=f"{command()} runtime list")
    if name == own_runtime().name:
        return False
    python = pythons.find_python(name, os.environ, as_root=os.geteuid() == 0)
    pythons.add(_folder(settings), python)
    return True


def _remove(folder: Path, name: str) -> bool:
    from trivet.cli import pythons

    if name in NODE_NAMES and (folder / name).is_dir():
        shutil.rmtree(folder / name)
        return True
    return pythons.remove(folder, name)
