"""Log files: one line of JSON per line of a function's log, read from either end.

A line is `[at_ms, stream, kind, request_id, text]`. JSON escapes line breaks and control
characters, so no text can break the file or pose as another line. What cannot be understood, a
torn line for one, is passed over.
"""

from __future__ import annotations

import bisect
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import orjson

LAST_MS = 253_402_300_799_999
"""The end of the year 9999, where datetime ends."""

_TOKEN = re.compile(r"(\d{4}-\d{2}-\d{2})/(\d{1,18})\Z", re.ASCII)
_BLOCK_BYTES = 65_536

# Far above the longest line a function may write; beyond it a file is damaged.
_LINE_BYTES = 4 << 20

DISORDER_MS = 60_000
"""Environments hand their lines in side by side: a file is in order to within this."""


class BadToken(ValueError):
    """A token that this store never gave."""


@dataclass(frozen=True, slots=True)
class LogLine:
    at_ms: int
    stream: str
    kind: str
    request_id: str
    text: str
    id: str  # 56 digits; sorts by time
    before: str  # token of the place in front of this line
    after: str  # token of the place behind this line


class LogFile:
    """The lines of one file, each with the offset behind it, from either end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = BytesIO()

    def __enter__(self) -> LogFile:
        try:
            self._file = self._path.open("rb")
        except FileNotFoundError:  # removed since it was listed: as good as empty
            self._file = BytesIO()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def forward(self, begin: int) -> Iterator[tuple[bytes, int]]:
        self._file.seek(begin)
        end = begin
        while line := self._file.readline(_LINE_BYTES):
            if line[-1:] != b"\n" and len(line) < _LINE_BYTES:
                return  # still being written, or torn
            end += len(line)
            yield line, end

    def backward(self, begin: int = -1) -> Iterator[tuple[bytes, int]]:
        start = self._file.seek(0, os.SEEK_END)
        if begin >= 0:
            start = min(start, begin)
        rest = b""  # what was read of a line that begins further ahead
        while start:
            size = min(_BLOCK_BYTES, start)
            start -= size
            self._file.seek(start)
            text = self._file.read(size) + rest
            cut = text.find(b"\n") + 1 if start else 0
            if start and cut in (0, len(text)):
                rest = text if len(text) < _LINE_BYTES else b""
                continue
            end = start + len(text)
            for line in reversed(text[cut:].splitlines(keepends=True)):
                if line[-1:] == b"\n":
                    yield line, end
                end -= len(line)
            rest = text[:cut]

    def sought(self, start_ms: int) -> int:
        """The offset of a line before all those of `start_ms` and later."""
        blocks = self._file.seek(0, os.SEEK_END) // _BLOCK_BYTES
        wanted_ms = start_ms - DISORDER_MS
        index = bisect.bisect_left(range(blocks), wanted_ms, key=lambda i: self._first(i)[0])
        return self._first(index - 1)[1] if index > 1 else 0

    def _first(self, block: int) -> tuple[int, int]:
        """Time and offset of the first whole line in a block or behind it."""
        begin = block * _BLOCK_BYTES
        if begin:
            self._file.seek(begin - 1)
            begin += len(self._file.readline(_LINE_BYTES)) - 1
        for packed, end in self.forward(begin):
            line = parsed_line(packed, "", end)
            if line is not None:
                return line.at_ms, end - len(packed)
        return LAST_MS, begin


def packed_line(at_ms: int, stream: str, kind: str, request_id: str, text: str) -> bytes:
    try:
        return orjson.dumps(
            (at_ms, stream, kind, request_id, text), option=orjson.OPT_APPEND_NEWLINE
        )
    except TypeError:  # half a surrogate pair, which UTF-8 cannot hold
        return packed_line(
            at_ms, stream, kind, request_id, text.encode("utf-8", "replace").decode()
        )


def parsed_line(packed: bytes, day: str, end: int) -> LogLine | None:
    """The line that ends at offset `end` of a day's file, or None where it is damaged."""
    try:
        at_ms, stream, kind, request_id, text = orjson.loads(packed)
    except (ValueError, TypeError):
        return None
    if type(at_ms) is not int or type(text) is not str or type(stream) is not str:
        return None
    id = f"{at_ms:020}{day.replace('-', '')}{end - len(packed):028}"
    before, after = token_of(day, end - len(packed)), token_of(day, end)
    return LogLine(at_ms, stream, str(kind), str(request_id), text, id, before, after)


def day_name(at_ms: int) -> str:
    seconds = min(max(at_ms, 0), LAST_MS) // 1_000
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def token_of(day: str, offset: int) -> str:
    return f"{day}/{offset}"


def place_of(token: str) -> tuple[str, int]:
    match = _TOKEN.match(token)
    if match is None:
        raise BadToken(token)
    return match[1], int(match[2])
