"""Zips from friends and strangers: what is unpacked, and that nothing ever lands elsewhere."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trivet.errors import CallerError
from trivet.store import archive
from trivet.store.blobs import Blobs, RequestEntityTooLarge

COULD_NOT = "Could not unzip uploaded file. Please check your file, then try to upload again."


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    blobs = Blobs(tmp_path / "blobs")
    blobs.prepare()
    return blobs


Item = tuple[str, bytes, int]  # name, content, mode with file type


def zipped(*items: Item, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # duplicate names are what we want here
        with zipfile.ZipFile(out, "w", method) as target:
            for name, content, mode in items:
                info = zipfile.ZipInfo("placeholder")
                info.filename = name
                info.external_attr = mode << 16
                info.create_system = 3
                info.compress_type = method
                target.writestr(info, content)
    return out.getvalue()


def plain(name: str, content: bytes = b"x") -> Item:
    return name, content, stat.S_IFREG | 0o644


def link(name: str, target: str) -> Item:
    return name, target.encode(), stat.S_IFLNK | 0o777


def everything_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_package_is_unpacked_and_kept(blobs: Blobs) -> None:
    big = os.urandom(700_000) + b"\0" * 3_000_000
    data = zipped(
        plain("index.mjs", b"export const handler = 1"),
        ("bin/tool", b"#!/bin/sh\n", stat.S_IFREG | 0o700),
        ("lib/", b"", stat.S_IFDIR | 0o700),
        ("lib/deep/big", big, stat.S_IFREG | 0o600),
        ("setuid", b"x", stat.S_IFREG | 0o4755),
        link("lib/deep/up", "../../index.mjs"),
        link("lib64", "lib"),
        plain("empty", b""),
        plain("./dotted//name", b"y"),
    )
    blob = blobs.put(data)
    assert blob.sha256_hex == hashlib.sha256(data).hexdigest()
    assert len(blob.sha256_base64) == 44
    assert blob.bytes == len(data)

    tree = blobs.tree(blob.sha256_hex)
    assert (tree / "index.mjs").read_bytes() == b"export const handler = 1"
    assert (tree / "lib64/deep/big").read_bytes() == big
    assert (tree / "lib/deep/up").read_bytes() == b"export const handler = 1"
    assert (tree / "empty").read_bytes() == b""
    assert (tree / "dotted/name").read_bytes() == b"y"
    assert blobs.zip(blob.sha256_hex) == data
    assert blobs.location(blob.sha256_hex).startswith("file:///")


def test_other_uids_may_read_and_pass_but_not_list(blobs: Blobs, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        data = zipped(plain("a/f"), ("a/tool", b"x", stat.S_IFREG | 0o700))
        blob = blobs.put(data)
    finally:
        os.umask(before)
    tree = blobs.tree(blob.sha256_hex)

    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(tree.parent.parent) == 0o711
    assert mode(tree.parent) == 0o711
    assert mode(tree) == 0o755
    assert mode(tree / "a") == 0o755
    assert mode(tree / "a/f") == 0o644
    assert mode(tree / "a/tool") == 0o755
    assert mode(tree.parent / "code.zip") == 0o600


def test_the_same_zip_again_is_no_work(blobs: Blobs) -> None:
    data = zipped(plain("f"))
    first = blobs.put(data)
    inode = blobs.tree(first.sha256_hex).stat().st_ino
    assert blobs.put(data) == first
    assert blobs.tree(first.sha256_hex).stat().st_ino == inode


def test_check_keeps_nothing(blobs: Blobs, tmp_path: Path) -> None:
    data = zipped(plain("f"), link("l", "f"))
    assert blobs.check(data).sha256_hex == hashlib.sha256(data).hexdigest()
    assert everything_under(tmp_path / "blobs") == set()
    with pytest.raises(CallerError):
        blobs.check(zipped(link("l", "/etc/passwd")))


def test_leftovers_of_a_crash_are_removed(blobs: Blobs, tmp_path: Path) -> None:
    kept = blobs.put(zipped(plain("f")))
    half = tmp_path / "blobs" / "unpacking-abc" / "code"
    half.mkdir(parents=True)
    (half / "f").write_bytes(b"half")
    blobs.prepare()
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [kept.sha256_hex]


def test_a_stored_archive_a_prefix_and_a_comment_are_fine(blobs: Blobs) -> None:
    data = zipped(plain("f", b"hello"), method=zipfile.ZIP_STORED)
    with_prefix = b"#!/usr/bin/env python3\n" + data
    with_comment = data[:-2] + struct.pack("<H", 5) + b"hello"
    for each in (data, with_prefix, with_comment):
        assert (blobs.tree(blobs.put(each).sha256_hex) / "f").read_bytes() == b"hello"


def test_what_streaming_writers_make_is_fine(blobs: Blobs) -> None:
    class Stream(io.RawIOBase):
        """Cannot seek, so that sizes follow the content."""

        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]  # bytes are all it gets
            self.data += bytes(data)
            return len(data)

    stream = Stream()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target,
        target.open("f", "w", force_zip64=True) as entry,
    ):
        entry.write(b"hello" * 1000)
    tree = blobs.tree(blobs.put(stream.data).sha256_hex)
    assert (tree / "f").read_bytes() == b"hello" * 1000


def test_numbers_in_zip64_fields_are_read(blobs: Blobs) -> None:
    content = b"hello"
    local = struct.pack(
        "<4s5H3L2H",
        b"PK\x03\x04",
        45,
        0,
        0,
        0,
        0,
        zlib.crc32(content),
        0xFFFFFFFF,
        0xFFFFFFFF,
        1,
        20,
    )
    wide = struct.pack("<HHQQ", 1, 16, 5, 5)
    body = local + b"f" + wide + content
    central = struct.pack(
        "<4s4B4HL2L5H2L",
        *(b"PK\x01\x02", 45, 3, 45, 0, 0, 0, 0, 0, zlib.crc32(content)),
        *(0xFFFFFFFF, 0xFFFFFFFF, 1, 28, 0, 0, 0, 0o100644 << 16, 0xFFFFFFFF),
    )
    central += b"f" + struct.pack("<HHQQQ", 1, 24, 5, 5, 0)
    end64 = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(central), len(body)
    )
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(body) + len(central), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", *[0xFFFF] * 4, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    blob = blobs.put(body + central + end64 + locator + end)
    assert (blobs.tree(blob.sha256_hex) / "f").read_bytes() == content


GOOD = zipped(plain("folder/file", b"content" * 100), plain("other"))


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    assert len(old) == len(new)
    return data.replace(old, new)


def encrypted(data: bytes) -> bytes:
    position = data.index(b"PK\x01\x02")
    return data[: position + 8] + b"\x01\x00" + data[position + 10 :]


def bomb(entries: int) -> bytes:
    """Many entries that all unpack the same bytes of the archive."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    kernel = packer.compress(b"\0" * 1_000_000) + packer.flush()
    crc = zlib.crc32(b"\0" * 1_000_000)
    local = struct.pack(
        "<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 0, crc, len(kernel), 1_000_000, 1, 0
    )
    central = b"".join(
        struct.pack(
            "<4s4B4HL2L5H2L",
            *(b"PK\x01\x02", 20, 3, 20, 0, 0, 8, 0, 0, crc),
            *(len(kernel), 1_000_000, 1, 0, 0, 0, 0, 0o100644 << 16, 0),
        )
        + b"f"
        for _ in range(entries)
    )
    body = local + b"f" + kernel
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, entries, entries, len(central), len(body), 0)
    return body + central + end


def understated() -> bytes:
    """Says that its content is smaller than it is."""
    data = zipped(plain("f", b"a" * 100_000))
    return data.replace(struct.pack("<L", 100_000), struct.pack("<L", 10))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "not a zip": lambda: b"hello, this is no zip",
    "truncated": lambda: GOOD[:-30],
    "cut in the middle": lambda: GOOD[: len(GOOD) // 2],
    "bad crc": lambda: patched(
        zipped(plain("f", b"hello"), method=zipfile.ZIP_STORED), b"hello", b"jello"
    ),
    "damaged deflate": lambda: flipped(GOOD, 45),
    "zip slip": lambda: zipped(plain("../outside")),
    "zip slip deep": lambda: zipped(plain("a/b/../../../outside")),
    "dot dot inside": lambda: zipped(plain("a/../b")),
    "absolute": lambda: zipped(plain("/tmp/trivet-outside")),
    "backslashes": lambda: zipped(plain("..\\outside")),
    "link out": lambda: zipped(link("l", "../../outside")),
    "link to parent": lambda: zipped(link("l", "..")),
    "absolute link": lambda: zipped(link("l", "/etc/passwd")),
    "empty link": lambda: zipped(link("l", "")),
    "link with nul": lambda: zipped(link("l", "a\0b")),
    "link over a link": lambda: zipped(
        plain("a/b/f"), link("a/b/up", "../.."), link("x", "a/b/up/../..")
    ),
    "write through a link": lambda: zipped(link("d", "."), plain("d/f")),
    "write over a link": lambda: zipped(plain("f"), link("l", "f"), plain("l")),
    "folder that is a link": lambda: zipped(link("d", "."), ("d/", b"", stat.S_IFDIR | 0o755)),
    "device": lambda: zipped(("null", b"", stat.S_IFCHR | 0o666)),
    "pipe": lambda: zipped(("pipe", b"", stat.S_IFIFO | 0o666)),
    "same name twice": lambda: zipped(plain("f", b"1"), plain("f", b"2")),
    "file then folder": lambda: zipped(plain("a"), plain("a/b")),
    "folder then file": lambda: zipped(plain("a/b"), plain("a")),
    "overlap bomb": lambda: bomb(200),
    "understated": understated,
    "encrypted": lambda: encrypted(GOOD),
    "nul in a name": lambda: patched(zipped(plain("a_b")), b"a_b", b"a\0b"),
    "two names": lambda: zipped(plain("abc")).replace(b"abc", b"abd", 1),
    "name too long": lambda: zipped(plain("n" * 300)),
    "path too long": lambda: zipped(plain("n/" * 1_100 + "f")),
    "path too deep": lambda: zipped(plain("n/" * 200 + "f")),
    "other method": lambda: zipped(plain("f"), method=zipfile.ZIP_BZIP2),
    "only dots": lambda: zipped(plain(".")),
    "folder with content": lambda: zipped(plain("d/", b"content")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_zips_are_refused_and_leave_nothing(
    name: str, blobs: Blobs, tmp_path: Path
) -> None:
    with pytest.raises(CallerError) as refused:
        blobs.put(HOSTILE[name]())
    assert refused.value.message == COULD_NOT
    assert (refused.value.status, refused.value.error_type) == (
        400,
        "InvalidParameterValueException",
    )
    assert everything_under(tmp_path) == {"blobs"}
    assert not Path("/tmp/trivet-outside").exists()


@pytest.mark.parametrize("data", [zipped(), b"PK\x05\x06" + b"\0" * 18])
def test_an_empty_zip_has_its_own_words(data: bytes, blobs: Blobs) -> None:
    with pytest.raises(CallerError, match="Uploaded file must be a non-empty zip"):
        blobs.put(data)


def test_case_is_no_clash(blobs: Blobs) -> None:
    tree = blobs.tree(blobs.put(zipped(plain("File", b"1"), plain("file", b"2"))).sha256_hex)
    assert (tree / "File").read_bytes() == b"1"
    assert (tree / "file").read_bytes() == b"2"


def test_names_are_bytes(blobs: Blobs) -> None:
    data = patched(zipped(plain("a_b")), b"a_b", b"a\xffb")
    tree = blobs.tree(blobs.put(data).sha256_hex)
    assert os.listdir(os.fsencode(tree)) == [b"a\xffb"]


def test_too_large_unzipped(blobs: Blobs, tmp_path: Path) -> None:
    half = b"\0" * 131_072_001
    with pytest.raises(CallerError) as refused:
        blobs.put(zipped(plain("a", half), plain("b", half)))
    assert refused.value.message == "Unzipped size must be smaller than 262144000 bytes"
    assert everything_under(tmp_path) == {"blobs"}


def test_too_large_zipped(blobs: Blobs) -> None:
    with pytest.raises(RequestEntityTooLarge) as refused:
        blobs.put(b"\0" * 52_428_801)
    assert refused.value.message == "Zipped size must be smaller than 52428800 bytes"
    assert (refused.value.status, refused.value.error_type) == (
        413,
        "RequestEntityTooLargeException",
    )


def test_too_many_entries(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_ENTRIES", 10)
    blobs.put(zipped(*(plain(f"f{i}") for i in range(10))))
    with pytest.raises(CallerError, match="Could not unzip"):
        blobs.put(zipped(*(plain(f"f{i}") for i in range(11))))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4),
    st.integers(0, len(GOOD)),
)
def test_damage_is_refused_in_words_or_harmless(
    blobs: Blobs, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(GOOD)
    for position, value in changes:
        data[position] = value
    # Anything but an error in AWS's words fails the test.
    with suppress(CallerError):
        blobs.check(bytes(data[:length]) if not changes else bytes(data))
