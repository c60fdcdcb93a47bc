"""trivet up: become the launcher, or start one that stays."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from trivet.cli.options import Data, Json, Quiet
from trivet.cli.running import find_running, make_data_folder
from trivet.cli.screen import command, say
from trivet.errors import PlatformError, TrivetError
from trivet.settings import VARIABLE, Settings, read_settings

# The parts of a first start have the machine's caches to fill; a later one takes a second.
DEADLINE_S = 60.0


class StartRefused(TrivetError):
    """The launcher said why it does not start. `exit_code` is its own."""

    exit_code = 1


Text = Annotated[str | None, typer.Option(show_default=False)]
Number = Annotated[int | None, typer.Option(show_default=False)]
Port = Annotated[int | None, typer.Option(help="0: any free one.", show_default=False)]


def up(
    *,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when it is ready; it stays.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    data: Data = None,
    host: Text = None,
    aws_port: Port = None,
    http_port: Port = None,
    region: Text = None,
    account: Text = None,
    express_url: Text = None,
    durable_url: Text = None,
    durability: Text = None,
    runtimes: Text = None,
    max_environments: Number = None,
    max_concurrency: Number = None,
    keep_warm_ms: Number = None,
) -> None:
    """Start the platform. Ctrl-C ends it; with --detach it stays until `trivet down`.

    Every option can also be a TRIVET_* variable, or a line of trivet.toml in the data folder.
    """
    settings = read_settings(
        flags={
            "data": data,
            "host": host,
            "aws_port": aws_port,
            "http_port": http_port,
            "region": region,
            "account": account,
            "express_url": express_url,
            "durable_url": durable_url,
            "durability": durability,
            "runtimes": runtimes,
            "max_environments": max_environments,
            "max_concurrency": max_concurrency,
            "keep_warm_ms": keep_warm_ms,
        }
    )
    running = find_running(settings)
    if running is not None:
        note, state = "already running", running.details
    elif detach:
        note, state = "ready", _start(settings)
    else:
        _become(settings)
    if as_json:
        print(json.dumps({name: value for name, value in state.items() if name != "banner"}))
    elif not quiet:
        say(str(state.get("banner") or _summary(note, state)).rstrip())


def _summary(note: str, state: Mapping[str, Any]) -> str:
    aws_url, http_url = state["aws_url"], state["http_url"]
    return f"  {note}    AWS endpoint {aws_url}    HTTP triggers {http_url}"


def _launcher(*options: str) -> list[str]:
    return [sys.executable, "-I", "-m", "trivet.launcher", *options]


def _variables(settings: Settings) -> dict[str, str]:
    return {**os.environ, VARIABLE: settings.to_json()}


def _become(settings: Settings) -> NoReturn:
    arguments = _launcher()
    os.execve(arguments[0], arguments, _variables(settings))


def _start(settings: Settings) -> dict[str, Any]:
    """Start a launcher of its own session; what it says when it is ready. Raises TrivetError."""
    try:
        make_data_folder(settings)
        settings.run_path.mkdir(mode=0o700, exist_ok=True)
        log = _open_log(settings.run_path / "platform.log")
    except OSError as error:
        message = f"the data folder cannot be used: {error.filename}: {error.strerror}"
        raise PlatformError(message, hint="export TRIVET_DATA=/a/folder/of/yours") from error
    reading, writing = os.pipe()
    process = subprocess.Popen(
        _launcher("--ready-fd", str(writing)),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(writing,),
        start_new_session=True,
        env=_variables(settings),
    )
    os.close(writing)
    os.close(log)
    try:
        line = _line(reading, time.monotonic() + DEADLINE_S)
        return _answer(settings, line)
    except BaseException:
        # Refused, given up, or Ctrl-C: nobody would know of a platform that came up after all.
        process.terminate()
        process.wait()
        raise
    finally:
        os.close(reading)


def _open_log(path: Path) -> int:
    """The detached launcher's output; the one before is kept, for whoever asks why it ended."""
    if path.exists():
        path.replace(path.with_name(f"{path.name}.1"))
    # The folder may be another's to write as well: a link that lies there is not followed.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o640)


def _line(descriptor: int, deadline: float) -> bytes:
    """The first line from a descriptor, or what came of it before its end or the deadline."""
    line = b""
    while not line.endswith(b"\n"):
        remaining = max(0.0, deadline - time.monotonic())
        if not select.select([descriptor], [], [], remaining)[0]:
            message = f"the platform was not ready within {DEADLINE_S:.0f} s"
            raise PlatformError(message, hint=f"{command()} up")
        chunk = os.read(descriptor, 65_536)
        if not chunk:
            break
        line += chunk
    return line


def _answer(settings: Settings, line: bytes) -> dict[str, Any]:
    log = settings.run_path / "platform.log"
    try:
        answer: dict[str, Any] = json.loads(line)
    except ValueError:
        message = "the platform ended before it was ready"
        raise PlatformError(message, hint=f"tail -n 50 {log}") from None
    if "error" not in answer:
        return answer
    refused = StartRefused(str(answer["error"]), hint=str(answer.get("hint") or ""))
    refused.exit_code = int(answer.get("exit_code", 1))
    raise refused
