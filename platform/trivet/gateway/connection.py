"""Connection: one client on a listener, and every way in which it may be refused.

uvicorn's httptools protocol parses and serves; here are the limits it lacks. A coarse sweep
compares instants, so a connection costs no timer, neither per request nor per byte.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from math import inf
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
)
from uvicorn.server import ServerState

from trivet.gateway.exchange import Exchange, Outlet, refusal_body

# Beyond the most connections, so many more are told "503"; yet further ones are just cut.
_REFUSED_POLITELY = 64

# What a Host may consist of. Anything else lets two parties read two different hosts.
_HOST_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:[]%!$&'()*+;="

_WATCHED = frozenset({b"host", b"transfer-encoding", b"expect"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long and how large anything a client does may be."""

    header_ms: int = 10_000  # from a request's first byte to the end of its headers
    body_idle_ms: int = 30_000  # between two bytes of a body, while we want more
    write_idle_ms: int = 30_000  # a response that the client does not take
    keep_alive_ms: int = 60_000  # between a response and the next request
    linger_ms: int = 2_000  # for a refused client to read why
    drain_ms: int = 30_000  # for requests in flight when the listener stops
    # Of a listener that stops while another one serves on: how long a connection at rest is kept
    # for a request that is on its way. It is answered, and is the last.
    farewell_ms: int = 2_000
    url_bytes: int = 16_384
    header_bytes: int = 65_536  # request line and all headers
    header_count: int = 256
    max_connections: int = 10_000
    max_pipelined: int = 64  # requests that wait on one connection for the one before them


class Reading(Enum):
    """What the next byte from the client belongs to."""

    NOTHING = "between two requests"
    HEAD = "request line or headers"
    BODY = "body"
    DISCARDED = "nothing that will be answered"


class Connection(HttpToolsProtocol):
    def __init__(self, config: Config, state: ServerState, limits: Limits) -> None:
        super().__init__(config, state, {})
        self._parse_from_here()
        self.limits = limits
        self.reading = Reading.NOTHING
        self.due = inf  # loop time at which the client has waited for too long
        self.running: Exchange | None = None  # the exchange that is being answered
        self.is_leaving = False  # the next response is the last
        self.is_lingering = False  # all is said, and only the client's farewell is awaited
        self.refusal: int | None = None  # set by a parser callback before it stops the parser
        self.message_number = 0
        self.head_bytes = 0
        self.body_bytes = 0
        self.framing_bytes = 0  # of a body's chunks and trailers
        self.unsent_bytes = 0
        self.unsent_due = inf

    # ------------------------------------------------------------------- the transport's calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        self.outlet = Outlet(transport, self.finish)
        crowd = len(self.connections) - self.limits.max_connections
        if crowd > _REFUSED_POLITELY:
            transport.abort()
        elif crowd > 0:
            self._write_refusal(503)
        else:
            self._wait(self.limits.header_ms)

    def connection_lost(self, exc: Exception | None) -> None:
        for exchange in self._unanswered():
            exchange.abandon()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.reading is Reading.DISCARDED:
            return
        before = (self.reading, self.message_number, self.body_bytes)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            if self.refusal is None:
                raise  # a fault of ours, not of the client
            self.refuse(self.refusal)
            return
        except httptools.HttpParserUpgrade as wish:
            self._stay(data[wish.args[0] :])
            return
        except httptools.HttpParserError:
            self.refuse(400)
            return
        if before[:2] == (self.reading, self.message_number):
            self._count_unfinished(len(data), self.body_bytes - before[2])

    def _parse_from_here(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=False)

    def _stay(self, rest: bytes) -> None:
        """Go on in this protocol with a request that wished for another (Java's client does, for
        HTTP/2): its head is read again without the wish, and the rest behind it."""
        version = self.parser.get_http_version().encode()
        start = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        fields = (b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade")
        self._parse_from_here()
        self.data_received(b"".join((start, *fields, b"\r\n", rest)))

    def _count_unfinished(self, fed_bytes: int, body_bytes: int) -> None:
        """Bound what the parser keeps of a head, or passes over in a body, without telling."""
        if self.reading is Reading.HEAD:
            self.head_bytes += fed_bytes
            if self.head_bytes > self.limits.header_bytes:
                self.refuse(431)
        elif self.reading is Reading.BODY:
            self.framing_bytes += fed_bytes - body_bytes
            # The least a chunk of one byte needs is six; a client may be that clumsy, not worse.
            if self.framing_bytes > self.limits.header_bytes + 8 * self.body_bytes:
                self.refuse(400)

    def eof_received(self) -> bool | None:  # type: ignore[override]  # uvicorn never keeps it open
        if self.reading in (Reading.HEAD, Reading.BODY):
            self.refuse(400)
        unanswered = self._unanswered()
        if unanswered and not self.is_lingering:
            # The client only closed its own direction: it still gets what it asked for.
            unanswered[-1].keep_alive = False
            return True
        return None

    # ---------------------------------------------------------------------- the parser's calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.reading = Reading.HEAD
        self.message_number += 1
        self.head_bytes = self.body_bytes = self.framing_bytes = 0
        self._wait(self.limits.header_ms)

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.limits.url_bytes:
            self._stop_parser(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        # What comes after the headers is a trailer, which could overrule what was checked.
        if self.reading is Reading.HEAD:
            self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        method = self.parser.get_method()
        expects_continue = self._check_head(method, version)
        if self.parser.should_upgrade():
            return  # its body is not read: see `_stay`
        raw_path, _, query = self.url.partition(b"?")
        path = raw_path.decode("ascii")
        self.scope["method"] = method.decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = unquote(path) if "%" in path else path
        self.scope["raw_path"] = raw_path
        self.scope["query_string"] = query
        self.reading = Reading.BODY
        self._wait(self.limits.body_idle_ms)
        exchange = self.cycle = Exchange(
            scope=self.scope,
            transport=self.outlet,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=expects_continue,
            keep_alive=(
                version != "1.0" and self.parser.should_keep_alive() and not self.is_leaving
            ),
            on_response=self.on_response_complete,
        )
        if self.running is None:
            self.running = exchange
            self._start_asgi_task(exchange, self.app)
        elif len(self.pipeline) < self.limits.max_pipelined:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))
        else:
            self._stop_parser(429)

    def _check_head(self, method: bytes, version: str) -> bool:
        """Refuse what the parser lets pass. True if the client waits for "100 Continue"."""
        if method == b"CONNECT":
            self._stop_parser(405)
        if version not in ("1.1", "1.0"):
            self._stop_parser(505)
        if not self.url.startswith(b"/") or b"#" in self.url:
            self._stop_parser(400)  # absolute-form would name a second host
        hosts = 0
        expects_continue = False
        head_bytes = len(self.url)
        for name, value in self.headers:
            head_bytes += len(name) + len(value) + 4
            if name in _WATCHED:
                if name == b"host":
                    hosts += 1
                    if value.translate(None, _HOST_BYTES):
                        self._stop_parser(400)
                elif name == b"expect":
                    expects_continue = value.lower() == b"100-continue"
                    if not expects_continue:
                        self._stop_parser(417)
                elif version == "1.0":
                    self._stop_parser(400)
                elif value.lower() != b"chunked":
                    self._stop_parser(501)
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            self._stop_parser(400)
        if head_bytes > self.limits.header_bytes or len(self.headers) > self.limits.header_count:
            self._stop_parser(431)
        return expects_continue and version == "1.1"

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)
        self._wait(self.limits.body_idle_ms)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self.reading = Reading.NOTHING
        self.due = inf  # until the response is complete, it is not the client who dawdles
        super().on_message_complete()

    def _stop_parser(self, status: int) -> None:
        self.refusal = status
        raise ValueError(status)  # the parser reports it to `data_received` as its own error

    # ------------------------------------------------------------------------ ends of exchanges

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self.running = None
        if self.transport.is_closing() or self.is_lingering:
            return
        self.flow.resume_reading()
        if self.pipeline:
            exchange, app = self.pipeline.pop()
            assert isinstance(exchange, Exchange)
            self.running = exchange
            self._start_asgi_task(exchange, app)
        elif self.reading is Reading.NOTHING:
            limits = self.limits
            self._wait(limits.farewell_ms if self.is_leaving else limits.keep_alive_ms)

    def finish(self) -> None:
        """End a connection whose last response is written."""
        # Closing with bytes of the client unread resets the connection, and the response with it.
        if self.reading is Reading.NOTHING:
            self.transport.close()
        else:
            self._linger()

    def refuse(self, status: int) -> None:
        """Answer the request being read with `status`, those before it as usual, and no other."""
        broken = self.cycle if self.reading is Reading.BODY else None
        self.reading = Reading.DISCARDED
        self.due = inf
        if self.transport.is_closing() or self.is_lingering:
            return
        running = self.running
        if running is None:
            self._write_refusal(status)
        elif running is broken:
            running.abandon()
            if running.response_started:
                self.transport.abort()
            else:
                self._write_refusal(status)
        else:
            if self.pipeline and self.pipeline[0][0] is broken:
                self.pipeline.popleft()
            self._unanswered()[-1].keep_alive = False

    def shutdown(self) -> None:
        """Answer what has been asked, and close."""
        unanswered = self._unanswered()
        if unanswered:
            unanswered[-1].keep_alive = False
        else:
            self.transport.close()

    def leave(self) -> None:
        """Answer what has been asked, or the one request that may be on its way, and close.

        May be called again.
        """
        if self.is_leaving:
            return
        self.is_leaving = True
        unanswered = self._unanswered()
        if unanswered:
            # One whose head is read later is the last itself. One that is half answered has
            # promised to take another.
            if self.reading is not Reading.HEAD and not unanswered[-1].response_started:
                unanswered[-1].keep_alive = False
        elif self.reading is Reading.NOTHING:
            self._wait(self.limits.farewell_ms)

    def check(self, now: float) -> None:
        """Part with a client that takes too long. Called for every connection by the sweep."""
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes:
            if unsent_bytes != self.unsent_bytes:
                self.unsent_due = now + self.limits.write_idle_ms / 1000
            elif now >= self.unsent_due:
                self.transport.abort()
        elif now >= self.due:
            self._expire()
        self.unsent_bytes = unsent_bytes

    def _expire(self) -> None:
        if self.is_lingering:
            self.transport.abort()
        elif self.reading is Reading.NOTHING:
            self.transport.close()
        elif self.flow.read_paused:
            self._wait(self.limits.body_idle_ms)  # we are the ones who do not read
        else:
            self.refuse(408)

    # ----------------------------------------------------------------------------------- tools

    def _unanswered(self) -> list[Exchange]:
        """Exchanges that still want their response, the oldest first."""
        waiting = [e for e, _ in reversed(self.pipeline) if isinstance(e, Exchange)]
        return waiting if self.running is None else [self.running, *waiting]

    def _wait(self, duration_ms: int) -> None:
        self.due = self.loop.time() + duration_ms / 1000

    def _write_refusal(self, status: int) -> None:
        head = [STATUS_LINE[status]]
        head += [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        body = refusal_body(status)
        head.append(b"content-type: application/json\r\nconnection: close\r\n")
        self.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (b"".join(head), len(body), body))
        self._linger()

    def _linger(self) -> None:
        self.reading = Reading.DISCARDED
        self.is_lingering = True
        self._wait(self.limits.linger_ms)
        self.flow.resume_reading()
        self.transport.write_eof()
