"""Signing: the client's half of SigV4, over the same canonical form as the platform's."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256

from trivet.aws.canonical import (
    ALGORITHM,
    canonical_headers,
    canonical_path,
    signing_key,
    stamp_of,
)


class Signer:
    """Signs requests with one key. Any thread may use it."""

    def __init__(self, access_key: str, secret: str, region: str) -> None:
        self._access_key = access_key
        self._secret = secret
        self._region = region
        self._keys: dict[str, bytes] = {}  # by scope

    def signed(
        self,
        method: str,
        path: str,
        headers: Mapping[bytes, bytes],
        body: bytes,
        service: str,
        now: datetime | None = None,
    ) -> dict[bytes, bytes]:
        """`headers` with the date and the signature of all of them; names in lower case.

        `path` is as it is sent, percent-encoded and without a query.
        """
        stamp = stamp_of(now or datetime.now(UTC))
        scope = f"{stamp[:8]}/{self._region}/{service}/aws4_request"
        fields = {**headers, b"x-amz-date": stamp.encode()}
        names = sorted(fields)
        head = f"{method}\n{canonical_path(path.encode(), service)}\n\n".encode()
        request = b"%b%b\n%b" % (
            head,
            canonical_headers(fields, names),
            sha256(body).hexdigest().encode(),
        )
        text = f"{ALGORITHM}\n{stamp}\n{scope}\n{sha256(request).hexdigest()}"
        signature = hmac.digest(self._key(scope), text.encode(), "sha256").hex()
        credential = f"{self._access_key}/{scope}"
        listed = b";".join(names).decode()
        fields[b"authorization"] = (
            f"{ALGORITHM} Credential={credential}, SignedHeaders={listed}, Signature={signature}"
        ).encode()
        return fields

    def _key(self, scope: str) -> bytes:
        key = self._keys.get(scope)
        if key is None:
            if len(self._keys) > 16:  # a scope is one service on one day
                self._keys.clear()
            key = self._keys[scope] = signing_key(self._secret, scope)
        return key
