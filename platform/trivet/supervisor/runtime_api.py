"""Runtime API: how a custom runtime takes events and answers, over HTTP inside its own network.

One of these serves one environment. It turns the frames that a channel would carry into the calls
of `2018-06-01` and back, so the rest of the supervisor knows one protocol. Its client is hostile.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import httptools

from trivet_worker import wire

PREFIX = "/2018-06-01/runtime/"
# Each may hold one answer that is not whole yet. Clients of this API use one or two.
MOST_CONNECTIONS = 8
MOST_HEAD_BYTES = 65_536
# Requests that come at once, or wait behind /next. No runtime pipelines.
MOST_PIPELINED = 16

# Answered since 2026 to a reply that belongs to an earlier attempt.
_GONE = (410, "ErrorRuntimeInvokeTimeout", "The invocation of this reply has ended.")
_TOO_LARGE = (
    413,
    "RequestEntityTooLarge",
    f"Exceeded maximum allowed payload size ({wire.MAX_RESPONSE_BYTES} bytes).",
)
_UNKNOWN_ID = (400, "InvalidRequestID", "Invalid request ID")
_WRONG_STATE = (403, "InvalidStateTransition", "Transition from this state is not allowed.")
_NOT_FOUND = (404, "NotFound", "There is no such call in the Runtime API.")

_PHRASES = {
    200: "OK",
    202: "Accepted",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    410: "Gone",
    413: "Content Too Large",
}


@dataclass(frozen=True, slots=True)
class _Event:
    """One invocation as the runtime sees it."""

    attempt: int
    nonce: str
    request_id: str
    head: bytes  # the headers that describe it
    payload: bytes


class RuntimeApi:
    """The Runtime API of one environment."""

    def __init__(self, listener: socket.socket, received: Callable[[bytes], None]) -> None:
        """Serves on `listener`, which it owns. `received` takes frames, as from a channel."""
        self._received = received
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Event] = deque()  # given by the supervisor, not taken by /next
        self._current: _Event | None = None  # taken, and not answered
        self._asking: deque[_Connection] = deque()  # wait for an event
        self._is_initialised = False
        self._connections: set[_Connection] = set()
        listener.setblocking(False)
        self._starting = self._loop.create_task(self._serve(listener))
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        state = "busy" if self._current else "initialised" if self._is_initialised else "new"
        return f"<RuntimeApi {state}>"

    async def _serve(self, listener: socket.socket) -> None:
        # As many as wait in the kernel are accepted at once, and hold up all others meanwhile.
        self._server = await self._loop.create_server(
            lambda: _Connection(self), sock=listener, backlog=MOST_CONNECTIONS
        )

    def close(self) -> None:
        self._starting.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()

    def send(self, frame: bytes) -> None:
        """Hand over one whole EVENT frame."""
        _, attempt, _ = wire.FRAME.unpack_from(frame)
        start = wire.FRAME.size + wire.EVENT_HEAD.size
        deadline_ms, *lengths = wire.EVENT_HEAD.unpack_from(frame, wire.FRAME.size)
        strings: list[bytes] = []
        for length in lengths:
            strings.append(frame[start : start + length])
            start += length
        request_id, arn, trace_id, client_context = strings
        nonce = secrets.token_hex(8)
        headers = {
            b"Content-Type": b"application/json",
            b"Lambda-Runtime-Aws-Request-Id": request_id,
            b"Lambda-Runtime-Deadline-Ms": b"%d" % deadline_ms,
            b"Lambda-Runtime-Invoked-Function-Arn": arn,
            b"Lambda-Runtime-Trace-Id": trace_id,
            b"Lambda-Runtime-Client-Context": client_context,
            b"Lambda-Runtime-Invocation-Id": nonce.encode(),
        }
        head = b"".join(b"%s: %s\r\n" % pair for pair in headers.items() if _is_header(pair[1]))
        self._waiting.append(_Event(attempt, nonce, request_id.decode(), head, frame[start:]))
        self._give()

    # ------------------------------------------------------------------ told by connections

    def connected(self, connection: _Connection) -> bool:
        self._connections.add(connection)
        return len(self._connections) <= MOST_CONNECTIONS

    def disconnected(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        if connection in self._asking:
            self._asking.remove(connection)

    def asked(self, connection: _Connection) -> None:
        """A runtime that asks for an event is initialised, and done with the one before."""
        if not self._is_initialised:
            self._is_initialised = True
            self._tell(wire.INITIALISED, 0, b"")
        self._asking.append(connection)
        self._give()

    def posted(self, call: str, headers: dict[bytes, bytes], body: bytes) -> tuple[int, bytes]:
        """What a POST is answered: status and body."""
        if call == "init/error":
            if self._is_initialised:
                return _refusal(_WRONG_STATE)
            self._is_initialised = True
            self._tell(wire.INIT_FAILED, 0, _error(headers, body))
            return _accepted()
        parts = call.split("/")
        if len(parts) != 3 or parts[0] != "invocation" or parts[2] not in ("response", "error"):
            return _refusal(_NOT_FOUND)
        event = self._current
        if event is None or event.request_id != parts[1]:
            return _refusal(_UNKNOWN_ID)
        nonce = headers.get(b"lambda-runtime-invocation-id")
        if nonce is not None and nonce != event.nonce.encode():
            return _refusal(_GONE)
        self._current = None
        if parts[2] == "error":
            self._tell(wire.ERROR, event.attempt, _error(headers, body))
        elif len(body) > wire.MAX_RESPONSE_BYTES:
            text = "Response payload size exceeded maximum allowed payload size"
            error = {
                "errorMessage": f"{text} ({wire.MAX_RESPONSE_BYTES} bytes).",
                "errorType": "Function.ResponseSizeTooLarge",
            }
            self._tell(wire.ERROR, event.attempt, json.dumps(error).encode())
            return _refusal(_TOO_LARGE)
        else:
            self._tell(wire.RESULT, event.attempt, body)
        return _accepted()

    def _give(self) -> None:
        while self._waiting and self._asking:
            event = self._waiting.popleft()
            self._current = event
            self._asking.popleft().give(event.head, event.payload)

    def _tell(self, kind: int, attempt: int, body: bytes) -> None:
        # What it used, its cgroup knows.
        usage = wire.USAGE.pack(0)
        self._received(wire.FRAME.pack(kind, attempt, len(usage) + len(body)) + usage + body)


class _Connection(asyncio.Protocol):
    """One connection of the runtime: requests one after the other."""

    def __init__(self, api: RuntimeApi) -> None:
        self._api = api
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._requests: deque[tuple[bytes, str, dict[bytes, bytes], bytes]] = deque()
        self._is_asking = False
        self._come_at_once = 0
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body = bytearray()
        self._received_bytes = 0  # of this request

    # ------------------------------------------------------------------ the transport's calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP
        self._transport = transport
        if not self._api.connected(self):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._api.disconnected(self)

    def data_received(self, data: bytes) -> None:
        self._received_bytes += len(data)
        self._come_at_once = 0
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, ValueError):
            self.abort()
            return
        # Who has asked for an event has nothing to send before it comes.
        most_body = 0 if self._is_asking else wire.MAX_RESPONSE_BYTES
        if self._received_bytes > most_body + 16 * MOST_HEAD_BYTES:
            self.abort()

    def pause_writing(self) -> None:
        """It does not read its answers, so no more of them are written."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------ the parser's calls

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value
        if len(self._headers) > 128:
            raise ValueError("too many headers")

    def on_body(self, body: bytes) -> None:
        # One byte more than may be sent tells too much from just enough.
        room = wire.MAX_RESPONSE_BYTES + 1 - len(self._body)
        self._body += body[:room]

    def on_message_complete(self) -> None:
        self._come_at_once += 1
        if max(self._come_at_once, len(self._requests)) > MOST_PIPELINED:
            raise ValueError("too many requests")
        request = (self._parser.get_method(), self._url.decode("latin-1"), self._headers)
        self._requests.append((*request, bytes(self._body)))
        self._begin()
        self._answer_next()

    # ------------------------------------------------------------------ answers

    def _answer_next(self) -> None:
        while self._requests and not self._is_asking:
            method, path, headers, body = self._requests.popleft()
            call = path.partition("?")[0].removeprefix(PREFIX)
            if method == b"GET" and call == "invocation/next":
                self._is_asking = True
                self._api.asked(self)
            elif method == b"POST" and path.startswith(PREFIX):
                self._write(*self._api.posted(call, headers, body))
            else:
                self._write(*_refusal(_NOT_FOUND))

    def give(self, head: bytes, payload: bytes) -> None:
        """The event that this connection asked for."""
        self._is_asking = False
        self._write(200, payload, head)
        self._answer_next()

    def _write(
        self, status: int, body: bytes, head: bytes = b"Content-Type: application/json\r\n"
    ) -> None:
        line = f"HTTP/1.1 {status} {_PHRASES[status]}\r\nContent-Length: {len(body)}\r\n"
        if self._transport is not None:
            self._transport.write(b"".join((line.encode(), head, b"\r\n", body)))


def _is_header(value: bytes) -> bool:
    """Whether a value has something to say, and cannot be taken for a further header."""
    return bool(value) and value.isascii() and b"\r" not in value and b"\n" not in value


def _error(headers: dict[bytes, bytes], body: bytes) -> bytes:
    """The runtime's report of an error, as JSON whatever it sent."""
    try:
        report = json.loads(body)
        if isinstance(report, dict) and isinstance(report.get("errorType"), str):
            return body
    except (ValueError, RecursionError):
        report = None
    kind = headers.get(b"lambda-runtime-function-error-type", b"Function.Unknown")
    message = report.get("errorMessage", "") if isinstance(report, dict) else ""
    error = {"errorType": kind.decode("latin-1"), "errorMessage": str(message)}
    return json.dumps(error).encode()


def _accepted() -> tuple[int, bytes]:
    return 202, b'{"status":"OK"}\n'


def _refusal(refusal: tuple[int, str, str]) -> tuple[int, bytes]:
    status, kind, message = refusal
    return status, json.dumps({"errorMessage": message, "errorType": kind}).encode()
