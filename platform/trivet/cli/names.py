"""Names: the functions that a shell can complete, from a file, since a key press waits for it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from trivet.settings import Settings, read_settings

_FILE = "functions"


def complete_function(incomplete: str) -> list[str]:
    """The functions last seen here whose names begin like this."""
    with suppress(Exception):  # a shell that completes shows no error
        return [name for name in _read(read_settings()) if name.startswith(incomplete)]
    return []


def remember(settings: Settings, names: Iterable[str]) -> None:
    """These functions are all there are."""
    _write(settings, names)


def remember_one(settings: Settings, name: str) -> None:
    _write(settings, {*_read(settings), name})


def forget_one(settings: Settings, name: str) -> None:
    _write(settings, {*_read(settings)} - {name})


def _path(settings: Settings) -> Path:
    return settings.data_path / "client" / _FILE


def _read(settings: Settings) -> list[str]:
    try:
        return _path(settings).read_text().split()
    except OSError:
        return []


def _write(settings: Settings, names: Iterable[str]) -> None:
    """Best effort: it only serves completion, and the folder may be another user's."""
    path = _path(settings)
    with suppress(OSError):
        draft = path.with_name(f"{_FILE}.new")
        draft.write_text("".join(f"{name}\n" for name in sorted(names)))
        draft.replace(path)
