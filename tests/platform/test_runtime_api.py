"""The Runtime API over real sockets, with an ordinary HTTP client as the custom runtime."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from trivet.supervisor.runtime_api import MOST_CONNECTIONS, MOST_PIPELINED, RuntimeApi
from trivet_worker import wire

pytestmark = pytest.mark.anyio

BASE = "/2018-06-01/runtime"
ID = "8f507cfc-example-4697-b07a-ac58fc914c95"
ARN = "arn:aws:lambda:us-east-1:123456789012:function:hello"


def event(payload: bytes, *, attempt: int = 1, request_id: str = ID, trace: str = "") -> bytes:
    strings = [request_id.encode(), ARN.encode(), trace.encode(), b""]
    head = wire.EVENT_HEAD.pack(1_700_000_000_000, *[len(s) for s in strings])
    body = head + b"".join(strings) + payload
    return wire.FRAME.pack(wire.EVENT, attempt, len(body)) + body


@dataclass
class Served:
    """An API, and the frames that it handed on."""

    port: int = 0
    frames: list[tuple[int, int, bytes]] = field(default_factory=list)
    api: RuntimeApi | None = None

    def received(self, data: bytes) -> None:
        kind, attempt, length = wire.FRAME.unpack_from(data)
        assert len(data) == wire.FRAME.size + length
        self.frames.append((kind, attempt, data[wire.FRAME.size + wire.USAGE.size :]))

    async def call(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await asyncio.to_thread(self._call, method, path, body, named)

    def _call(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, BASE + path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, data

    def send(self, frame: bytes) -> None:
        assert self.api is not None
        self.api.send(frame)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    listener = socket.create_server(("127.0.0.1", 0))
    served = Served(port=listener.getsockname()[1])
    served.api = RuntimeApi(listener, served.received)
    yield served
    served.api.close()
    await asyncio.sleep(0)  # what was closed leaves the loop in its next turn


async def test_an_event_is_taken_and_answered(served: Served) -> None:
    served.send(event(b'{"key": 1}', attempt=7, trace="Root=1-2-3"))
    status, headers, body = await served.call("GET", "/invocation/next")
    assert (status, body) == (200, b'{"key": 1}')
    assert headers["lambda-runtime-aws-request-id"] == ID
    assert headers["lambda-runtime-deadline-ms"] == "1700000000000"
    assert headers["lambda-runtime-invoked-function-arn"] == ARN
    assert headers["lambda-runtime-trace-id"] == "Root=1-2-3"
    assert "lambda-runtime-client-context" not in headers
    status, _, body = await served.call("POST", f"/invocation/{ID}/response", b'"done"')
    assert (status, json.loads(body)) == (202, {"status": "OK"})
    assert served.frames == [(wire.INITIALISED, 0, b""), (wire.RESULT, 7, b'"done"')]


async def test_next_waits_for_an_event(served: Served) -> None:
    async with anyio.create_task_group() as tasks:
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append((await served.call("GET", "/invocation/next"))[2])

        tasks.start_soon(ask)
        with anyio.fail_after(10):
            while not served.frames:
                await anyio.lowlevel.checkpoint()
        assert served.frames == [(wire.INITIALISED, 0, b"")]
        served.send(event(b"1"))
    assert answers == [b"1"]


async def test_an_error_is_reported_as_it_was_sent(served: Served) -> None:
    served.send(event(b"{}"))
    await served.call("GET", "/invocation/next")
    error = b'{"errorMessage":"no","errorType":"Boom"}'
    assert (await served.call("POST", f"/invocation/{ID}/error", error))[0] == 202
    assert served.frames[-1] == (wire.ERROR, 1, error)


async def test_an_error_without_a_body_gets_its_type_from_the_header(served: Served) -> None:
    served.send(event(b"{}"))
    await served.call("GET", "/invocation/next")
    header = {"Lambda_Runtime_Function_Error_Type": "Runtime.Unhappy"}
    await served.call("POST", f"/invocation/{ID}/error", b"not json", **header)
    assert json.loads(served.frames[-1][2]) == {"errorType": "Runtime.Unhappy", "errorMessage": ""}


async def test_a_failed_initialisation_is_reported_once(served: Served) -> None:
    error = b'{"errorMessage":"no","errorType":"Runtime.Init"}'
    assert (await served.call("POST", "/init/error", error))[0] == 202
    assert (await served.call("POST", "/init/error", error))[0] == 403
    assert served.frames == [(wire.INIT_FAILED, 0, error)]


async def test_replies_to_what_is_not_running_are_refused(served: Served) -> None:
    assert (await served.call("POST", f"/invocation/{ID}/response", b"1"))[0] == 400
    served.send(event(b"{}"))
    _, headers, _ = await served.call("GET", "/invocation/next")
    assert (await served.call("POST", "/invocation/other/response", b"1"))[0] == 400
    stale = {"Lambda_Runtime_Invocation_Id": "0" * 16}
    status, _, body = await served.call("POST", f"/invocation/{ID}/response", b"1", **stale)
    assert (status, json.loads(body)["errorType"]) == (410, "ErrorRuntimeInvokeTimeout")
    fresh = {"Lambda_Runtime_Invocation_Id": headers["lambda-runtime-invocation-id"]}
    assert (await served.call("POST", f"/invocation/{ID}/response", b"1", **fresh))[0] == 202
    assert (await served.call("POST", f"/invocation/{ID}/response", b"2", **fresh))[0] == 400
    assert [frame[0] for frame in served.frames] == [wire.INITIALISED, wire.RESULT]


async def test_a_response_beyond_the_limit_is_an_error(served: Served) -> None:
    served.send(event(b"{}"))
    await served.call("GET", "/invocation/next")
    body = b'"' + b"x" * wire.MAX_RESPONSE_BYTES + b'"'
    assert (await served.call("POST", f"/invocation/{ID}/response", body))[0] == 413
    kind, _, error = served.frames[-1]
    assert (kind, json.loads(error)["errorType"]) == (wire.ERROR, "Function.ResponseSizeTooLarge")


async def test_headers_cannot_be_smuggled_through_an_event(served: Served) -> None:
    served.send(event(b"{}", trace="a\r\nInjected: yes"))
    _, headers, _ = await served.call("GET", "/invocation/next")
    assert "injected" not in headers
    assert "lambda-runtime-trace-id" not in headers


async def test_unknown_calls_and_garbage_end_nothing_but_themselves(served: Served) -> None:
    assert (await served.call("GET", "/nothing"))[0] == 404
    assert (await served.call("POST", "/invocation/next"))[0] == 404
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"\x00\xff garbage\r\n\r\n")
    with anyio.fail_after(10):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
    served.send(event(b"3"))
    assert (await served.call("GET", "/invocation/next"))[2] == b"3"


async def test_connections_are_bounded(served: Served) -> None:
    ends = [
        await asyncio.open_connection("127.0.0.1", served.port) for _ in range(MOST_CONNECTIONS)
    ]
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    with anyio.fail_after(10):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    for _, end in [*ends, (reader, writer)]:
        end.close()


NONSENSE = b"GET /nothing HTTP/1.1\r\n\r\n"


async def has_been_cut(reader: asyncio.StreamReader) -> bool:
    """Read to the end, which must come."""
    with anyio.fail_after(10), contextlib.suppress(ConnectionError):
        while await reader.read(65_536):
            pass
    return True


async def test_a_crowd_of_requests_at_once_is_cut_off(served: Served) -> None:
    """Answering them all held up the supervisor for seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(NONSENSE * 10 * MOST_PIPELINED)
    assert await has_been_cut(reader)
    writer.close()


async def test_who_does_not_read_answers_is_not_read(served: Served) -> None:
    """Or the supervisor would keep its answers, which are longer than the requests."""
    served.send(event(bytes(6_000_000)))
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, f"GET {BASE}/invocation/next HTTP/1.1\r\n\r\n".encode())
        assert await loop.sock_recv(client, 1)
        taken, turns_in_vain = 0, 0
        while turns_in_vain < 100 and taken < 50_000_000:
            try:
                taken += client.send(NONSENSE * 1_000)  # read, these would be too many at once
                turns_in_vain = 0
            except BlockingIOError:
                turns_in_vain += 1
            await asyncio.sleep(0)
        assert turns_in_vain == 100, "it takes requests without end"


async def test_nothing_large_is_kept_behind_a_request_for_an_event(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    post = f"POST {BASE}/invocation/{ID}/response HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n"
    writer.write(f"GET {BASE}/invocation/next HTTP/1.1\r\n\r\n{post}".encode() + bytes(3_000_000))
    assert await has_been_cut(reader)
    writer.close()
