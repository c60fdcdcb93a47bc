"""Folders: whether this service, which has no privilege, can look into one.

The adapters' service is alike: what the gateway can list, that one can watch.
"""

from __future__ import annotations

import os
from pathlib import Path

from trivet.errors import CallerError


def reachable(folder: str) -> str:
    """The real path of a folder that can be watched. Raises CallerError, saying what mends it."""
    if not folder.startswith("/") or "\0" in folder:
        raise CallerError(
            f"A watched folder is named by its absolute path, which {folder!r} is not."
        )
    real = os.path.realpath(folder)
    try:
        if _is_stand_in(real):
            raise FileNotFoundError
        with os.scandir(real):
            return real
    except NotADirectoryError:
        raise CallerError(f"{folder} is not a folder.") from None
    except PermissionError:
        raise CallerError(_closed(Path(real))) from None
    except FileNotFoundError:
        # Below a home that is closed to others, services see only what they need themselves.
        raise CallerError(
            f"Trivet sees no folder {folder}. If it is there, it lies below a folder that is "
            f"closed to other users, such as a home. Watch one outside of it ({_outside(real)} for "
            "one), or start Trivet as the owner of the closed folder."
        ) from None
    except OSError as error:
        raise CallerError(f"{folder} cannot be watched: {error.strerror}.") from None


def _is_stand_in(real: str) -> bool:
    """Whether the launcher put this folder in the place of one that is closed to services: it
    holds only the way to what they need, and no file will ever come."""
    device = os.stat(real).st_dev
    place = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if before.split(" ")[2] == place:
            return after.startswith("tmpfs trivet ")
    return False


def _closed(real: Path) -> str:
    """Which folder on the way is closed, and the command that opens it."""
    for place in (*reversed(real.parents), real):
        needed = os.R_OK | os.X_OK if place == real else os.X_OK
        if not os.access(place, needed):
            bits = "o+rx" if place == real else "o+x"
            return (
                f"Trivet runs without privilege and cannot look into {place}. Watch a folder "
                f"outside of it ({_outside(str(real))} for one), or: chmod {bits} {place}"
            )
    return f"Trivet cannot look into {real}."


def _outside(real: str) -> str:
    return str(Path("/srv", Path(real).name))
