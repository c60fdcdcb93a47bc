"""trivet restart: new processes in the place of those of a running platform; no call is lost."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from trivet.cli.options import Data, Json, Quiet
from trivet.cli.running import require_running
from trivet.cli.screen import command, say
from trivet.errors import TrivetError, Unavailable
from trivet.launcher import orders
from trivet.launcher.rolling import DONE
from trivet.settings import Settings, read_settings

# Longer than the slowest part may take, which first lets functions end.
ANSWER_WITHIN_S = 120.0

_ORDER = tuple(part for part in orders.PARTS if part != orders.ALL)


class RestartStopped(TrivetError):
    """A part could not be restarted; those after it were left alone."""


class UnknownPart(TrivetError):
    exit_code = 2


def restart(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PART]...", help=f"{', '.join(_ORDER)}; none: all of them."),
    ] = None,
    *,
    data: Data = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Restart the platform's services one after another, while it serves.

    The next process of a part is there before the old one goes: calls in flight are finished, new
    ones wait for a moment, and no connection is refused. With the supervisor come new zygotes and
    a new provisioner; it lets what runs end first, for 25 seconds. Launcher and servers stay.
    """
    chosen = _chosen(parts or [])
    settings = read_settings(flags={"data": data})
    require_running(settings)
    restarted: list[dict[str, Any]] = []
    for part in chosen:
        for told in _asked(settings, part):
            if told["state"] == DONE:
                restarted.append({"part": told["part"], "ms": told["ms"]})
                if not quiet and not as_json:
                    say(f"  ✓ {told['part']} restarted in {told['ms'] / 1000:.1f} s")
    if as_json:
        print(json.dumps({"restarted": restarted}))


def _chosen(parts: list[str]) -> list[str]:
    for part in parts:
        if part not in orders.PARTS:
            message = f"there is no part called {part}"
            raise UnknownPart(
                message, hint=f"{command()} restart  # or one of: {', '.join(_ORDER)}"
            )
    return [orders.ALL] if not parts or orders.ALL in parts else list(dict.fromkeys(parts))


def _asked(settings: Settings, part: str) -> Iterator[dict[str, Any]]:
    """What the launcher says while it restarts `part`. Raises Unavailable, RestartStopped."""
    log = settings.run_path / "platform.log"
    with _connected(settings) as launcher:
        launcher.send(bytes([orders.PARTS.index(part)]))
        while True:
            try:
                message = launcher.recv(orders.MAX_ANSWER_BYTES)
            except TimeoutError as error:
                text = f"the launcher has said nothing for {ANSWER_WITHIN_S:.0f} s"
                raise Unavailable(text, hint=f"tail -n 50 {log}") from error
            except ConnectionError:
                message = b""
            if not message:
                raise Unavailable("the platform ended meanwhile", hint=f"tail -n 50 {log}")
            told: dict[str, Any] = json.loads(message)
            if not told.get("ended"):
                yield told
            elif told["error"]:
                raise RestartStopped(str(told["error"]), hint=f"tail -n 50 {log}")
            else:
                return


def _connected(settings: Settings) -> socket.socket:
    path = settings.run_path / orders.SOCKET
    launcher = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    launcher.settimeout(ANSWER_WITHIN_S)
    try:
        launcher.connect(str(path))
    except PermissionError as error:
        launcher.close()
        owner = path.owner()
        message = f"the platform on {settings.data} belongs to the user {owner}"
        hint = f"sudo -u {owner} {command()} restart --data {settings.data}"
        raise Unavailable(message, hint=hint) from error
    except OSError as error:
        launcher.close()
        message = "the launcher of this platform takes no orders: it is of an older version"
        raise Unavailable(message, hint=f"{command()} down && {command()} up --detach") from error
    return launcher
