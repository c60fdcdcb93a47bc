"""Logs: what functions wrote, a file per function and day, a line of JSON per line of theirs.

Several processes may append to one file: each batch is one write.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .log_files import (
    DISORDER_MS,
    LAST_MS,
    BadToken,
    LogFile,
    LogLine,
    day_name,
    packed_line,
    parsed_line,
    place_of,
    token_of,
)

__all__ = [
    "FUNCTION",
    "PLATFORM",
    "BadToken",
    "LogGroup",
    "LogLine",
    "LogReader",
    "LogStream",
    "LogWriter",
]

FUNCTION, PLATFORM = "function", "platform"
"""Kinds of lines: the handler's own, and those about it (START, END, REPORT)."""

_DAY_MS = 86_400_000
_SUFFIX = ".jsonl"
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}\Z", re.ASCII)
_NAME = re.compile(r"[a-zA-Z0-9-_]{1,140}\Z", re.ASCII)

_OPEN_FILES = 64

# A page ends here even if it found little, so that no search holds up its caller for long.
_SCAN_BYTES = 64 << 20
_PAGE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class LogStream:
    """What one environment wrote."""

    name: str
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class LogGroup:
    """The logs of one function."""

    function: str
    created_ms: int
    stored_bytes: int


@dataclass(slots=True)
class _File:
    descriptor: int
    is_torn: bool  # does not end with a line break: a crash, or a full disk
    untold_bytes: int = 0  # dropped, and the file does not say so yet


class LogWriter:
    """Collects lines and appends them in batches. A full disk costs lines, never an error."""

    def __init__(self, root: Path) -> None:
        self.dropped_bytes = 0  # since the start
        self.on_first: Callable[[], None] = lambda: None  # a line came where none waited
        self._root = root
        self._buffered: list[tuple[str, int, str, str, str, str]] = []
        self._files: OrderedDict[tuple[str, int], _File] = OrderedDict()

    def add(
        self, function: str, at_ms: int, stream: str, kind: str, request_id: str, text: str
    ) -> None:
        """Only remembers the line; `flush` writes it, as `on_first` may see to."""
        if not self._buffered:
            self.on_first()
        self._buffered.append((function, at_ms, stream, kind, request_id, text))

    def flush(self) -> None:
        """Append everything added, with one write per file."""
        buffered, self._buffered = self._buffered, []
        batches: dict[tuple[str, int], list[bytes]] = {}
        streams: dict[tuple[str, int], tuple[int, str]] = {}
        for function, at_ms, stream, kind, request_id, text in buffered:
            key = (function, at_ms // _DAY_MS)
            if key not in batches:
                batches[key], streams[key] = [], (at_ms, stream)
            batches[key].append(packed_line(at_ms, stream, kind, request_id, text))
        for key, lines in batches.items():
            self._append(key, b"".join(lines), *streams[key])

    def close(self) -> None:
        self.flush()
        for file in self._files.values():
            os.close(file.descriptor)
        self._files.clear()

    def _append(self, key: tuple[str, int], lines: bytes, at_ms: int, stream: str) -> None:
        try:
            file = self._opened(key)
        except OSError:
            self.dropped_bytes += len(lines)
            return
        head = b"\n" if file.is_torn else b""
        if file.untold_bytes:
            told = f"{file.untold_bytes} bytes of log lines were dropped: the disk was full"
            head += packed_line(at_ms, stream, PLATFORM, "", told)
        text = head + lines
        written = 0
        with suppress(OSError):
            while written < len(text):
                written += os.write(file.descriptor, text[written:])
        if written:
            file.is_torn = text[written - 1 : written] != b"\n"
        if written >= len(head):
            file.untold_bytes = 0
        lost = min(len(text) - written, len(lines))
        file.untold_bytes += lost
        self.dropped_bytes += lost

    def _opened(self, key: tuple[str, int]) -> _File:
        file = self._files.get(key)
        # Whoever deletes a function deletes its logs; what comes later must not go with them.
        if file is not None and os.fstat(file.descriptor).st_nlink == 0:
            os.close(self._files.pop(key).descriptor)
            file = None
        if file is None:
            function, day = key
            file = self._files[key] = _open(self._root / function, day_name(day * _DAY_MS))
            if len(self._files) > _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1].descriptor)
        self._files.move_to_end(key)
        return file


class LogReader:
    """Reads what writers wrote, in the file's order. It blocks: for a thread, or a command."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def filter(
        self,
        function: str,
        *,
        start_ms: int = 0,
        end_ms: int | None = None,
        stream: str | None = None,
        pattern: str | None = None,
        where: Callable[[LogLine], bool] | None = None,
        after: str | None = None,
        limit: int = 10_000,
    ) -> tuple[list[LogLine], str | None]:
        """A page of lines, and the token of the next page where there may be one.

        Lines from `start_ms` to before `end_ms`, of `stream`, with `pattern` (plain text) in
        them and for which `where` is true. To follow a log, hand in the `after` of the last line.
        Raises BadToken.
        """
        fits = _selection(start_ms, end_ms, stream, pattern, where)
        last_day = day_name(LAST_MS if end_ms is None else end_ms)
        first_day, offset = place_of(after) if after else (day_name(start_ms), -1)
        found: list[LogLine] = []
        found_bytes = scanned_bytes = 0
        for day in self._days(function):
            if not first_day <= day <= last_day:
                continue
            with self._open(function, day) as file:
                begin = offset if day == first_day and offset >= 0 else file.sought(start_ms)
                for packed, end in file.forward(begin):
                    scanned_bytes += len(packed)
                    line = parsed_line(packed, day, end)
                    if line is not None and fits(line):
                        found.append(line)
                        found_bytes += len(packed)
                    is_full = len(found) >= limit or found_bytes >= _PAGE_BYTES
                    if is_full or scanned_bytes >= _SCAN_BYTES:
                        return found, token_of(day, end)
        return found, None

    def last(
        self,
        function: str,
        *,
        limit: int,
        start_ms: int = 0,
        end_ms: int | None = None,
        stream: str | None = None,
        before: str | None = None,
    ) -> list[LogLine]:
        """The newest lines, read from the end of the files; with `before`, from that place.

        Raises BadToken.
        """
        fits = _selection(start_ms, end_ms, stream, None, None)
        last_day, offset = place_of(before) if before else (day_name(LAST_MS), -1)
        found: list[LogLine] = []
        found_bytes = scanned_bytes = 0
        for day in reversed(self._days(function)):
            if day < day_name(start_ms):
                break
            if day > last_day:
                continue
            with self._open(function, day) as file:
                for packed, end in file.backward(offset if day == last_day else -1):
                    scanned_bytes += len(packed)
                    line = parsed_line(packed, day, end)
                    if line is not None and fits(line):
                        found.append(line)
                        found_bytes += len(packed)
                    is_too_old = line is not None and line.at_ms < start_ms - DISORDER_MS
                    is_full = len(found) >= limit or found_bytes >= _PAGE_BYTES
                    if is_full or is_too_old or scanned_bytes >= _SCAN_BYTES:
                        return found[::-1]
        return found[::-1]

    def streams(self, function: str) -> list[LogStream]:
        """The environments that wrote, by name; of a very long log, those of its newest part."""
        spans: dict[str, tuple[int, int]] = {}
        scanned_bytes = 0
        for day in reversed(self._days(function)):
            with self._open(function, day) as file:
                for packed, end in file.backward():
                    scanned_bytes += len(packed)
                    line = parsed_line(packed, day, end)
                    if line is not None:
                        first, last = spans.get(line.stream, (line.at_ms, line.at_ms))
                        spans[line.stream] = (min(first, line.at_ms), max(last, line.at_ms))
                    if scanned_bytes >= _SCAN_BYTES:
                        break
            if scanned_bytes >= _SCAN_BYTES:
                break
        return [LogStream(name, *span) for name, span in sorted(spans.items())]

    def groups(self) -> list[LogGroup]:
        """The functions that have logs, by name."""
        try:
            names = sorted(name for name in os.listdir(self._root) if _NAME.match(name))
        except FileNotFoundError:
            return []
        return [group for name in names if (group := self.group(name)) is not None]

    def group(self, function: str) -> LogGroup | None:
        """The logs of one function, or None where it has none."""
        days = self._days(function)
        if not days:
            return None
        sizes = []
        for day in days:
            with suppress(FileNotFoundError):
                sizes.append((self._root / function / f"{day}{_SUFFIX}").stat().st_size)
        created = datetime.fromisoformat(days[0]).replace(tzinfo=UTC)
        return LogGroup(function, int(created.timestamp()) * 1_000, sum(sizes))

    def _days(self, function: str) -> list[str]:
        # The name comes from outside and becomes part of a path.
        if not _NAME.match(function):
            return []
        try:
            names = os.listdir(self._root / function)
        except (FileNotFoundError, NotADirectoryError):
            return []
        days = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
        return sorted(day for day in days if _DAY.match(day))

    def _open(self, function: str, day: str) -> LogFile:
        return LogFile(self._root / function / f"{day}{_SUFFIX}")


def _selection(
    start_ms: int,
    end_ms: int | None,
    stream: str | None,
    pattern: str | None,
    where: Callable[[LogLine], bool] | None,
) -> Callable[[LogLine], bool]:
    def fits(line: LogLine) -> bool:
        return (
            line.at_ms >= start_ms
            and (end_ms is None or line.at_ms < end_ms)
            and (stream is None or line.stream == stream)
            and (pattern is None or pattern in line.text)
            and (where is None or where(line))
        )

    return fits


def _open(folder: Path, day: str) -> _File:
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(folder / f"{day}{_SUFFIX}", flags, 0o640)
    size = os.fstat(descriptor).st_size
    is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
    return _File(descriptor, is_torn)
