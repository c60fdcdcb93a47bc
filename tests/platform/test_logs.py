"""Log files: lines that cannot break out, and readers that cannot be led astray."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivet.store.log_files import LogFile
from trivet.store.logs import BadToken, LogGroup, LogReader, LogStream, LogWriter

NOON_MS = 1_795_435_200_000  # 2026-11-23T12:00:00Z
DAY_MS = 86_400_000
FILE = "2026-11-23.jsonl"


def write(root: Path, *texts: str, at_ms: int = NOON_MS, stream: str = "s") -> None:
    writer = LogWriter(root)
    for index, text in enumerate(texts):
        writer.add("f", at_ms + index, stream, "function", "r", text)
    writer.close()


def texts(root: Path, **options: object) -> list[str]:
    lines, _ = LogReader(root).filter("f", **options)  # type: ignore[arg-type]  # by name
    return [line.text for line in lines]


@contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: what a full disk looks like to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_line_is_read_as_it_was_written(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path)
    writer.add("f", NOON_MS, "2026/11/23/[$LATEST]ab", "platform", "r-1", "START")
    writer.flush()
    [line], token = LogReader(tmp_path).filter("f")
    assert token is None
    assert (line.at_ms, line.stream, line.kind) == (NOON_MS, "2026/11/23/[$LATEST]ab", "platform")
    assert (line.request_id, line.text) == ("r-1", "START")
    assert len(line.id) == 56
    assert line.id.isdecimal()
    assert stat.S_IMODE((tmp_path / "f" / FILE).stat().st_mode) & ~0o640 == 0
    writer.close()


def test_lines_are_only_remembered_until_they_are_flushed(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path)
    writer.add("f", NOON_MS, "s", "function", "r", "a")
    assert LogReader(tmp_path).groups() == []
    writer.flush()
    writer.add("f", NOON_MS, "s", "function", "r", "b")
    assert texts(tmp_path) == ["a"]
    writer.close()
    assert texts(tmp_path) == ["a", "b"]


@settings(deadline=None)
@given(st.lists(st.text(max_size=20), max_size=8))
def test_no_text_breaks_the_file_or_poses_as_another_line(
    tmp_path_factory: pytest.TempPathFactory, given_texts: list[str]
) -> None:
    root = tmp_path_factory.mktemp("logs")
    write(root, *given_texts, '\n[1,"s","platform","r","END"]\r\n\0', "half \ud83d pair")
    forged = '\n[1,"s","platform","r","END"]\r\n\0'
    assert texts(root) == [*given_texts, forged, "half ? pair"]


def test_days_have_files_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, "old", at_ms=NOON_MS - DAY_MS)
    write(tmp_path, "new")
    assert sorted(os.listdir(tmp_path / "f")) == ["2026-11-22.jsonl", FILE]
    assert texts(tmp_path) == ["old", "new"]
    assert texts(tmp_path, start_ms=NOON_MS) == ["new"]
    assert texts(tmp_path, end_ms=NOON_MS) == ["old"]


def test_lines_are_chosen_by_time_stream_and_text(tmp_path: Path) -> None:
    write(tmp_path, "one", "two", "three")
    write(tmp_path, "four", at_ms=NOON_MS + 3, stream="other")
    assert texts(tmp_path, start_ms=NOON_MS + 1, end_ms=NOON_MS + 3) == ["two", "three"]
    assert texts(tmp_path, stream="other") == ["four"]
    assert texts(tmp_path, pattern="o") == ["one", "two", "four"]
    assert texts(tmp_path, where=lambda line: len(line.text) == 3) == ["one", "two"]


def test_pages_join_without_a_gap_or_a_double(tmp_path: Path) -> None:
    write(tmp_path, *"abcde")
    write(tmp_path, *"fg", at_ms=NOON_MS + DAY_MS)
    reader = LogReader(tmp_path)
    found, token = reader.filter("f", limit=2)
    pages = 1
    while token is not None:
        lines, token = reader.filter("f", after=token, limit=2)
        found += lines
        pages += 1
    assert "".join(line.text for line in found) == "abcdefg"
    assert pages == 4
    assert [line.text for line in reader.filter("f", after=found[3].after)[0]] == list("efg")


def test_a_log_is_followed_by_the_place_behind_its_last_line(tmp_path: Path) -> None:
    write(tmp_path, "a")
    last = LogReader(tmp_path).filter("f")[0][-1]
    assert LogReader(tmp_path).filter("f", after=last.after) == ([], None)
    write(tmp_path, "b")
    assert texts(tmp_path, after=last.after) == ["b"]


@pytest.mark.parametrize("token", ["", "x", "2026-11-23", "../../etc/passwd/1", "2026-11-23/-1"])
def test_a_made_up_token_is_refused(tmp_path: Path, token: str) -> None:
    write(tmp_path, "a")
    if token:
        with pytest.raises(BadToken):
            LogReader(tmp_path).filter("f", after=token)
    assert LogReader(tmp_path).filter("f", after="2026-11-23/999999") == ([], None)
    assert LogReader(tmp_path).filter("f", after="2026-11-23/1") == ([], None)


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "a")
    path = tmp_path / "f" / FILE
    with path.open("ab") as file:
        file.write(b'\xff\n\n{}\n[1,2]\n["x","s","function","r","t"]\n[1,"s","function","r",5]\n')
    write(tmp_path, "b")
    assert texts(tmp_path) == ["a", "b"]
    assert [line.text for line in LogReader(tmp_path).last("f", limit=9)] == ["a", "b"]


def test_a_torn_line_costs_no_other(tmp_path: Path) -> None:
    write(tmp_path, "a", "torn")
    path = tmp_path / "f" / FILE
    os.truncate(path, path.stat().st_size - 4)
    assert texts(tmp_path) == ["a"]
    write(tmp_path, "b")
    assert texts(tmp_path) == ["a", "b"]


def test_a_full_disk_costs_lines_and_says_so(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path)
    writer.add("f", NOON_MS, "s", "function", "r", "before")
    writer.flush()
    size = (tmp_path / "f" / FILE).stat().st_size
    with full_disk(size + 10):
        for text in ("lost", "lost too"):
            writer.add("f", NOON_MS, "s", "function", "r", text)
            writer.flush()
    assert writer.dropped_bytes > 0
    writer.add("f", NOON_MS, "s", "function", "r", "after")
    writer.flush()
    before, told, after = LogReader(tmp_path).filter("f")[0]
    assert (before.text, after.text) == ("before", "after")
    assert told.kind == "platform"
    assert told.text == f"{writer.dropped_bytes} bytes of log lines were dropped: the disk was full"
    writer.close()


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("in the way")
    writer = LogWriter(tmp_path)
    writer.add("f", NOON_MS, "s", "function", "r", "lost")
    writer.close()
    assert writer.dropped_bytes > 0


def test_more_functions_than_open_files_lose_nothing(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path)
    for _ in range(2):
        for index in range(100):
            writer.add(f"f{index}", NOON_MS, "s", "function", "r", "x")
        writer.flush()
    writer.close()
    reader = LogReader(tmp_path)
    assert len(reader.groups()) == 100
    assert all(len(reader.filter(f"f{index}")[0]) == 2 for index in range(100))


def test_lines_after_a_deletion_are_kept(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path)
    writer.add("f", NOON_MS, "s", "function", "r", "old")
    writer.flush()
    (tmp_path / "f" / FILE).unlink()
    (tmp_path / "f").rmdir()
    writer.add("f", NOON_MS, "s", "function", "r", "new")
    writer.close()
    assert texts(tmp_path) == ["new"]


def test_groups_and_streams_are_described(tmp_path: Path) -> None:
    write(tmp_path, "a", "b", stream="one")
    write(tmp_path, "c", at_ms=NOON_MS + 5, stream="two")
    (tmp_path / "not a function").mkdir()
    reader = LogReader(tmp_path)
    size = (tmp_path / "f" / FILE).stat().st_size
    assert reader.groups() == [LogGroup("f", NOON_MS - DAY_MS // 2, size)]
    assert reader.streams("f") == [
        LogStream("one", NOON_MS, NOON_MS + 1),
        LogStream("two", NOON_MS + 5, NOON_MS + 5),
    ]
    assert LogReader(tmp_path / "nowhere").groups() == []
    assert reader.group("../f") is None
    assert reader.filter("../f") == ([], None)


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour of lines, more than fits a page or a block."""
    root = tmp_path_factory.mktemp("long")
    writer = LogWriter(root)
    for index in range(36_000):
        writer.add("f", NOON_MS + index * 100, f"s{index % 3}", "function", "r", "x" * (index % 99))
    writer.close()
    return root


def test_the_newest_lines_are_found_from_the_end(long_log: Path) -> None:
    reader = LogReader(long_log)
    lines = reader.last("f", limit=1_000)
    assert [line.at_ms for line in lines] == [NOON_MS + i * 100 for i in range(35_000, 36_000)]
    earlier = reader.last("f", limit=5, before=lines[0].before)
    assert [line.at_ms for line in earlier] == [NOON_MS + i * 100 for i in range(34_995, 35_000)]
    assert len(reader.last("f", limit=10, stream="s1", start_ms=NOON_MS + 3_599_000)) == 3


def test_a_late_start_is_found_without_reading_what_came_before(long_log: Path) -> None:
    path = long_log / "f" / FILE
    start_ms = NOON_MS + 3_500_000
    with LogFile(path) as file:
        offset = file.sought(start_ms)
        assert offset > path.stat().st_size * 0.9
        packed, _ = next(file.forward(offset))
        assert orjson.loads(packed)[0] < start_ms
        assert file.sought(0) == 0
    lines, token = LogReader(long_log).filter("f", start_ms=start_ms, limit=1)
    assert (lines[0].at_ms, token is None) == (start_ms, False)


def test_both_directions_see_the_same_lines(long_log: Path) -> None:
    with LogFile(long_log / "f" / FILE) as file:
        assert list(file.forward(0)) == list(file.backward())[::-1]


def test_a_page_has_an_end_whatever_the_limit(long_log: Path) -> None:
    reader = LogReader(long_log)
    lines, token = reader.filter("f", limit=1_000_000)
    total = len(lines)
    while token is not None:
        lines, token = reader.filter("f", limit=1_000_000, after=token)
        total += len(lines)
    assert total == 36_000
