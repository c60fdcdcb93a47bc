"""Accepted: the client's own file of every event that the platform said it had taken."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Accepted:
    """An event that was answered with 202."""

    id: str  # "" where only the idempotency key says that it is there
    n: int  # what it calls itself
    function: str
    kind: str


class AcceptedFile:
    """Lines of JSON. None counts before it is on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.count = 0

    def __repr__(self) -> str:
        return f"<AcceptedFile {self.count}>"

    def add(self, events: Iterable[Accepted]) -> None:
        """Returns when they are on disk."""
        lines = [json.dumps(asdict(event)) + "\n" for event in events]
        if lines:
            os.write(self._file, "".join(lines).encode())
            os.fsync(self._file)
            self.count += len(lines)

    def close(self) -> None:
        os.close(self._file)

    def read(self) -> list[Accepted]:
        return [Accepted(**json.loads(line)) for line in self.path.read_text().splitlines()]
