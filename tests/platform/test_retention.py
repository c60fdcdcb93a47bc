"""Which log files a sweep removes, on a real folder."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trivet.store.logs import FUNCTION, LogReader, LogWriter
from trivet.store.retention import SETTLED_S, Swept, sweep

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1_000)
DAY_MS = 86_400_000


def written(root: Path, days_ago: int, *, function: str = "f", size_bytes: int = 100) -> Path:
    """A file whose last line came at noon, that many days ago."""
    at_ms = NOW_MS - days_ago * DAY_MS
    day = datetime.fromtimestamp(at_ms / 1_000, UTC).strftime("%Y-%m-%d")
    path = root / function / f"{day}.jsonl"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(b"x" * size_bytes)
    os.utime(path, (at_ms / 1_000, at_ms / 1_000))
    return path


def swept(root: Path, *, most_days: int = 14, most_bytes: int = 1 << 30) -> Swept:
    return sweep(root, now_ms=NOW_MS, most_days=most_days, most_bytes=most_bytes)


def left(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.jsonl"))


def test_days_beyond_the_limit_go_and_the_others_stay(tmp_path: Path) -> None:
    kept = [written(tmp_path, days_ago) for days_ago in (0, 1, 13)]
    gone = [written(tmp_path, days_ago) for days_ago in (14, 15, 400)]
    assert swept(tmp_path) == Swept(files=3, freed_bytes=300, kept_bytes=300)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)


def test_of_too_much_the_oldest_days_of_all_functions_go_first(tmp_path: Path) -> None:
    for days_ago in range(4):
        for function in ("a", "b"):
            written(tmp_path, days_ago, function=function)
    assert swept(tmp_path, most_bytes=500) == Swept(files=3, freed_bytes=300, kept_bytes=500)
    names = ["a/2026-11-22", "a/2026-11-23", "b/2026-11-21", "b/2026-11-22", "b/2026-11-23"]
    assert left(tmp_path) == [f"{name}.jsonl" for name in names]


def test_a_file_that_may_be_written_to_stays_however_large(tmp_path: Path) -> None:
    today = written(tmp_path, 0, size_bytes=10_000)
    yesterday = written(tmp_path, 1, size_bytes=10_000)
    lately = (NOW_MS / 1_000) - SETTLED_S + 1
    os.utime(yesterday, (lately, lately))
    older = written(tmp_path, 2)
    assert swept(tmp_path, most_bytes=1, most_days=1).files == 1
    assert (today.exists(), yesterday.exists(), older.exists()) == (True, True, False)


def test_what_is_no_log_file_is_none_of_its_business(tmp_path: Path) -> None:
    outside = written(tmp_path / "outside", 100)
    root = tmp_path / "logs"
    written(root, 0)
    (root / "link").symlink_to(outside.parent)
    (root / "f" / "2020-01-01.jsonl").symlink_to(outside)
    for name in ("notes.txt", "2020-01-01.jsonl.gz", "20-01-01.jsonl"):
        (root / "f" / name).write_text("mine")
    (root / "stray").write_text("a file where functions are folders")
    assert swept(root, most_bytes=1).files == 0
    assert outside.exists()
    assert len(list((root / "f").iterdir())) == 5


def test_no_folder_yet_is_nothing_to_do(tmp_path: Path) -> None:
    assert swept(tmp_path / "absent") == Swept(0, 0, 0)


def test_a_writer_goes_on_after_its_old_file_was_removed(tmp_path: Path) -> None:
    writer, reader = LogWriter(tmp_path), LogReader(tmp_path)
    old_ms = NOW_MS - 20 * DAY_MS
    writer.add("f", old_ms, "stream", FUNCTION, "id", "long ago")
    writer.flush()
    for path in tmp_path.rglob("*.jsonl"):
        os.utime(path, (old_ms / 1_000, old_ms / 1_000))
    assert swept(tmp_path).files == 1
    writer.add("f", old_ms, "stream", FUNCTION, "id", "late")
    writer.add("f", NOW_MS, "stream", FUNCTION, "id", "now")
    writer.close()
    assert [line.text for line in reader.filter("f")[0]] == ["late", "now"]


@pytest.mark.parametrize("most_bytes", [299, 300])
def test_the_size_limit_is_exact(tmp_path: Path, most_bytes: int) -> None:
    for days_ago in (0, 2, 3):
        written(tmp_path, days_ago)
    assert swept(tmp_path, most_bytes=most_bytes).files == (1 if most_bytes < 300 else 0)
