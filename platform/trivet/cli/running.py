"""Running: what the command line can know of the platform that serves a data folder.

The launcher holds a lock for as long as it lives; what it wrote counts only while it does.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivet.cli.screen import command
from trivet.errors import Unavailable
from trivet.settings import Settings


class NotRunning(Unavailable):
    """No platform serves the data folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A running platform, in the words of its state file."""

    pid: int  # of the launcher
    aws_url: str
    http_url: str
    region: str
    account: str
    details: Mapping[str, Any]  # the whole file


def make_data_folder(settings: Settings) -> None:
    """As the launcher would make it: its owner's; root's can be passed through by the services."""
    mode = 0o711 if os.geteuid() == 0 else 0o700
    settings.data_path.mkdir(mode=mode, parents=True, exist_ok=True)


def is_locked(settings: Settings) -> bool:
    """Whether a launcher serves this data folder: starting, ready or ending."""
    try:
        lock = os.open(settings.run_path / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as error:
        raise _of_another_user(settings) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def find_running(settings: Settings) -> Running | None:
    """The platform of this data folder, once it is ready and until it has ended."""
    if not is_locked(settings):
        return None
    try:
        state = json.loads((settings.run_path / "platform.json").read_bytes())
        return Running(
            pid=int(state["pid"]),
            aws_url=str(state["aws_url"]),
            http_url=str(state["http_url"]),
            region=str(state.get("region", settings.region)),
            account=str(state.get("account", settings.account)),
            details=state,
        )
    except (FileNotFoundError, ValueError, KeyError):
        return None
    except PermissionError as error:
        raise _of_another_user(settings) from error


def require_running(settings: Settings) -> Running:
    """The running platform. Raises NotRunning."""
    found = find_running(settings)
    if found is None:
        raise not_running(settings)
    return found


def not_running(settings: Settings) -> NotRunning:
    return NotRunning(f"no platform is running on {settings.data}", hint=f"{command()} up --detach")


def _of_another_user(settings: Settings) -> NotRunning:
    try:
        owner = Path(settings.run_path).owner()
    except (OSError, KeyError):
        owner = "root"
    return NotRunning(
        f"the platform on {settings.data} belongs to the user {owner}",
        hint=f"sudo -u {owner} {command()} up --data {settings.data}",
    )
