"""The file adapter on real folders."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote_to_bytes

import anyio
import pytest
from tests.adapters.hosts import Hosted

from trivet import FileTrigger, FunctionNotFound, Throttled, TriggerSet, Unavailable
from trivet_adapters.files import inotify, run, settling, tree
from trivet_adapters.files.watches import Watches

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def host() -> Hosted:
    return Hosted()


def trigger(folder: Path, name: str = "t", created_ms: int = 0) -> FileTrigger:
    """One of long ago: what is in the folder came later."""
    return FileTrigger(name=name, id=name, function="f", folder=str(folder), created_ms=created_ms)


@asynccontextmanager
async def watching(host: Hosted, *triggers: FileTrigger) -> AsyncIterator[None]:
    """The adapter, once it has looked at every folder that is there."""
    host.triggers.set(TriggerSet((), triggers))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, host)
        values = host.memory.values
        await host.memory.written.until(lambda: all(b"/" in values.get(t.id, {}) for t in triggers))
        yield
        tasks.cancel_scope.cancel()


def keys(host: Hosted) -> list[bytes]:
    """Keys of the objects that events told of, in order."""
    return [
        unquote_to_bytes(payload["Records"][0]["s3"]["object"]["key"].replace("+", " "))
        for payload in host.publisher.payloads
    ]


async def nothing_more(host: Hosted, folder: Path) -> None:
    """Wait until a file written now has been told of: what was before it would have been too."""
    count = len(host.publisher.events)
    (folder / f"last-{count}").write_bytes(b"")
    with anyio.fail_after(30):
        while f"last-{count}".encode() not in keys(host):
            await host.publisher.until(len(host.publisher.events) + 1)


async def test_a_file_becomes_the_record_of_an_object_that_was_put(
    host: Hosted, inbox: Path
) -> None:
    async with watching(host, trigger(inbox)):
        (inbox / "uploads").mkdir()
        (inbox / "uploads" / "a photo+ü.jpg").write_bytes(b"x" * 1024)
        await host.publisher.until(1)
    (event,) = host.publisher.events
    (record,) = json.loads(event.payload)["Records"]
    assert event.function == "f"
    assert (record["eventVersion"], record["eventSource"]) == ("2.1", "aws:s3")
    assert (record["awsRegion"], record["eventName"]) == ("us-east-1", "ObjectCreated:Put")
    assert record["s3"]["bucket"]["name"] == "inbox"
    assert record["s3"]["bucket"]["arn"] == "arn:aws:s3:::inbox"
    found = record["s3"]["object"]
    assert found["key"] == "uploads/a+photo%2B%C3%BC.jpg"
    assert found["size"] == 1024
    assert found["eTag"] == hashlib.md5(b"x" * 1024).hexdigest()
    assert int(found["sequencer"], 16) > 0


async def test_a_slow_writer_is_waited_for(
    host: Hosted, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "LOOK_AGAIN_S", 0.05)  # looks do not tell of it either
    monkeypatch.setattr(settling, "FOUND_S", 0.0)
    async with watching(host, trigger(inbox)):
        with (inbox / "slow").open("wb", buffering=0) as slow:
            slow.write(b"1")
            for n in range(2):
                (inbox / f"meanwhile{n}").write_bytes(b"")
                await host.publisher.until(n + 1)
            slow.write(b"2")
        await host.publisher.until(3)
    assert keys(host) == [b"meanwhile0", b"meanwhile1", b"slow"]
    assert host.publisher.payloads[-1]["Records"][0]["s3"]["object"]["size"] == 2


async def test_a_file_renamed_into_its_place_is_told_of_under_that_name_only(
    host: Hosted, inbox: Path
) -> None:
    async with watching(host, trigger(inbox)):
        for temporary in (".hidden", "x.part", "x~", "~x", "x.tmp"):
            (inbox / temporary).write_bytes(b"half")
        (inbox / ".hidden").rename(inbox / "done")
        (inbox / ".folder").mkdir()
        (inbox / ".folder" / "inside").write_bytes(b"")
        await nothing_more(host, inbox)
    assert keys(host)[0] == b"done"
    assert len(keys(host)) == 2


async def test_a_file_written_again_is_told_of_again_and_one_only_touched_by_readers_is_not(
    host: Hosted, inbox: Path
) -> None:
    async with watching(host, trigger(inbox)):
        (inbox / "a").write_bytes(b"1")
        await host.publisher.until(1)
        (inbox / "a").read_bytes()
        (inbox / "a").chmod(0o600)
        (inbox / "a").open("ab").close()
        await nothing_more(host, inbox)
        assert keys(host).count(b"a") == 1
        (inbox / "a").write_bytes(b"22")
        await nothing_more(host, inbox)
        assert keys(host).count(b"a") == 2
    first, *_, second = [
        record["s3"]["object"]
        for payload in host.publisher.payloads
        for record in payload["Records"]
        if record["s3"]["object"]["key"] == "a"
    ]
    assert (first["size"], second["size"]) == (1, 2)
    assert first["sequencer"] < second["sequencer"]


async def test_a_file_deleted_before_anyone_looked_is_nobodys_news(
    host: Hosted, inbox: Path
) -> None:
    async with watching(host, trigger(inbox)):
        (inbox / "gone").write_bytes(b"1")
        (inbox / "gone").unlink()
        await nothing_more(host, inbox)
    assert b"gone" not in keys(host)


async def test_links_pipes_and_sockets_are_passed_over_and_loops_end(
    host: Hosted, inbox: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"s")

    def litter(folder: Path) -> None:
        (folder / "link").symlink_to(tmp_path / "secret")
        (folder / "loop").symlink_to(inbox)
        (folder / "other").symlink_to(tmp_path / "elsewhere")
        os.mkfifo(folder / "pipe")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(folder / "socket"))

    litter(inbox)
    async with watching(host, trigger(inbox)):
        (inbox / "later").mkdir()
        litter(inbox / "later")
        await nothing_more(host, inbox)
    assert len(keys(host)) == 1


async def test_a_second_name_of_a_file_is_a_file(host: Hosted, inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "original").write_bytes(b"1")
    async with watching(host, trigger(inbox)):
        (inbox / "copy").hardlink_to(tmp_path / "original")
        await host.publisher.until(1)
    assert keys(host) == [b"copy"]


NAMES = [b"two\nlines", b"not \xff utf-8", b"%41 percent", b"-", b"\xf0\x9f\x98\x80", b"a" * 255]


async def test_any_name_is_told_as_it_is(host: Hosted, inbox: Path) -> None:
    for name in NAMES[:3]:
        (inbox / os.fsdecode(name)).write_bytes(b"")
    async with watching(host, trigger(inbox)):
        for name in NAMES[3:]:
            (inbox / os.fsdecode(name)).write_bytes(b"")
        await host.publisher.until(len(NAMES))
        (inbox / "sub\udcff").mkdir()
        (inbox / "sub\udcff" / "file").write_bytes(b"")
        await host.publisher.until(len(NAMES) + 1)
    assert {*keys(host)} == {*NAMES, b"sub\xff/file"}


async def test_what_came_while_nobody_watched_is_told_of_and_the_rest_is_remembered(
    host: Hosted, inbox: Path
) -> None:
    watched = trigger(inbox)
    async with watching(host, watched):
        (inbox / "same").write_bytes(b"1")
        (inbox / "changed").write_bytes(b"1")
        (inbox / "removed").write_bytes(b"1")
        await host.publisher.until(3)
        await host.memory.written.until(lambda: len(host.memory.values["t"]) == 4)
    (inbox / "changed").write_bytes(b"22")
    (inbox / "new").write_bytes(b"1")
    (inbox / "removed").unlink()
    async with watching(host, watched):
        await host.publisher.until(5)
        await nothing_more(host, inbox)
    assert sorted(keys(host)[3:5]) == [b"changed", b"new"]
    assert host.publisher.dropped == 0
    assert b"removed" not in host.memory.values["t"]


async def test_what_was_there_before_the_trigger_is_no_news(
    host: Hosted, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "FOUND_S", 0.0)
    (inbox / "old").write_bytes(b"1")
    created_ms = time.time_ns() // 1_000_000 + 1_000
    async with watching(host, trigger(inbox, created_ms=created_ms)):
        await nothing_more(host, inbox)
        assert b"old" not in keys(host)
        (inbox / "old").write_bytes(b"22")
        await host.publisher.until(2)
    assert keys(host)[1:] == [b"old"]


async def test_an_event_that_was_accepted_and_not_remembered_comes_once(
    host: Hosted, inbox: Path
) -> None:
    async with watching(host, trigger(inbox)):
        host.memory.raises = Unavailable("away")
        (inbox / "a").write_bytes(b"1")
        await host.publisher.until(1)
    host.memory.raises = None
    async with watching(host, trigger(inbox)):
        await nothing_more(host, inbox)
        await host.publisher.asked.until(lambda: host.publisher.dropped)
    assert keys(host).count(b"a") == 1


async def test_a_file_waits_while_the_lane_is_full(host: Hosted, inbox: Path) -> None:
    async with watching(host, trigger(inbox)):
        host.publisher.raises = Throttled("full")
        (inbox / "a").write_bytes(b"1")
        await host.publisher.asked.wait()
        host.publisher.raises = None
        await host.publisher.until(1)
    assert keys(host) == [b"a"]


async def test_a_file_whose_function_went_runs_nothing(host: Hosted, inbox: Path) -> None:
    async with watching(host, trigger(inbox)):
        host.publisher.raises = FunctionNotFound("Function not found: f")
        (inbox / "a").write_bytes(b"1")
        await host.publisher.asked.wait()
        host.publisher.raises = None
        await nothing_more(host, inbox)
    assert len(keys(host)) == 1


async def test_folders_that_are_made_moved_and_removed_are_followed(
    host: Hosted, inbox: Path, tmp_path: Path
) -> None:
    async with watching(host, trigger(inbox)):
        (inbox / "a" / "b" / "c").mkdir(parents=True)
        (inbox / "a" / "b" / "c" / "1").write_bytes(b"")
        await host.publisher.until(1)
        (inbox / "a").rename(inbox / "z")
        await host.publisher.until(2)
        (inbox / "z" / "b" / "c" / "2").write_bytes(b"")
        await host.publisher.until(3)
        (inbox / "z").rename(tmp_path / "outside")
        (tmp_path / "outside" / "b" / "c" / "3").write_bytes(b"")
        await nothing_more(host, inbox)
    assert keys(host)[:3] == [b"a/b/c/1", b"z/b/c/1", b"z/b/c/2"]
    assert len(keys(host)) == 4


async def test_a_watched_folder_that_goes_and_comes_back_is_watched_again(
    host: Hosted, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "MISSING_S", 0.05)
    async with watching(host, trigger(inbox)):
        (inbox / "1").write_bytes(b"")
        await host.publisher.until(1)
        os.rename(inbox, tmp_path / "away")
        (tmp_path / "away" / "2").write_bytes(b"")
        (tmp_path / "away").rename(inbox)
        await host.publisher.until(2)
        (inbox / "3").write_bytes(b"")
        await host.publisher.until(3)
    assert keys(host) == [b"1", b"2", b"3"]


async def test_two_triggers_on_folders_within_each_other_each_tell_what_is_theirs(
    host: Hosted, inbox: Path
) -> None:
    (inbox / "sub").mkdir()
    outer, inner = trigger(inbox, "outer"), trigger(inbox / "sub", "inner")
    async with watching(host, outer, inner):
        (inbox / "sub" / "1").write_bytes(b"")
        await host.publisher.until(2)
        host.triggers.set(TriggerSet((), (inner,)))
        await anyio.wait_all_tasks_blocked()
        (inbox / "sub" / "2").write_bytes(b"")
        (inbox / "3").write_bytes(b"")
        await nothing_more(host, inbox / "sub")
    assert sorted(keys(host)[:2]) == [b"1", b"sub/1"]
    assert b"2" in keys(host)
    assert b"3" not in keys(host)


async def test_a_burst_that_overflows_the_kernels_queue_loses_nothing(
    host: Hosted, inbox: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = inotify.Inotify.read

    def losing(self: inotify.Inotify) -> Iterator[inotify.Notice]:
        notices = [*real(self)]
        if len(notices) > 100:
            notices = [*notices[:50], inotify.Notice(-1, inotify.OVERFLOW, b"")]
        yield from notices

    monkeypatch.setattr(inotify.Inotify, "read", losing)
    async with watching(host, trigger(inbox)):
        for n in range(2_000):
            (inbox / f"{n}").write_bytes(b"")
        await host.publisher.until(2_000)
    assert {*keys(host)} == {b"%d" % n for n in range(2_000)}
    assert host.publisher.dropped == 0
    assert "too much happened at once" in caplog.text


async def test_without_watches_files_are_found_by_looking(
    host: Hosted, inbox: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(self: inotify.Inotify, folder: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inotify.Inotify, "add", none_left)
    monkeypatch.setattr(tree, "LOOK_AGAIN_S", 0.1)
    async with watching(host, trigger(inbox)):
        (inbox / "a").write_bytes(b"1")
        await host.publisher.until(1)
    assert "sysctl fs.inotify.max_user_watches" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="wants a uid to give up")
async def test_a_file_that_cannot_be_read_is_told_of_once_it_can(
    host: Hosted, inbox: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.open

    def closed(path: bytes, flags: int, *rest: int, **options: int) -> int:
        # Root reads everything; the adapters' uid does not.
        if isinstance(path, bytes) and not os.stat(path).st_mode & 0o004:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", closed)
    async with watching(host, trigger(inbox)):
        (inbox / "mine").write_bytes(b"1")
        (inbox / "mine").chmod(0o600)
        await nothing_more(host, inbox)
        assert b"mine" not in keys(host)
        assert "mine cannot be read: chmod o+r it" in caplog.text
        (inbox / "mine").chmod(0o644)
        await host.publisher.until(2)
    assert keys(host)[1:] == [b"mine"]


async def test_a_folder_that_is_not_there_is_said_once_and_watched_when_it_comes(
    host: Hosted, inbox: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tree, "MISSING_S", 0.01)
    os.rmdir(inbox)
    host.triggers.set(TriggerSet((), (trigger(inbox),)))
    with caplog.at_level(logging.WARNING):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, host)
            with anyio.fail_after(30):
                while "cannot be watched" not in caplog.text:
                    await anyio.lowlevel.checkpoint()
            os.mkdir(inbox)
            (inbox / "a").write_bytes(b"1")
            await host.publisher.until(1)
            tasks.cancel_scope.cancel()
    assert caplog.text.count("cannot be watched") == 1


async def test_a_watch_ends_with_its_folder_and_with_its_watcher(tmp_path: Path) -> None:
    class Deaf:
        def noticed(self, mask: int, folder: bytes, name: bytes) -> None: ...
        def lost_notices(self) -> None: ...

    watches, deaf = Watches(), Deaf()
    for folder in (b"", b"a", b"a/b", b"ab"):
        (tmp_path / os.fsdecode(folder)).mkdir(exist_ok=True)
        watches.add(deaf, os.fsencode(tmp_path), folder)
    assert repr(watches) == "<Watches 4 folders>"
    watches.drop(deaf, b"a")
    assert repr(watches) == "<Watches 2 folders>"
    (tmp_path / "ab").rename(tmp_path / "moved")
    watches.add(deaf, os.fsencode(tmp_path), b"moved")
    watches.drop(deaf, b"ab")
    assert repr(watches) == "<Watches 2 folders>"
    watches.drop(deaf)
    assert repr(watches) == "<Watches 0 folders>"
