"""Identities: who each part of the platform runs as when the launcher is root."""

from __future__ import annotations

import os
from dataclasses import dataclass

from trivet.settings import Settings


@dataclass(frozen=True, slots=True)
class Identity:
    """A uid, its first group and its further groups, of a process without privilege."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """One uid for each part; one group for all, which shares their sockets and logs."""

    gateway: Identity
    supervisor: Identity
    adapters: Identity
    valkey: Identity

    @property
    def gid(self) -> int:
        return self.gateway.gid


def identities(settings: Settings) -> Identities | None:
    """The identities to take on; None when not root: then everything keeps the caller's."""
    if os.geteuid() != 0:
        return None
    first = settings.service_uid
    return Identities(
        gateway=Identity(first, first),
        supervisor=Identity(first + 1, first),
        adapters=Identity(first + 2, first),
        # A group of its own too: only Valkey may make sockets in the run folder.
        valkey=Identity(first + 3, first, (first + 3,)),
    )
