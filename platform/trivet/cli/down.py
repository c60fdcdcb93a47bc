"""trivet down: end the platform of a data folder, and return when it has ended."""

from __future__ import annotations

import json
import os
import select
import signal
import time

from trivet.cli.options import Data, Json, Quiet
from trivet.cli.running import is_locked
from trivet.cli.screen import say
from trivet.errors import Unavailable
from trivet.settings import Settings, read_settings

# It drains first: what runs may finish, within the launcher's own patience.
DEADLINE_S = 60.0
_LOOK_AGAIN_S = 0.05
_TELL_AFTER_S = 1.0


def down(data: Data = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """End the platform. What runs may finish first; nothing is left behind."""
    settings = read_settings(flags={"data": data})
    start = time.monotonic()
    has_ended = _end(settings, start + DEADLINE_S, quiet)
    if as_json:
        print(json.dumps({"ended": has_ended}))
    elif not quiet and has_ended:
        say(f"  ✓ ended in {time.monotonic() - start:.1f} s")
    elif not quiet:
        say(f"  no platform is running on {settings.data}")


def _end(settings: Settings, deadline: float, quiet: bool) -> bool:
    """Whether there was a platform to end. Raises Unavailable when it does not end."""
    has_ended = False
    while is_locked(settings):
        has_ended = True
        launcher = _launcher(settings)
        if launcher is None:
            # It is starting, or it was killed and its servers are just letting go.
            if time.monotonic() > deadline:
                message = f"{settings.run_path / 'lock'} is held, and by no launcher"
                raise Unavailable(message, hint=f"fuser -v {settings.run_path / 'lock'}")
            time.sleep(_LOOK_AGAIN_S)
            continue
        pid, descriptor = launcher
        try:
            _terminate(settings, pid, descriptor, deadline, quiet)
        finally:
            os.close(descriptor)
    return has_ended


def _launcher(settings: Settings) -> tuple[int, int] | None:
    """The pid in the lock file and a pidfd of it, if that process is a launcher."""
    try:
        pid = int((settings.run_path / "lock").read_bytes())
        descriptor = os.pidfd_open(pid)
    except (ValueError, OSError):
        return None
    try:
        # Read after the pidfd was opened: it is the same process, or the file is gone.
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            is_launcher = b"trivet.launcher" in file.read().split(b"\0")
    except OSError:
        is_launcher = False
    if is_launcher:
        return pid, descriptor
    os.close(descriptor)
    return None


def _terminate(settings: Settings, pid: int, descriptor: int, deadline: float, quiet: bool) -> None:
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        message = f"the platform on {settings.data} belongs to another user"
        raise Unavailable(message, hint=f"sudo kill {pid}") from error
    ended = select.poll()
    ended.register(descriptor, select.POLLIN)
    if ended.poll(_TELL_AFTER_S * 1000):
        return
    if not quiet:
        say("  ending: waiting for what still runs ...")
    if not ended.poll(max(0.0, deadline - time.monotonic()) * 1000):
        message = f"the platform (pid {pid}) has not ended within {DEADLINE_S:.0f} s"
        raise Unavailable(message, hint=f"kill -KILL {pid}")
