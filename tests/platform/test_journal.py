"""The journal of an environment: what a flood of lines may cost, and what is kept of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trivet.core.functions import FunctionVersion
from trivet.store.logs import LogWriter
from trivet.supervisor.journal import FLOODED_S, LINE_COST, Journal

RATE = 10_000


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    os.close(reader)


@pytest.fixture
def writer(tmp_path: Path) -> LogWriter:
    return LogWriter(tmp_path)


@pytest.fixture
def journal(pipe: tuple[int, int], writer: LogWriter) -> Journal:
    version = FunctionVersion(
        function="f", runtime="python3.11", handler="app.handler", code_sha256="0" * 64
    )
    return Journal(writer, version, "stream", pipe[0], RATE)


def test_a_line_is_charged_beside_its_bytes(
    journal: Journal, pipe: tuple[int, int], writer: LogWriter
) -> None:
    lines = 1_000
    os.write(pipe[1], b"x\n" * lines)
    assert journal.read() == FLOODED_S
    kept = len(writer._buffered)
    # What the rate gives in the moment of the test itself comes on top.
    assert RATE // (LINE_COST + 2) - 1 <= kept < lines // 2
    assert journal.dropped_bytes == 2 * (lines - kept)
    os.close(pipe[1])


def test_within_the_rate_nothing_is_dropped_and_nothing_waits(
    journal: Journal, pipe: tuple[int, int], writer: LogWriter
) -> None:
    os.write(pipe[1], b"first\nsecond\n")
    assert journal.read() == 0.0
    assert [line[-1] for line in writer._buffered] == ["first", "second"]
    os.close(pipe[1])
    assert journal.read() is None
