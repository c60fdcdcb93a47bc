"""Presence: what the platform tells of itself once it is ready, and whether it may be at all.

That hangs on the isolation that its environments really got, which only their zygotes know.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from trivet.core import egress
from trivet.core.isolation import Level, level, missing, summary
from trivet.errors import TrivetError
from trivet.launcher import announce, folders
from trivet.launcher.announce import PlatformState
from trivet.launcher.cgroups import Cgroups
from trivet.launcher.members import Server
from trivet.launcher.refusals import Unusable, command
from trivet.runtimes import Runtime
from trivet.settings import Settings


class Presence:
    """The state of a platform, from the first word about its isolation on."""

    def __init__(
        self,
        settings: Settings,
        runtimes: Sequence[Runtime],
        *,
        cgroups: Cgroups,
        has_provisioner: bool,
        begun: float,
        tell: Callable[[PlatformState], None],
    ) -> None:
        """`begun`: monotonic instant of the launcher's start. `tell`: called once, when ready."""
        self._settings = settings
        self._runtimes = tuple(runtimes)
        self._cgroups = cgroups
        most = egress.parse(settings.egress)
        self._is_cut_off = most.kind is not egress.Kind.NONE and not has_provisioner
        self._begun = begun
        self._tell = tell
        self._bits = 0
        self._state: PlatformState | None = None

    def isolated(self, bits: int) -> TrivetError | None:
        """Take note of the isolation of environments; a refusal when it is below the minimum."""
        refusal = below_minimum(bits, self._settings.isolation_minimum, self._cgroups.reason)
        if refusal is None and self._state is not None and bits != self._bits:
            text = self._summary(bits)
            name = level(bits).name
            self._write(
                replace(self._state, isolation=text, isolation_level=name, isolation_bits=bits)
            )
            announce.say_loudly(f"the isolation of functions is now {text}")
        self._bits = bits
        return refusal

    def ready(self, servers: Sequence[Server]) -> None:
        """Write the state file, and tell who waits for it."""
        settings = self._settings
        # Who listens everywhere is reached from here by the loopback address.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
        host = f"[{host}]" if ":" in host else host
        embedded = {server.lane for server in servers}
        state = PlatformState(
            pid=os.getpid(),
            started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            ready_ms=round((time.monotonic() - self._begun) * 1000),
            aws_url=f"http://{host}:{settings.aws_port}",
            http_url=f"http://{host}:{settings.http_port}",
            ports={"aws": settings.aws_port, "http": settings.http_port},
            runtimes=self._runtimes,
            isolation=self._summary(self._bits),
            isolation_level=level(self._bits).name,
            isolation_bits=self._bits,
            valkey=next((server.version for server in servers), ""),
            lanes={
                lane: "embedded" if lane in embedded else "external"
                for lane in ("express", "durable")
            },
        )
        self._write(state)
        self._tell(state)

    def _summary(self, bits: int) -> str:
        version = self._cgroups.version
        return summary(bits, cgroup_version=version, is_cut_off=self._is_cut_off)

    def _write(self, state: PlatformState) -> None:
        self._state = state
        folders.write_state(self._settings, state.to_json())


def below_minimum(bits: int, minimum: str, no_cgroups: str = "") -> Unusable | None:
    """Why environments isolated by `bits` are not to be had, where they may not go below it.

    `no_cgroups`: why there are none, if it is known.
    """
    reached, wanted = level(bits), Level[minimum]
    if reached >= wanted:
        return None
    lacking = ", ".join(missing(bits, wanted))
    reason = f": {no_cgroups}" if no_cgroups and wanted is Level.L3 else ""
    return Unusable(
        f"functions would be isolated to {reached.name} only, and {wanted.name} is the minimum;"
        f" they lack {lacking}{reason}",
        hint=f"{command()} doctor  # says what mends it; or accept it:"
        f" TRIVET_ISOLATION_MINIMUM={reached.name} {command()} up",
    )
