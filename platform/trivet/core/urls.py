"""Urls: a function's own HTTP address, and what browsers of other sites may do with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

LABEL = "lambda-url"
"""The second label of the host name: ID.lambda-url.REGION.localhost."""

FALLBACK = "/_url/"
"""Reaches a function URL by its id where its host name does not resolve."""

AuthType = Literal["NONE", "AWS_IAM"]

_ID = re.compile(r"[a-z0-9]{32}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cors:
    """What the platform tells browsers. A member that is None was never set."""

    allow_credentials: bool | None = None
    allow_headers: tuple[str, ...] | None = None
    allow_methods: tuple[str, ...] | None = None
    allow_origins: tuple[str, ...] | None = None
    expose_headers: tuple[str, ...] | None = None
    max_age_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionUrl:
    """An HTTP address that leads to one function and nothing else."""

    id: str  # 32 lower-case letters and digits: the first label of its host name
    function: str
    auth_type: AuthType
    created_us: int  # since the Unix epoch, as modified_us
    modified_us: int
    cors: Cors | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """A request as it came over the wire, for proving who signed it. Header names in lower case."""

    method: str
    raw_path: bytes
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Who signed a request, as the function is told."""

    access_key: str
    account: str
    arn: str
    user_id: str


def is_url_host(host: str) -> bool:
    """Whether a host name (in lower case) is one that only function URLs have."""
    labels = host.split(".", 2)
    return len(labels) > 2 and labels[1] == LABEL


def addressed(host: str, path: str) -> tuple[str, str] | None:
    """Id of the function URL that a request means, and the path beneath it."""
    if is_url_host(host):
        return host.partition(".")[0], path
    if path.startswith(FALLBACK):
        url_id, _, rest = path[len(FALLBACK) :].partition("/")
        if _ID.match(url_id):
            return url_id, f"/{rest}"
    return None


def url_to_record(url: FunctionUrl) -> dict[str, Any]:
    """Plain values for msgpack; the inverse of `url_from_record`."""
    return asdict(url)


def url_from_record(record: Mapping[str, Any]) -> FunctionUrl:
    given = record["cors"]
    if given is None:
        return FunctionUrl(**record)
    members: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return FunctionUrl(**{**record, "cors": Cors(**members)})
