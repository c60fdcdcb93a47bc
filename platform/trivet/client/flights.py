"""Flights: signed HTTP/1.1 requests on their way, over connections that are kept and used again.

A request is sent once. When its connection is lost, nobody can tell whether it arrived, so that is
the caller's to decide.
"""

from __future__ import annotations

import time
from collections import deque

import httptools

from trivet.client.answers import Answer, NoAnswer
from trivet.client.places import Place, command
from trivet.client.signing import Signer
from trivet.client.wires import Network, Wire
from trivet.errors import PlatformError, Unavailable

# The platform closes a connection that was quiet for a minute.
KEPT_QUIET_S = 45.0

AGENT = b"trivet-python"


class Connections:
    """The connections to one place. Threads may share them, if the network is the blocking one."""

    def __init__(self, place: Place, network: Network) -> None:
        self._place = place
        self._network = network
        self._signer = Signer(place.access_key, place.secret, place.region)
        self._quiet: deque[tuple[Wire, float]] = deque()  # and since when; the newest last
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Connections to {self._place.url}, {len(self._quiet)} quiet>"

    async def ask(
        self,
        method: str,
        path: str,
        service: str,
        body: bytes = b"",
        headers: dict[bytes, bytes] | None = None,
        *,
        timeout_s: float,
    ) -> Answer:
        """Send a request and wait for its answer. Raises Unavailable, NoAnswer among it."""
        flight = await self.begin(method, path, service, body, headers, timeout_s=timeout_s)
        assert flight is not None
        return await flight.answer()

    async def begin(
        self,
        method: str,
        path: str,
        service: str,
        body: bytes = b"",
        headers: dict[bytes, bytes] | None = None,
        *,
        timeout_s: float,
        may_wait: bool = True,
    ) -> Flight | None:
        """Send a request. None if every connection is in use and it may not wait for one."""
        if self._is_closed:
            raise RuntimeError("this client is closed")
        deadline = time.monotonic() + timeout_s
        if not self._network.enter_now():
            if not may_wait:
                return None
            try:
                await self._network.enter(deadline)
            except TimeoutError as error:
                message = f"every connection was in use for {timeout_s:g} s"
                raise NoAnswer(message) from error
        wire: Wire | None = None
        try:
            wire = await self._wire(deadline)
            head = self._head(method, path, service, body, headers or {})
            await wire.send(head + body, deadline)
        except BaseException as error:
            self._network.leave()
            if wire is not None:
                await wire.close()
            if isinstance(error, OSError):
                raise self._told(error, is_connected=wire is not None) from error
            raise
        return Flight(self, wire, deadline, timeout_s)

    async def _wire(self, deadline: float) -> Wire:
        oldest = time.monotonic() - KEPT_QUIET_S
        while self._quiet:
            try:
                wire, since = self._quiet.pop()
            except IndexError:  # another thread was quicker
                break
            if since > oldest and wire.is_quiet():
                return wire
            await wire.close()
        place = self._place
        return await self._network.connect(place.host, place.port, tls=place.tls, deadline=deadline)

    def _head(
        self, method: str, path: str, service: str, body: bytes, headers: dict[bytes, bytes]
    ) -> bytes:
        fields = {**headers, b"host": self._place.authority.encode()}
        fields = self._signer.signed(method, path, fields, body, service)
        fields[b"user-agent"] = AGENT
        fields[b"content-length"] = str(len(body)).encode()
        lines = [b"%b: %b\r\n" % field for field in fields.items()]
        return b"".join((f"{method} {path} HTTP/1.1\r\n".encode(), *lines, b"\r\n"))

    async def landed(self, wire: Wire, *, is_reusable: bool) -> None:
        """The flight on this wire is over."""
        self._network.leave()
        if is_reusable and not self._is_closed:
            self._quiet.append((wire, time.monotonic()))
        else:
            await wire.close()

    def _told(self, error: OSError, *, is_connected: bool) -> Unavailable:
        if isinstance(error, TimeoutError):
            return NoAnswer(f"{self._place.url} does not answer")
        if is_connected:
            return self.lost()
        message = f"no platform answers at {self._place.url}"
        return Unavailable(message, hint=f"{command()} up --detach")

    def lost(self) -> Unavailable:
        message = "the connection was lost before the answer came; the request may have arrived"
        return Unavailable(message, hint=f"{command()} up --detach")

    async def close(self) -> None:
        """Hang up. What is in flight still lands."""
        self._is_closed = True
        while self._quiet:
            await self._quiet.pop()[0].close()


class Flight:
    """One request that was sent, and the answer to it."""

    def __init__(
        self, connections: Connections, wire: Wire, deadline: float, timeout_s: float
    ) -> None:
        self._connections = connections
        self._wire = wire
        self._deadline = deadline
        self._timeout_s = timeout_s
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._is_whole = False
        self._is_reusable = False  # the connection, for the next request

    async def answer(self) -> Answer:
        """Wait for the answer. Raises Unavailable, NoAnswer among it."""
        try:
            while not self._is_whole:
                data = await self._wire.receive(self._deadline)
                if not data:
                    raise self._connections.lost()
                self._parser.feed_data(data)
        except TimeoutError as error:
            message = f"no answer within {self._timeout_s:g} s; the request may still be served"
            raise NoAnswer(message) from error
        except OSError as error:
            raise self._connections.lost() from error
        except httptools.HttpParserError as error:
            raise PlatformError(f"this is not the platform's answer: {error}") from error
        finally:
            await self._connections.landed(self._wire, is_reusable=self._is_reusable)
        return Answer(self._parser.get_status_code(), self._headers, b"".join(self._body))

    async def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        await self._connections.landed(self._wire, is_reusable=False)

    # ----------------------------------------------------------------------- the parser's calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._is_whole = True
        self._is_reusable = self._parser.should_keep_alive()
