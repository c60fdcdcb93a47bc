"""Calls: single requests on a connection that is there already, each timed by itself."""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlsplit

from tests.bench.load import Request

_PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. A function that raised or was killed is an error too, with status 200."""

    is_error: bool
    payload: bytes
    ended: float  # time.perf_counter()


class Caller:
    """One kept connection to the server of `request`."""

    def __init__(self, request: Request) -> None:
        place = urlsplit(request.url)
        self._connection = http.client.HTTPConnection(place.netloc, timeout=_PATIENCE_S)
        self._connection.connect()

    def __enter__(self) -> Caller:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    def send(self, request: Request) -> None:
        path = urlsplit(request.url).path
        self._connection.request(request.method, path, request.body, request.headers)

    def receive(self) -> Answer:
        answer = self._connection.getresponse()
        payload = answer.read()
        failed = answer.status != 200 or answer.headers.get("X-Amz-Function-Error") is not None
        return Answer(failed, payload, time.perf_counter())

    def call(self, request: Request) -> Answer:
        self.send(request)
        return self.receive()

    def timed_ms(self, request: Request, expected: bytes) -> float:
        """How long a call took whose answer contains `expected`."""
        began = time.perf_counter()
        answer = self.call(request)
        assert not answer.is_error, answer.payload
        assert expected in answer.payload, answer.payload
        return (answer.ended - began) * 1000
