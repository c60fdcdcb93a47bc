"""Settling: files that may be complete soon. Pure: it is told the time.

A file that a writer has closed, or that was renamed into its place, needs little time or none. One
that was merely found needs longer: nobody knows who may be writing it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trivet_adapters.files.found import Stamp

CLOSED_S = 0.1
FOUND_S = 1.0
# A file that was written to and not closed for this long was changed in a way nobody closes.
FORGOTTEN_WRITER_S = 300.0


@dataclass(slots=True)
class _Waiting:
    due: float
    stamp: Stamp | None  # as it was when the wait began


@dataclass(slots=True)
class Settling:
    """The files of one folder that are on their way. Times are those of a monotonic clock."""

    _waiting: dict[bytes, _Waiting] = field(default_factory=dict)
    _writing: dict[bytes, float] = field(default_factory=dict)  # path: time of its last write

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def due(self) -> float | None:
        """When the next one may be complete."""
        return min((each.due for each in self._waiting.values()), default=None)

    def written(self, path: bytes, now: float) -> None:
        """Somebody writes it, and will close it."""
        self._writing[path] = now
        self._waiting.pop(path, None)

    def closed(self, path: bytes, stamp: Stamp | None, now: float) -> None:
        self._settle(path, stamp, now + CLOSED_S)

    def renamed(self, path: bytes, stamp: Stamp | None, now: float) -> None:
        self._settle(path, stamp, now)

    def found(self, path: bytes, stamp: Stamp, now: float) -> None:
        """It is there, and not as it was known; whoever writes it will close it."""
        written = self._writing.get(path)
        if written is not None and now - written < FORGOTTEN_WRITER_S:
            return
        if path not in self._waiting:
            self._settle(path, stamp, now + FOUND_S)

    def again(self, path: bytes, stamp: Stamp | None, at: float) -> None:
        """It could not be dealt with."""
        if path not in self._writing:
            self._waiting.setdefault(path, _Waiting(at, stamp))

    def gone(self, path: bytes) -> None:
        self._waiting.pop(path, None)
        self._writing.pop(path, None)

    def left(self, folder: bytes) -> None:
        """Everything below a folder went."""
        for path in [p for p in (*self._waiting, *self._writing) if p.startswith(folder + b"/")]:
            self.gone(path)

    def lost_track(self) -> None:
        """Somebody may have closed a file unseen."""
        self._writing.clear()

    def ready(self, now: float) -> dict[bytes, Stamp | None]:
        """Take those whose time has come, each with the state that it was in before."""
        ready = {path: each.stamp for path, each in self._waiting.items() if each.due <= now}
        for path in ready:
            del self._waiting[path]
        return ready

    def _settle(self, path: bytes, stamp: Stamp | None, due: float) -> None:
        self._writing.pop(path, None)
        self._waiting[path] = _Waiting(due, stamp)
