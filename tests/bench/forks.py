"""Forks: our end of the plain forking process, the yardstick of every start by fork."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.bench.endpoints import EVENT, HELLO, PYTHON


@dataclass(frozen=True, slots=True)
class Forks:
    """A process that forks when it is told to."""

    asked: IO[bytes]
    answers: IO[bytes]

    def fork(self, event: str = EVENT, count: int = 1) -> list[bytes]:
        """The answers of that many children, forked at once."""
        answers = self.send(event, count)
        self._await_reaped()
        return answers

    def send(self, event: str, count: int) -> list[bytes]:
        self.asked.write(f"{count} {event}\n".encode())
        self.asked.flush()
        found = [self.answers.readline() for _ in range(count)]
        assert all(answer.strip() for answer in found), found
        return found

    def fork_ms(self, event: str = EVENT) -> float:
        """How long one took, from the order to the answer."""
        began = time.perf_counter()
        self.send(event, 1)
        took_ms = (time.perf_counter() - began) * 1000
        self._await_reaped()
        return took_ms

    def _await_reaped(self) -> None:
        assert self.answers.readline() == b"\n"


@contextmanager
def forking(text: str = HELLO[PYTHON][1], event: str = EVENT) -> Iterator[Forks]:
    """Its children run the handler in `text`; the first one, for practice, with `event`."""
    with tempfile.TemporaryDirectory(prefix="trivet-bench-") as folder:
        source = Path(folder) / "hello.py"
        source.write_text(text)
        program = str(Path(__file__).with_name("forked.py"))
        process = subprocess.Popen(
            [sys.executable, program, str(source)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            forks = Forks(process.stdin, process.stdout)
            forks.fork(event)
            yield forks
