"""The listener against real sockets: limits, malformed requests, deadlines, drain."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.abc
import pytest

from trivet.gateway.exchange import Message, Receive, Scope, Send
from trivet.gateway.listener import Limits, require_c_parser, serve

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(params=["uvloop", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@dataclass
class Seen:
    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass
class Echo:
    """An application that answers with the body, and keeps what it was asked."""

    seen: list[Seen] = field(default_factory=list)
    gone: int = 0  # requests whose client left before the end of the body
    entered: anyio.Event = field(default_factory=anyio.Event)
    release: anyio.Event = field(default_factory=anyio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.set()
        path = scope["path"]
        if path == "/unread":
            await _answer(send, b"unread")
            return
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone += 1
                return
            body += message["body"]
            more = message["more_body"]
        self.seen.append(Seen(scope["method"], path, scope["query_string"], scope["headers"], body))
        if path == "/wait":
            await self.release.wait()
        if path == "/large":
            body = b"x" * 20_000_000
        if path == "/raise":
            raise RuntimeError("as the test wants it")
        if path == "/silent":
            return
        await _answer(send, body)


async def _answer(send: Send, body: bytes) -> None:
    start: Message = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-length", b"%d" % len(body))],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body})


@dataclass
class Site:
    app: Echo
    port: int
    stop: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)

    async def connect(self) -> anyio.abc.SocketStream:
        return await anyio.connect_tcp("127.0.0.1", self.port)

    async def say(self, *pieces: bytes) -> bytes:
        """Send on a connection of its own and read until the server ends it."""
        async with await self.connect() as stream:
            for piece in pieces:
                try:
                    await stream.send(piece)
                except anyio.BrokenResourceError:
                    break  # it was refused before its end
            return await rest(stream)


async def rest(stream: anyio.abc.SocketStream, *, may_be_reset: bool = False) -> bytes:
    ends = (anyio.EndOfStream, *((anyio.BrokenResourceError,) if may_be_reset else ()))
    received = bytearray()
    while True:
        try:
            received += await stream.receive()
        except ends:
            return bytes(received)


async def read_response(stream: anyio.abc.SocketStream, pending: bytes = b"") -> bytes:
    """One response with a content-length, head and body."""
    while b"\r\n\r\n" not in pending:
        pending += await stream.receive()
    head, _, body = pending.partition(b"\r\n\r\n")
    lengths = [line for line in head.split(b"\r\n") if line.startswith(b"content-length: ")]
    wanted = int(lengths[0].partition(b": ")[2])
    while len(body) < wanted:
        body += await stream.receive()
    assert len(body) == wanted
    return head + b"\r\n\r\n" + body


@asynccontextmanager
async def listening(limits: Limits | None = None) -> AsyncIterator[Site]:
    sock = socket.create_server(("127.0.0.1", 0))
    site = Site(Echo(), sock.getsockname()[1])

    async def run() -> None:
        await serve(site.app, sock=sock, stop=site.stop, limits=limits)
        site.ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield site
        site.app.release.set()
        site.stop.set()


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CLOSE = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def post(headers: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"POST / HTTP/" + version + b"\r\nHost: a\r\n" + headers + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked\r\n"
MALFORMED: dict[str, tuple[bytes, int]] = {
    "te and cl": (post(CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n" + GET), 400),
    "cl and te": (post(b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n" + GET), 400),
    "two lengths": (post(b"Content-Length: 4\r\nContent-Length: 5\r\n", b"hello" + GET), 400),
    "equal lengths": (post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"), 400),
    "list of lengths": (post(b"Content-Length: 5, 5\r\n", b"hello"), 400),
    "length with plus": (post(b"Content-Length: +5\r\n", b"hello"), 400),
    "length with minus": (post(b"Content-Length: -5\r\n", b"hello"), 400),
    "length with space": (post(b"Content-Length: 5 5\r\n", b"hello"), 400),
    "length in hex": (post(b"Content-Length: 0x5\r\n", b"hello"), 400),
    "length with underscore": (post(b"Content-Length: 1_0\r\n", b"hellohello"), 400),
    "length empty": (post(b"Content-Length: \r\n", b"hello"), 400),
    "length too big": (post(b"Content-Length: 99999999999999999999\r\n", b"hello"), 400),
    "space before colon": (post(b"Content-Length : 5\r\n", b"hello"), 400),
    "folded": (post(b"X: a\r\n b\r\n"), 400),
    "folded with tab": (post(b"X: a\r\n\tTransfer-Encoding: chunked\r\n"), 400),
    "folded first": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    "bare lf": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare lf between headers": (post(b"X: a\nTransfer-Encoding: chunked\r\n"), 400),
    "bare cr": (post(b"X: a\rTransfer-Encoding: chunked\r\n"), 400),
    "nul in value": (post(b"X: a\x00b\r\n"), 400),
    "control in value": (post(b"X: a\x01b\r\n"), 400),
    "empty name": (post(b": a\r\n"), 400),
    "name with brackets": (post(b"X(y): a\r\n"), 400),
    "name beyond ascii": (post(b"X\xe9: a\r\n"), 400),
    "te unknown": (post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"), 501),
    "te identity": (post(b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n"), 501),
    "te list": (post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), 501),
    "te not last": (post(b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n"), 400),
    "te twice": (post(CHUNKED + CHUNKED, b"0\r\n\r\n"), 400),
    "te parameter": (post(b"Transfer-Encoding: chunked;q=1\r\n", b"0\r\n\r\n"), 501),
    "te vertical tab": (post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"), 400),
    "te in 1.0": (post(CHUNKED, b"0\r\n\r\n", version=b"1.0"), 400),
    "chunk with lf": (post(CHUNKED, b"1\na\r\n0\r\n\r\n"), 400),
    "chunk extension with lf": (post(CHUNKED, b"1;x\ny\r\na\r\n0\r\n\r\n"), 400),
    "chunk extension with cr": (post(CHUNKED, b"1;x\ry\r\na\r\n0\r\n\r\n"), 400),
    "chunk negative": (post(CHUNKED, b"-1\r\na\r\n0\r\n\r\n"), 400),
    "chunk with 0x": (post(CHUNKED, b"0x1\r\na\r\n0\r\n\r\n"), 400),
    "chunk with space": (post(CHUNKED, b"1 \r\na\r\n0\r\n\r\n"), 400),
    "chunk too big": (post(CHUNKED, b"fffffffffffffffff\r\na\r\n0\r\n\r\n"), 400),
    "chunk longer than told": (post(CHUNKED, b"1\r\nab\r\n0\r\n\r\n"), 400),
    "chunk ends with lf": (post(CHUNKED, b"1\r\na\n0\r\n\r\n"), 400),
    "length in trailer": (post(CHUNKED, b"0\r\nContent-Length: 5\r\n\r\n"), 400),
    "connect": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n" + GET, 405),
    "absolute form": (b"GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "asterisk form": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "fragment": (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "bytes beyond ascii": (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "http 2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "http 2": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "http 0.9": (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    "http 1.2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 400),
    "unknown method": (b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "lower-case method": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "tls": (bytes.fromhex("16030100c8010000c40303"), 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (post(b"Host: b\r\n"), 400),
    "host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "host with a user": (b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
    "expectation": (post(b"Expect: 200-maybe\r\n"), 417),
    "long url": (b"GET /" + b"a" * 65_536 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "long query": (b"GET /?" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "long header": (post(b"X: " + b"a" * 1_000_000 + b"\r\n"), 431),
    "long name": (post(b"X" * 1_000_000 + b": a\r\n"), 431),
    "many headers": (post(b"X: a\r\n" * 10_000), 431),
    "many small headers": (post(b"X:\r\n" * 300), 431),
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_a_malformed_request_gets_one_small_refusal_and_the_end(case: str) -> None:
    request, status = MALFORMED[case]
    async with listening() as site:
        answer = await site.say(request + CLOSE)
        assert statuses(answer) == [status]
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"connection: close" in head
        assert b"content-type: application/json" in head
        assert list(json.loads(body)) == ["message"]
        assert len(answer) < 300
        assert site.app.seen == []


@pytest.mark.parametrize("case", ["two lengths", "chunk with lf", "many headers", "no host"])
async def test_a_malformed_request_byte_by_byte_is_refused_alike(case: str) -> None:
    request, status = MALFORMED[case]
    async with listening() as site:
        answer = await site.say(*(bytes([byte]) for byte in request[:4000]), request[4000:])
        assert statuses(answer) == [status]
        assert site.app.seen == []


UPGRADE = b"Connection: Upgrade\r\nUpgrade: "


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (post(UPGRADE + b"h2c\r\nHTTP2-Settings: AAMAAABk\r\n"), b""),  # as Java's client asks
        (post(UPGRADE + b"h2c\r\nContent-Length: 3\r\n", b"abc"), b"abc"),
        (post(UPGRADE + b"h2c\r\n" + CHUNKED, b"3\r\nabc\r\n0\r\n\r\n"), b"abc"),
        (post(UPGRADE + b"websocket\r\nSec-WebSocket-Version: 13\r\n"), b""),
    ],
)
async def test_who_wants_another_protocol_is_answered_in_this_one(
    request_: bytes, body: bytes, is_whole: bool
) -> None:
    """So is whatever it asks next."""
    said = GET + request_ + CLOSE
    async with listening() as site:
        answer = await site.say(*[said] if is_whole else (bytes([byte]) for byte in said))
        assert statuses(answer) == [200, 200, 200]
        assert [s.body for s in site.app.seen] == [b"", body, b""]
        assert all(name != b"upgrade" for s in site.app.seen for name, _ in s.headers)


async def test_a_flood_of_such_wishes_is_bounded_like_any_other() -> None:
    wish = b"GET / HTTP/1.1\r\nHost: a\r\n" + UPGRADE + b"h2c\r\n\r\n"
    async with listening() as site:
        answered = statuses(await site.say(wish * 2_000))
        assert set(answered) == {200}
        assert len(answered) <= 66  # the one that runs, and those that may wait behind it


@pytest.mark.parametrize("case", ["te and cl", "length in hex", "two hosts", "many headers"])
async def test_such_a_wish_gets_nothing_past_the_checks(case: str) -> None:
    request, status = MALFORMED[case]
    request = request.replace(b"Host: a\r\n", b"Host: a\r\n" + UPGRADE + b"h2c\r\n", 1)
    async with listening() as site:
        assert statuses(await site.say(request + CLOSE)) == [status]
        assert site.app.seen == []


async def test_requests_before_a_malformed_one_are_answered_and_no_other() -> None:
    async with listening() as site:
        bad = post(b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n")
        answer = await site.say(GET + bad + GET)
        assert statuses(answer) == [200]
        assert [s.path for s in site.app.seen] == ["/"]


async def test_a_queued_request_whose_body_breaks_is_not_run() -> None:
    async with listening() as site:
        answer = await site.say(GET + post(CHUNKED, b"2\r\nhi\r\nzz\r\n") + GET)
        assert statuses(answer) == [200]
        assert [s.method for s in site.app.seen] == ["GET"]


async def test_trailers_do_not_become_headers() -> None:
    trailers = b"0\r\nHost: evil\r\nX-Late: yes\r\n\r\n"
    async with listening() as site:
        answer = await site.say(post(CHUNKED, b"2\r\nhi\r\n" + trailers) + CLOSE)
        assert statuses(answer) == [200, 200]
        assert site.app.seen[0].body == b"hi"
        assert site.app.seen[0].headers == [(b"host", b"a"), (b"transfer-encoding", b"chunked")]


async def test_trailers_and_chunk_extensions_without_end_are_refused() -> None:
    async with listening() as site:
        for flood in (b"X: " + b"a" * 100_000, b"1;" + b"a" * 100_000):
            pieces = [flood] * 6
            opening = post(CHUNKED, b"0\r\n" if flood.startswith(b"X") else b"")
            assert statuses(await site.say(opening, *pieces)) == [400]
        assert site.app.seen == []


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with listening() as site:
        requests = [b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i for i in range(20)]
        answer = await site.say(post(b"Content-Length: 2\r\n", b"ab") + b"".join(requests) + CLOSE)
        assert statuses(answer) == [200] * 22
        assert [s.path for s in site.app.seen] == ["/", *(f"/{i}" for i in range(20)), "/last"]


async def test_too_many_pipelined_requests_end_the_connection_after_the_allowed() -> None:
    async with listening(Limits(max_pipelined=4)) as site:
        assert statuses(await site.say(GET * 50)) == [200] * 5
        assert len(site.app.seen) == 5


async def test_nothing_after_connection_close_is_run() -> None:
    async with listening() as site:
        assert statuses(await site.say(CLOSE + GET)) == [200]
        assert [s.path for s in site.app.seen] == ["/last"]


async def test_keep_alive_serves_one_request_after_another() -> None:
    async with listening() as site, await site.connect() as stream:
        for i in range(5):
            await stream.send(post(b"Content-Length: 1\r\n", b"%d" % i))
            response = await read_response(stream)
            assert response.endswith(b"\r\n\r\n%d" % i)
            assert b"connection: close" not in response
        await stream.send(CLOSE)
        assert b"connection: close" in await rest(stream)


async def test_http_1_0_is_answered_and_closed() -> None:
    async with listening() as site:
        answer = await site.say(b"GET /old?a=b HTTP/1.0\r\n\r\n")
        assert statuses(answer) == [200]
        assert site.app.seen[0].query == b"a=b"


async def test_paths_arrive_decoded_and_queries_as_sent() -> None:
    async with listening() as site:
        await site.say(b"GET //a%2Fb/%C3%A9%20c?q=%20+ HTTP/1.1\r\nHost: a:80\r\n\r\n" + CLOSE)
        assert site.app.seen[0].path == "//a/b/é c"
        assert site.app.seen[0].query == b"q=%20+"


async def test_a_big_binary_body_arrives_whole_in_any_pieces() -> None:
    body = bytes(range(256)) * 20_000
    head = b"POST /big HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    async with listening() as site:
        whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        pieces = [whole[i : i + 99_991] for i in range(0, len(whole), 99_991)]
        assert (await site.say(*pieces)).endswith(body)
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(body[i : i + 7000]), body[i : i + 7000])
            for i in range(0, len(body), 7000)
        )
        assert (await site.say(head + CHUNKED + b"\r\n" + chunks + b"0\r\n\r\n")).endswith(body)
        assert [s.body == body for s in site.app.seen] == [True, True]


async def test_expect_100_continue_is_granted_once_the_body_is_wanted() -> None:
    async with listening() as site, await site.connect() as stream:
        await stream.send(post(b"Expect: 100-continue\r\nContent-Length: 2\r\n"))
        assert await stream.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send(b"ab")
        assert (await read_response(stream)).endswith(b"\r\n\r\nab")


async def test_a_response_before_the_end_of_the_body_reaches_the_client() -> None:
    head = b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n"
    async with listening() as site:
        answer = await site.say(head, *[b"a" * 500_000] * 6)
        assert statuses(answer) == [200]
        assert b"connection: close" in answer
        assert answer.endswith(b"unread")


async def test_a_client_that_closes_its_own_direction_gets_its_answer() -> None:
    async with listening() as site, await site.connect() as stream:
        await stream.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        await stream.send_eof()
        await site.app.entered.wait()
        site.app.release.set()
        assert statuses(await rest(stream)) == [200]


async def test_a_body_cut_short_never_runs() -> None:
    async with listening() as site, await site.connect() as stream:
        await stream.send(post(b"Content-Length: 10\r\n", b"abc"))
        await site.app.entered.wait()
        await stream.send_eof()
        assert statuses(await rest(stream)) == [400]
        assert site.app.seen == []
        assert site.app.gone == 1


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        pytest.param([b""], [], id="silence"),
        pytest.param([b"\r\n\r\n"], [], id="empty lines"),
        pytest.param([b"GET / HT"], [408], id="half a request line"),
        pytest.param([b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\n"], [408], id="half the headers"),
        pytest.param([GET, b"GET / HTTP/1.1\r\n"], [200, 408], id="half a second request"),
        pytest.param([post(b"Content-Length: 5\r\n", b"he")], [408], id="half a body"),
        pytest.param([post(CHUNKED, b"2\r\nhe\r\n")], [408], id="half the chunks"),
        pytest.param([GET], [200], id="an idle connection"),
    ],
)
async def test_a_client_that_dawdles_is_refused(pieces: list[bytes], expected: list[int]) -> None:
    limits = Limits(header_ms=100, body_idle_ms=100, keep_alive_ms=100)
    async with listening(limits) as site:
        assert statuses(await site.say(*pieces)) == expected
        assert len(site.app.seen) == expected.count(200)


@pytest.mark.parametrize(
    "opening", [b"GET / HTTP/1.1\r\nHost: a\r\n", GET + b"GET / HTTP/1.1\r\nHost: a\r\n"]
)
async def test_a_drip_of_headers_does_not_extend_the_deadline(opening: bytes) -> None:
    async with listening(Limits(header_ms=200)) as site, await site.connect() as stream:
        await stream.send(opening)
        answer = b""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_drip, stream, b"X: a\r\n")
            answer = await rest(stream)
            tasks.cancel_scope.cancel()
        assert statuses(answer)[-1] == 408


async def test_a_drip_of_chunk_extensions_does_not_extend_the_deadline() -> None:
    async with listening(Limits(body_idle_ms=200)) as site, await site.connect() as stream:
        await stream.send(post(CHUNKED, b"1;"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_drip, stream, b"a")
            answer = await rest(stream)
            tasks.cancel_scope.cancel()
        assert statuses(answer) == [408]


@pytest.mark.slow
async def test_a_body_that_keeps_coming_may_take_longer_than_the_idle_deadline() -> None:
    async with listening(Limits(body_idle_ms=1000)) as site, await site.connect() as stream:
        await stream.send(post(b"Content-Length: 8\r\nConnection: close\r\n"))
        for _ in range(8):
            await anyio.sleep(0.2)  # the client's pace
            await stream.send(b"a")
        assert (await rest(stream)).endswith(b"a" * 8)


async def _drip(stream: anyio.abc.SocketStream, drop: bytes) -> None:
    """The attacker's pace; no outcome waits for it."""
    try:
        while True:
            await stream.send(drop)
            await anyio.sleep(0.02)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return


async def test_a_slow_function_is_not_the_clients_fault() -> None:
    limits = Limits(header_ms=50, body_idle_ms=50, keep_alive_ms=50, write_idle_ms=50)
    async with listening(limits) as site, await site.connect() as stream:
        await stream.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        await site.app.entered.wait()
        # A connection opened after this one is refused for silence: its time is over, and more.
        assert await site.say(b"") == b""
        site.app.release.set()
        assert statuses(await rest(stream)) == [200]


async def test_a_reader_that_stops_reading_is_cut() -> None:
    limits = Limits(write_idle_ms=100, drain_ms=600_000)
    async with listening(limits) as site, await site.connect() as stream:
        await stream.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        await site.app.entered.wait()
        assert statuses(await site.say(CLOSE)) == [200]  # others are served meanwhile
        site.stop.set()
        # Nothing else ends it: the bound of the drain lies beyond the time limit of this test.
        await site.ended.wait()
        assert len(await rest(stream, may_be_reset=True)) < 20_000_000


async def test_a_slow_reader_that_goes_on_reading_gets_everything() -> None:
    async with listening(Limits(write_idle_ms=500)) as site, await site.connect() as stream:
        await stream.send(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await rest(stream)).count(b"x") >= 20_000_000


async def test_beyond_the_most_connections_a_client_is_told_so() -> None:
    async with listening(Limits(max_connections=2)) as site:
        async with await site.connect() as first, await site.connect() as second:
            for stream in (first, second):
                await stream.send(GET)
                await read_response(stream)
            assert statuses(await site.say(GET)) == [503]
            await second.aclose()
            assert len(site.app.seen) == 2
        while statuses(await site.say(CLOSE)) != [200]:
            pass  # the listener has yet to notice that they went


async def test_a_failing_application_is_a_500() -> None:
    async with listening() as site:
        for path in (b"/raise", b"/silent"):
            answer = await site.say(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            assert statuses(answer) == [500]
            assert answer.endswith(b'{"message":"Internal Server Error"}')


async def test_stopping_answers_what_is_in_flight_and_closes_what_is_idle() -> None:
    async with listening() as site, await site.connect() as idle, await site.connect() as busy:
        await idle.send(GET)
        await read_response(idle)
        site.app.entered = anyio.Event()
        await busy.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        await site.app.entered.wait()
        site.stop.set()
        assert await rest(idle) == b""
        with pytest.raises(OSError, match="connect"):
            await site.connect()
        site.app.release.set()
        answer = await rest(busy)
        assert statuses(answer) == [200]
        assert b"connection: close" in answer


async def test_stopping_waits_no_longer_than_its_bound() -> None:
    async with listening(Limits(drain_ms=50)) as site, await site.connect() as stream:
        await stream.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        await site.app.entered.wait()
        site.stop.set()
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await stream.receive()


async def test_two_listeners_share_a_process() -> None:
    async with listening() as one, listening() as other:
        assert statuses(await one.say(CLOSE)) == [200]
        assert statuses(await other.say(CLOSE)) == [200]
        assert (len(one.app.seen), len(other.app.seen)) == (1, 1)


async def test_the_compiled_parser_is_in_use() -> None:
    require_c_parser()
