"""Retention: how long log files are kept, by age and by what all of them may take on disk.

A whole day of a function is one file, and goes as a whole. A file that may still be written to is
left alone, whatever it takes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from .log_files import day_name

log = structlog.get_logger()

SWEEP_EVERY_S = 3_600.0

# A day's last lines may be written a little after its end.
SETTLED_S = 3_600
_DAY_MS = 86_400_000

_FILE = re.compile(r"(\d{4}-\d{2}-\d{2})\.jsonl\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed, and what is left."""

    files: int
    freed_bytes: int
    kept_bytes: int


@dataclass(frozen=True, slots=True)
class _File:
    day: str
    path: str
    size_bytes: int
    is_settled: bool


def sweep(root: Path, *, now_ms: int, most_days: int, most_bytes: int) -> Swept:
    """Remove files older than `most_days`, then the oldest until `most_bytes` hold all. It blocks.

    The day of `now_ms` counts as the first.
    """
    files = sorted(_files(root, now_ms), key=lambda file: (file.day, file.path))
    total = sum(file.size_bytes for file in files)
    oldest_day = day_name(now_ms - (most_days - 1) * _DAY_MS)
    removed = freed_bytes = 0
    for file in files:
        is_wanted = file.day >= oldest_day and total - freed_bytes <= most_bytes
        if file.is_settled and not is_wanted:
            with suppress(FileNotFoundError):  # its function was deleted at this moment
                os.unlink(file.path)
            removed += 1
            freed_bytes += file.size_bytes
    return Swept(removed, freed_bytes, total - freed_bytes)


def _files(root: Path, now_ms: int) -> Iterator[_File]:
    today = day_name(now_ms)
    for folder in _listed(root):
        if not folder.is_dir(follow_symlinks=False):
            continue
        for entry in _listed(folder.path):
            match = _FILE.match(entry.name)
            if match is None or not entry.is_file(follow_symlinks=False):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            is_settled = match[1] < today and status.st_mtime < now_ms / 1000 - SETTLED_S
            yield _File(match[1], entry.path, status.st_size, is_settled)


def _listed(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


async def keep_swept(root: Path, *, most_days: int, most_mb: int) -> None:
    """Sweep now and every hour, in a thread."""

    def swept() -> Swept:
        now_ms = time.time_ns() // 1_000_000
        return sweep(root, now_ms=now_ms, most_days=most_days, most_bytes=most_mb << 20)

    while True:
        try:
            done = await anyio.to_thread.run_sync(swept)
        except OSError as error:
            log.error("logs.not_swept", error=str(error))
        else:
            if done.files:
                log.info("logs.removed", files=done.files, freed_bytes=done.freed_bytes)
            if done.kept_bytes > most_mb << 20:
                # What is left is still being written to; tomorrow it can go.
                log.warning("logs.over_limit", kept_bytes=done.kept_bytes)
        await anyio.sleep(SWEEP_EVERY_S)
