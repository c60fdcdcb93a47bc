"""Listener: serves an ASGI application on one socket, until it is told to stop."""

from __future__ import annotations

import asyncio
import resource
import socket
from dataclasses import replace
from email.utils import formatdate
from importlib.machinery import EXTENSION_SUFFIXES

import anyio
import httptools.parser.parser
from uvicorn.config import Config
from uvicorn.server import ServerState

from trivet.errors import PlatformError
from trivet.gateway.connection import Connection, Limits
from trivet.gateway.exchange import Application

__all__ = ["Application", "Limits", "serve"]

_BACKLOG = 2048
# Descriptors of a process that are kept for other things than clients.
_RESERVED_DESCRIPTORS = 256


async def serve(
    app: Application,
    *,
    sock: socket.socket,
    stop: anyio.Event,
    succeeded: anyio.Event | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve `app` on the listening `sock` until `stop` is set; then drain and return.

    Draining closes the socket, answers what is in flight for at most `limits.drain_ms`, and cuts
    what is left. If `succeeded` is set by then, another process serves on, and clients at rest
    may move to it by themselves: theirs are closed with the next response, or after a moment.
    A cancelled `serve` cuts everything at once. Several may share a process.
    """
    require_c_parser()
    limits = limits or Limits()
    connections = Connections(app, _within_descriptors(limits))
    server = await asyncio.get_running_loop().create_server(
        connections.connect, sock=sock, backlog=_BACKLOG
    )
    try:
        while not stop.is_set():
            connections.sweep()
            with anyio.move_on_after(connections.sweep_s):
                await stop.wait()
        server.close()
        with anyio.move_on_after(limits.drain_ms / 1000):
            is_succeeded = succeeded is not None and succeeded.is_set()
            await connections.drained(is_succeeded=is_succeeded)
    finally:
        server.close()
        with anyio.CancelScope(shield=True):
            await connections.cut()


class Connections:
    """Every client of one listener."""

    def __init__(self, app: Application, limits: Limits) -> None:
        self._config = Config(
            app,
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
        )
        self._config.load()
        self._state = ServerState()
        self._limits = limits
        shortest_ms = min(limits.header_ms, limits.body_idle_ms, limits.write_idle_ms)
        shortest_ms = min(limits.keep_alive_ms, limits.linger_ms, shortest_ms)
        # At most a tenth late, and at least once in each second for the Date header.
        self.sweep_s = min(max(shortest_ms / 10_000, 0.01), 1.0)

    def __repr__(self) -> str:
        requests = self._state.total_requests
        return f"<Connections {len(self._state.connections)} open, {requests} requests>"

    def connect(self) -> Connection:
        return Connection(self._config, self._state, self._limits)

    def sweep(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        now = asyncio.get_running_loop().time()
        for connection in self._open():
            connection.check(now)

    async def drained(self, *, is_succeeded: bool = False) -> None:
        """Return when every request in flight is answered and every client has gone."""
        if not is_succeeded:
            for connection in self._open():
                connection.shutdown()
        while self._state.connections or self._state.tasks:
            if is_succeeded:  # again and again: the last ones accepted are only now known
                for connection in self._open():
                    connection.leave()
            self.sweep()
            await anyio.sleep(0.01)

    async def cut(self) -> None:
        """End all connections and their exchanges now."""
        for connection in self._open():
            connection.transport.abort()
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _open(self) -> list[Connection]:
        return [c for c in self._state.connections if isinstance(c, Connection)]


def require_c_parser() -> None:
    """Refuse to serve with anything but llhttp, whose strictness the limits build on."""
    if not str(httptools.parser.parser.__file__).endswith(tuple(EXTENSION_SUFFIXES)):
        raise PlatformError("httptools is not the compiled parser")


def _within_descriptors(limits: Limits) -> Limits:
    """Fewer connections where the process may not open that many. Two listeners share them."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits
    share = max((soft - _RESERVED_DESCRIPTORS) // 2, 16)
    return replace(limits, max_connections=min(limits.max_connections, share))
