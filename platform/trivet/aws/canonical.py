"""Canonical: the one form of a request that both who signs and who checks work out.

SigV4 signs a digest of this form. Everything here works on the request's raw bytes.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from urllib.parse import quote_from_bytes, unquote_to_bytes

ALGORITHM = "AWS4-HMAC-SHA256"

Pair = tuple[bytes, bytes]


def normalized(raw_path: bytes) -> str:
    """A path without dot segments and doubled slashes, as it is signed and must be routed."""
    text = raw_path.decode("latin-1") or "/"
    if "//" not in text and "/." not in text:
        return text
    kept: list[str] = []
    for segment in text.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    return f"/{'/'.join(kept)}{'/' if kept and text.endswith('/') else ''}"


def canonical_path(raw_path: bytes, service: str) -> str:
    if service == "s3":
        return raw_path.decode("latin-1")  # a key may well hold dots and doubled slashes
    return quote_from_bytes(normalized(raw_path).encode("latin-1"), "/-_.~")


def canonical_headers(fields: Mapping[bytes, bytes], names: Iterable[bytes]) -> bytes:
    """The headers of these names, and the list of them. Raises KeyError for one that is absent."""
    names = list(names)
    lines = [b"%b:%b\n" % (name, b" ".join(fields[name].split())) for name in names]
    return b"".join((*lines, b"\n", b";".join(names)))


def pairs_of(query: bytes) -> list[Pair]:
    """Names and values as they came, still encoded."""
    if not query:
        return []
    parted = (part.partition(b"=") for part in query.split(b"&") if part)
    return [(name, value) for name, _, value in parted]


def canonical_queries(pairs: Sequence[Pair]) -> list[bytes]:
    """The query in the spellings a client may have signed, which all mean the same.

    The second is AWS's: decoded, then encoded its own way. But botocore and others sign what they
    send, with "+" for a space left as it is.
    """
    if not pairs:
        return [b""]
    signed = [pair for pair in pairs if unquote_to_bytes(pair[0]) != b"X-Amz-Signature"]
    sent = b"&".join(b"%b=%b" % pair for pair in sorted(signed))
    recoded = sorted((_recoded(name), _recoded(value)) for name, value in signed)
    again = b"&".join(b"%b=%b" % pair for pair in recoded)
    return [sent] if sent == again else [sent, again]


def _recoded(text: bytes) -> bytes:
    return quote_from_bytes(unquote_to_bytes(text.replace(b"+", b" ")), "-_.~").encode()


def signing_key(secret: str, scope: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def stamp_of(instant: datetime) -> str:
    return instant.strftime("%Y%m%dT%H%M%SZ")
