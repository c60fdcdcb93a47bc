"""Archive: a zip from a stranger, read entry by entry without trusting a number in it.

Only what a deployment package needs is accepted: plain files, folders, and links that stay
inside, stored or deflated. Everything else is MalformedArchive, found before its bytes are used.
"""

from __future__ import annotations

import stat
import struct
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

MAX_ENTRIES = 200_000
MAX_NAME_BYTES = 2_048
MAX_DEPTH = 128
MAX_LINK_BYTES = 1_024
CHUNK_BYTES = 256 * 1024

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_EXTRA = struct.Struct("<2H")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # plain, strong, and with a masked central directory
_UNIX_HOSTS = frozenset({3, 19})  # Unix, macOS: they write a file mode beside each entry


class MalformedArchive(Exception):
    """These bytes are not a zip that may be unpacked."""


class EmptyArchive(MalformedArchive):
    """A zip without an entry."""


class OversizedArchive(MalformedArchive):
    """The entries are larger than allowed, taken together."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder or link of the archive; where it goes and what it holds."""

    parts: tuple[bytes, ...]  # folders, then the name; never "..", never empty but for the root
    kind: int  # stat.S_IFREG, S_IFDIR or S_IFLNK
    is_executable: bool
    size_bytes: int
    crc: int
    method: int
    content: memoryview  # as it lies in the archive

    def chunks(self) -> Iterator[bytes]:
        """The content, inflated; never more than `size_bytes`. Checks size and CRC at the end."""
        crc, left = 0, self.size_bytes
        for chunk in _stored(self.content) if self.method == _STORED else _inflated(self.content):
            left -= len(chunk)
            if left < 0:
                raise MalformedArchive("an entry is larger than it says")
            crc = zlib.crc32(chunk, crc)
            yield chunk
        if left or crc != self.crc:
            raise MalformedArchive("an entry is damaged")

    def link_target(self) -> bytes:
        """Where the link points: always to something inside the archive.

        Going up is allowed at the start only. A link's folder is a real one, so ".." leads to its
        real parent there; after a name it might lead out of wherever that name points.
        """
        if self.size_bytes > MAX_LINK_BYTES:
            raise MalformedArchive("a link is too long")
        target = b"".join(self.chunks())
        parts = [part for part in target.split(b"/") if part not in (b"", b".")]
        up = 0
        while up < len(parts) and parts[up] == b"..":
            up += 1
        is_inside = up <= len(self.parts) - 1 and b".." not in parts[up:]
        if not target or target.startswith(b"/") or b"\0" in target or not is_inside:
            raise MalformedArchive("a link points outside")
        return target


def read_archive(data: bytes, *, max_bytes: int) -> Iterator[Entry]:
    """Check the whole table of contents, then give each entry in the order of the archive."""
    directory = _directory(data)
    spans = array("Q")
    count = total = 0
    for entry, start, end in _entries(data, directory):
        count += 1
        total += entry.size_bytes
        if count > MAX_ENTRIES:
            raise MalformedArchive("too many entries")
        # One number per entry: where it starts in the archive, and how many bytes it takes there.
        spans.append(start << 32 | (end - start))
    if not count:
        raise EmptyArchive("no entry")
    if total > max_bytes:
        raise OversizedArchive("too large")
    _check_overlap(spans)
    return (entry for entry, _, _ in _entries(data, directory))


@dataclass(frozen=True, slots=True)
class _Directory:
    """Where the table of contents lies, and what to add to the positions in it."""

    start: int
    end: int
    shift: int  # bytes before the archive proper, as in one that unpacks itself


def _directory(data: bytes) -> _Directory:
    # The end record is the last thing but for a comment of up to 65,535 bytes.
    position = data.rfind(b"PK\x05\x06", max(0, len(data) - 65_535 - _END.size))
    if position < 0 or position + _END.size > len(data):
        raise MalformedArchive("not a zip")
    _, disk, first_disk, _, _, size, offset, comment = _END.unpack_from(data, position)
    # 0xFFFF: see the zip64 record, which this never is for an archive on several disks.
    several = not {disk, first_disk} <= {0, 0xFFFF}
    if position + _END.size + comment > len(data) or several:
        raise MalformedArchive("cut off")
    end = position
    locator = position - _END64_LOCATOR.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
        end = locator - _END64.size
        if end < 0 or data[end : end + 4] != b"PK\x06\x06":
            raise MalformedArchive("cut off")
        size, offset = _END64.unpack_from(data, end)[8:10]
    start = end - size
    shift = start - offset
    if start < 0 or shift < 0:
        raise MalformedArchive("cut off")
    return _Directory(start, end, shift)


def _entries(data: bytes, directory: _Directory) -> Iterator[tuple[Entry, int, int]]:
    """Each entry, and the positions in the archive where it starts and ends."""
    view = memoryview(data)
    position = directory.start
    while position < directory.end:
        if position + _CENTRAL.size > directory.end:
            raise MalformedArchive("cut off")
        fields = _CENTRAL.unpack_from(data, position)
        signature, _, host, _, _, flags, method, _, _, crc, packed, size = fields[:12]
        name_bytes, extra_bytes, comment_bytes, disk, _, attributes, offset = fields[12:]
        name_start = position + _CENTRAL.size
        extra_start = name_start + name_bytes
        position = extra_start + extra_bytes + comment_bytes
        if signature != b"PK\x01\x02" or position > directory.end or disk:
            raise MalformedArchive("cut off")
        if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
            raise MalformedArchive("encrypted, or packed in a way that is not supported")
        extra = data[extra_start : extra_start + extra_bytes]
        size, packed, offset = _wide(extra, size, packed, offset)
        start = offset + directory.shift
        name = data[name_start:extra_start]
        content_start = _content_start(data, start, name)
        end = content_start + packed
        if end > directory.start:
            raise MalformedArchive("cut off")
        kind, is_executable = _mode(host, attributes >> 16, name)
        if kind == stat.S_IFDIR and size:
            raise MalformedArchive("a folder with content")
        content = view[content_start:end]
        yield Entry(_parts(name, kind), kind, is_executable, size, crc, method, content), start, end


def _content_start(data: bytes, start: int, name: bytes) -> int:
    """Where the content begins, behind the entry's own header; which must tell the same name."""
    if start + _LOCAL.size > len(data):
        raise MalformedArchive("cut off")
    fields = _LOCAL.unpack_from(data, start)
    signature, flags, name_bytes, extra_bytes = fields[0], fields[2], fields[9], fields[10]
    name_start = start + _LOCAL.size
    if (
        signature != b"PK\x03\x04"
        or flags & _ENCRYPTED
        or data[name_start : name_start + name_bytes] != name
    ):
        raise MalformedArchive("two headers disagree")
    return int(name_start + name_bytes + extra_bytes)


def _wide(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The three numbers, from the zip64 field where they did not fit into 32 bits."""
    numbers = [size, packed, offset]
    if 0xFFFFFFFF not in numbers:
        return size, packed, offset
    position = 0
    while position + _EXTRA.size <= len(extra):
        tag, length = _EXTRA.unpack_from(extra, position)
        position += _EXTRA.size
        if tag == 1:
            wide = extra[position : position + length]
            for i, number in enumerate(numbers):
                if number == 0xFFFFFFFF:
                    if len(wide) < 8:
                        raise MalformedArchive("cut off")
                    numbers[i] = int.from_bytes(wide[:8], "little")
                    wide = wide[8:]
            break
        position += length
    return numbers[0], numbers[1], numbers[2]


def _mode(host: int, mode: int, name: bytes) -> tuple[int, bool]:
    """What the entry is, and whether it may be executed."""
    if host not in _UNIX_HOSTS:
        mode = 0
    kind = stat.S_IFMT(mode)
    if name.endswith(b"/") and kind in (0, stat.S_IFREG):
        kind = stat.S_IFDIR
    kind = kind or stat.S_IFREG
    if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        raise MalformedArchive("a device, a socket or a pipe")
    return kind, bool(mode & 0o111)


def _parts(name: bytes, kind: int) -> tuple[bytes, ...]:
    """The name's parts. Names are bytes, as on disk: their encoding is the function's affair."""
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if (
        not name
        or name.startswith(b"/")
        or b"\0" in name
        or b"\\" in name
        or b".." in parts
        or len(name) > MAX_NAME_BYTES
        or len(parts) > MAX_DEPTH
        or (kind != stat.S_IFDIR and (not parts or name.endswith(b"/")))
    ):
        raise MalformedArchive("a name that leads elsewhere")
    return parts


def _check_overlap(spans: array[int]) -> None:
    """No byte of the archive may serve two entries: that is how small bombs grow large."""
    end = 0
    for span in sorted(spans):
        start = span >> 32
        if start < end:
            raise MalformedArchive("entries overlap")
        end = start + (span & 0xFFFFFFFF)


def _stored(content: memoryview) -> Iterator[bytes]:
    for position in range(0, len(content), CHUNK_BYTES):
        yield bytes(content[position : position + CHUNK_BYTES])


def _inflated(content: memoryview) -> Iterator[bytes]:
    if not content:
        return  # some tools write nothing at all for an empty file
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for position in range(0, len(content), CHUNK_BYTES):
            waiting = bytes(content[position : position + CHUNK_BYTES])
            if inflate.eof:
                raise MalformedArchive("an entry goes on behind its end")
            while waiting and not inflate.eof:
                yield inflate.decompress(waiting, CHUNK_BYTES)
                waiting = inflate.unconsumed_tail
        yield inflate.flush()  # a few hundred bytes at most: all input has been taken
    except zlib.error as error:
        raise MalformedArchive("an entry is damaged") from error
    if not inflate.eof or inflate.unused_data:
        raise MalformedArchive("an entry is cut off, or goes on behind its end")
