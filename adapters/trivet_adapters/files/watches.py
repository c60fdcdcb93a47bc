"""Watches: which watched folder a notice of the kernel means. One queue serves them all."""

from __future__ import annotations

import errno
import logging
import os
from typing import Protocol

import anyio

from trivet_adapters.files import inotify
from trivet_adapters.files.inotify import Inotify

log = logging.getLogger(__name__)


class Watcher(Protocol):
    """Who looks after one watched folder. Called from the loop; may not wait."""

    def noticed(self, mask: int, folder: bytes, name: bytes) -> None:
        """Something happened to `name` in a relative folder, or to that folder itself."""
        ...

    def lost_notices(self) -> None: ...


class Watches:
    """The kernel's watches, and whom each of them is for. Folders may lie in one another."""

    def __init__(self) -> None:
        self._inotify = Inotify()
        self._places: dict[int, dict[Watcher, bytes]] = {}
        self._numbers: dict[Watcher, dict[bytes, int]] = {}
        self._is_exhausted = False

    def __repr__(self) -> str:
        return f"<Watches {len(self._places)} folders>"

    def add(self, watcher: Watcher, root: bytes, folder: bytes) -> None:
        """Watch a relative folder for `watcher`. From any thread. Raises OSError if it is gone."""
        try:
            number = self._inotify.add(os.path.join(root, folder))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._exhausted()
            return
        self._places.setdefault(number, {})[watcher] = folder
        self._numbers.setdefault(watcher, {})[folder] = number

    def drop(self, watcher: Watcher, below: bytes = b"") -> None:
        """Watch no more for `watcher`, at a relative folder and below it. Not during its `add`."""
        numbers = self._numbers.get(watcher, {})
        for folder in [f for f in numbers if is_at_or_below(f, below)]:
            number = numbers.pop(folder)
            watchers = self._places.get(number, {})
            # It may be another folder's by now: one that was moved keeps its watch.
            if watchers.get(watcher) == folder:
                del watchers[watcher]
            if not watchers:
                self._places.pop(number, None)
                self._inotify.remove(number)
        if not numbers:
            self._numbers.pop(watcher, None)

    async def run(self) -> None:
        """Hand out notices, for as long as the process lives."""
        try:
            while True:
                await anyio.wait_readable(self._inotify.fileno())
                for notice in self._inotify.read():
                    self._hand_out(notice)
        finally:
            self._inotify.close()

    def _hand_out(self, notice: inotify.Notice) -> None:
        if notice.mask & inotify.OVERFLOW:
            for watcher in list(self._numbers):
                watcher.lost_notices()
            return
        watchers = list(self._places.get(notice.watch, {}).items())
        if notice.mask & inotify.IGNORED:
            self._places.pop(notice.watch, None)
        for watcher, folder in watchers:
            if notice.mask & inotify.IGNORED:
                self._numbers.get(watcher, {}).pop(folder, None)
            watcher.noticed(notice.mask, folder, notice.name)

    def _exhausted(self) -> None:
        if not self._is_exhausted:
            self._is_exhausted = True
            log.error(
                "the kernel watches no more folders for this user: files in the others are found "
                "minutes later. Raise it: sysctl fs.inotify.max_user_watches=524288"
            )


def is_at_or_below(path: bytes, folder: bytes) -> bool:
    return not folder or path == folder or path.startswith(folder + b"/")
