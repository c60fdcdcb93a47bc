"""Tree: one watched folder with everything below it, from notices to events.

What is known of each file is remembered once its event is accepted, so that a restart publishes
what came meanwhile and nothing twice. A whole look at the folder, at the start and whenever notices
may have been lost, finds what no notice told.
"""

from __future__ import annotations

import logging
import os
import time

import anyio
from anyio.to_thread import run_sync

from trivet import FileTrigger, Host, Throttled, TrivetError, Unavailable
from trivet_adapters.files import inotify
from trivet_adapters.files.found import Content, Stamp, is_unready, look, read, stamp_of
from trivet_adapters.files.records import content_key, put_event
from trivet_adapters.files.settling import Settling
from trivet_adapters.files.watches import Watches, is_at_or_below

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 300.0  # a whole look, for what neither notices nor their loss told
MISSING_S = 2.0  # a folder that is not there is looked for again
TRY_AGAIN_S = 1.0
AT_ONCE = 64  # files read, published and remembered together

# The clock of a file system may be behind by a tick of the kernel's.
_TICK_MS = 20

# Remembered beside the paths, none of which can be called so: what was there at first is noted.
_BEGUN = b"/"


class Tree:
    """Watches the folder of one trigger."""

    def __init__(self, trigger: FileTrigger, host: Host, watches: Watches) -> None:
        self._trigger = trigger
        self._host = host
        self._watches = watches
        self._root = os.fsencode(trigger.folder)
        self._known: dict[bytes, bytes] = {}  # path: text of the stamp that was dealt with
        self._unsaved: dict[bytes, bytes | None] = {}
        self._settling = Settling()
        self._unreadable: set[bytes] = set()
        self._fresh: set[bytes] = set()  # folders that came, to be looked through
        self._left: set[bytes] = set()  # folders that went
        self._look_at = 0.0
        self._wake = anyio.Event()
        self._is_missing = False

    def __repr__(self) -> str:
        return f"<Tree {self._trigger.folder}: {len(self._known)} files known>"

    async def run(self) -> None:
        """Watch until cancelled. Raises Unavailable if nothing can be recalled at first."""
        self._known = await self._host.memory.recall(self._trigger)
        try:
            while True:
                now = time.monotonic()
                if now >= self._look_at:
                    await self._look_at_all()
                await self._follow_folders()
                await self._deal_with(self._settling.ready(time.monotonic()))
                await self._save()
                await self._pause()
        finally:
            self._watches.drop(self)

    async def _pause(self) -> None:
        now = time.monotonic()
        soonest = min(
            self._look_at,
            self._settling.due or self._look_at,
            now + TRY_AGAIN_S if self._unsaved else self._look_at,
        )
        with anyio.move_on_after(max(soonest - now, 0.0)):
            await self._wake.wait()
        self._wake = anyio.Event()

    # ------------------------------------------------------------------ notices

    def noticed(self, mask: int, folder: bytes, name: bytes) -> None:
        self._wake.set()
        if not name:
            if mask & (inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.UNMOUNT) and not folder:
                self._look_at = 0.0
            return
        if is_unready(name):
            return
        path = os.path.join(folder, name)
        if mask & inotify.IS_FOLDER:
            if mask & (inotify.CREATE | inotify.MOVED_TO):
                self._fresh.add(path)
            elif mask & (inotify.DELETE | inotify.MOVED_FROM):
                self._left.add(path)
            return
        self._noticed_file(mask, path)

    def _noticed_file(self, mask: int, path: bytes) -> None:
        now = time.monotonic()
        if mask & inotify.MODIFY:
            self._settling.written(path, now)
        elif mask & inotify.CLOSE_WRITE:
            self._settling.closed(path, stamp_of(self._root, path), now)
        elif mask & inotify.MOVED_TO:
            self._settling.renamed(path, stamp_of(self._root, path), now)
        elif mask & inotify.CREATE:
            stamp = stamp_of(self._root, path)
            if stamp is not None and stamp.links > 1:
                self._settling.closed(path, stamp, now)  # a second name: nobody will close it
            elif stamp is not None:
                self._settling.written(path, now)
        elif mask & (inotify.DELETE | inotify.MOVED_FROM):
            self._forget(path)
        elif mask & inotify.ATTRIB and path in self._unreadable:
            self._settling.closed(path, stamp_of(self._root, path), now)

    def lost_notices(self) -> None:
        log.warning("%s: too much happened at once, so all is looked at", self._trigger.folder)
        self._settling.lost_track()
        self._look_at = 0.0
        self._wake.set()

    # ------------------------------------------------------------------ looking

    async def _look_at_all(self) -> None:
        """Compare the whole folder with what is known."""
        self._look_at = time.monotonic() + LOOK_AGAIN_S
        try:
            found = await run_sync(look, self._root, b"", self._enter)
        except OSError as error:
            self._miss(error)
            return
        self._is_missing = False
        is_first = _BEGUN not in self._known
        for path, stamp in found.files.items():
            if is_first and self._is_old(stamp):
                self._keep(path, stamp.text)
            else:
                self._consider(path, stamp)
        closed = found.closed
        for path in [p for p in self._known if p != _BEGUN and p not in found.files]:
            if not any(is_at_or_below(path, folder) for folder in closed):
                self._forget(path)
        self._keep(_BEGUN, b"1")
        for folder in closed:
            log.warning("%s cannot be looked into: chmod o+rx it", self._shown(folder))

    async def _follow_folders(self) -> None:
        """Look through folders that came, and leave those that went."""
        left, self._left = self._left, set()
        fresh, self._fresh = self._fresh, set()
        for folder in left:
            self._watches.drop(self, folder)
            self._settling.left(folder)
            for path in [p for p in self._known if p.startswith(folder + b"/")]:
                self._forget(path)
        for folder in fresh:
            try:
                found = await run_sync(look, self._root, folder, self._enter)
            except OSError:
                continue  # it went again, or is closed to us
            for path, stamp in found.files.items():
                self._consider(path, stamp)

    def _enter(self, folder: bytes) -> None:
        self._watches.add(self, self._root, folder)

    def _miss(self, error: OSError) -> None:
        """The folder is away or closed; of what was in it, nothing is forgotten."""
        if not self._is_missing:
            log.warning("%s cannot be watched: %s", self._trigger.folder, error.strerror)
        self._is_missing = True
        self._watches.drop(self)
        self._look_at = time.monotonic() + MISSING_S

    def _consider(self, path: bytes, stamp: Stamp) -> None:
        if self._known.get(path) != stamp.text:
            self._settling.found(path, stamp, time.monotonic())

    def _is_old(self, stamp: Stamp) -> bool:
        """Whether it was there, as it is, when the trigger was made."""
        return stamp.changed_ns < (self._trigger.created_ms - _TICK_MS) * 1_000_000

    # ------------------------------------------------------------------ publishing

    async def _deal_with(self, ready: dict[bytes, Stamp | None]) -> None:
        paths = list(ready)
        for begin in range(0, len(paths), AT_ONCE):
            wanted = {path: ready[path] for path in paths[begin : begin + AT_ONCE]}
            contents = await run_sync(self._read, wanted)
            for path in wanted.keys() - {content.path for content in contents}:
                self._unread(path)
            async with anyio.create_task_group() as tasks:
                for content in contents:
                    tasks.start_soon(self._publish, content)
            await self._save()

    def _read(self, wanted: dict[bytes, Stamp | None]) -> list[Content]:
        """In a thread. Those that are as they were are read; the others are left out."""
        contents = []
        for path, before in wanted.items():
            now = stamp_of(self._root, path)
            self._unreadable.discard(path)
            if now is None or now != before or self._known.get(path) == now.text:
                continue
            try:
                content = read(self._root, path)
            except PermissionError:
                self._unreadable.add(path)
                continue
            if content is not None and content.stamp == now:
                contents.append(content)
        return contents

    def _unread(self, path: bytes) -> None:
        """It went, is known, changes still, or is closed to us."""
        if path in self._unreadable:
            log.warning("%s cannot be read: chmod o+r it", self._shown(path))
            return
        stamp = stamp_of(self._root, path)
        if stamp is None:
            self._forget(path)
        elif stamp.text != self._known.get(path):
            self._settling.found(path, stamp, time.monotonic())

    async def _publish(self, content: Content) -> None:
        event = put_event(self._trigger, content, self._host)
        try:
            await self._host.publisher.publish(event, once=content_key(self._trigger, content))
        except (Throttled, Unavailable) as error:
            log.warning("%s waits: %s", self._shown(content.path), error.message)
            self._settling.again(content.path, content.stamp, time.monotonic() + TRY_AGAIN_S)
            return
        except TrivetError as error:
            log.warning("%s runs nothing: %s", self._shown(content.path), error.message)
        self._keep(content.path, content.stamp.text)

    # ------------------------------------------------------------------ remembering

    def _keep(self, path: bytes, text: bytes) -> None:
        if self._known.get(path) != text:
            self._known[path] = self._unsaved[path] = text

    def _forget(self, path: bytes) -> None:
        self._settling.gone(path)
        self._unreadable.discard(path)
        if self._known.pop(path, None) is not None:
            self._unsaved[path] = None

    async def _save(self) -> None:
        if not self._unsaved:
            return
        unsaved, self._unsaved = self._unsaved, {}
        try:
            await self._host.memory.remember(self._trigger, unsaved)
        except Unavailable as error:
            # Should this process end now, the keys of the events keep them from coming twice.
            log.warning("%s: %s", self._trigger.folder, error.message)
            self._unsaved = {**unsaved, **self._unsaved}

    def _shown(self, path: bytes) -> str:
        return os.fsdecode(os.path.join(self._root, path)).encode("unicode_escape").decode()
