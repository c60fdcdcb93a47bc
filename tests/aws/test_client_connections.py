"""What carries the clients: connections that break, signatures, and which platform is meant."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import quote

import anyio
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st
from tests.aws.conftest import ACCESS_KEY, SECRET, Speak

import trivet
from trivet import AsyncClient, Client, Unavailable
from trivet.aws.sigv4 import Verifier
from trivet.client import NoAnswer
from trivet.client.places import find_place
from trivet.client.signing import Signer
from trivet.errors import SettingsError

# -------------------------------------------------------------------------- connections


@contextmanager
def server(serve: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """A server on loopback that treats its first, second, ... connection as `serve` says."""

    def run() -> None:
        number = 0
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                serve(connection, number)
            number += 1

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data or not data.endswith((b"null", b"\r\n\r\n")):
        chunk = connection.recv(65_536)
        if not chunk:
            break
        data += chunk
    return data


def test_no_platform_there_says_how_to_start_one(speak: Speak) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(Unavailable, match=f"no platform answers at {url}") as told:
        speak(url, "invoke", "f")
    assert told.value.hint.endswith(" up --detach")
    assert not isinstance(told.value, TimeoutError)


def test_a_connection_that_is_lost_is_not_tried_again(speak: Speak) -> None:
    requests = []

    def serve(connection: socket.socket, number: int) -> None:
        requests.append(read_request(connection))

    with server(serve) as url, pytest.raises(Unavailable, match="the request may have arrived"):
        speak(url, "invoke", "f")
    assert len(requests) == 1


def test_an_answer_that_takes_too_long_is_a_timeout(speak: Speak) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.recv(1)  # until the client has given up

    with server(serve) as url, pytest.raises(NoAnswer, match=r"no answer within 0\.05 s") as told:
        speak(url, "invoke", "f", timeout=0.05)
    assert isinstance(told.value, TimeoutError)


@pytest.mark.parametrize("nonsense", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"])
def test_who_does_not_speak_http_is_not_the_platform(speak: Speak, nonsense: bytes) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(nonsense)

    with server(serve) as url, pytest.raises(trivet.PlatformError, match="not the platform's"):
        speak(url, "invoke", "f")


def respond(connection: socket.socket, *, ending: bytes = b"") -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n%b\r\n" % ending
    # Byte by byte, as a network may deliver it.
    for byte in head + b"7":
        connection.sendall(bytes([byte]))


def both_ways(url: str, calls: int) -> list[Callable[[], None]]:
    def block() -> None:
        with Client(url, access_key=ACCESS_KEY, secret=SECRET) as client:
            assert [client.invoke("f").payload for _ in range(calls)] == [7] * calls

    async def suspend() -> None:
        async with AsyncClient(url, access_key=ACCESS_KEY, secret=SECRET) as client:
            assert [(await client.invoke("f")).payload for _ in range(calls)] == [7] * calls

    return [block, partial(anyio.run, suspend)]


@pytest.mark.parametrize("way", [0, 1])
def test_a_connection_is_used_again(way: int) -> None:
    served = []

    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            served.append(number)
            respond(connection)

    with server(serve) as url:
        both_ways(url, 5)[way]()
    assert served == [0] * 5


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize("ending", [b"Connection: close\r\n", b""])
def test_one_that_was_closed_is_not(way: int, ending: bytes) -> None:
    served = []

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        served.append(number)
        respond(connection, ending=ending)

    with server(serve) as url:
        both_ways(url, 3)[way]()
    assert served == [0, 1, 2]


def test_a_cancelled_call_gives_its_connection_up() -> None:
    gave_up = threading.Event()

    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            if number:
                respond(connection)
        gave_up.set()

    async def cancel(url: str) -> None:
        async with AsyncClient(url, access_key=ACCESS_KEY, secret=SECRET, connections=1) as client:
            with anyio.move_on_after(0.05):
                await client.invoke("f")
            assert (await client.invoke("f", timeout=10)).payload == 7

    with server(serve) as url:
        anyio.run(cancel, url)
    assert gave_up.is_set()


# ------------------------------------------------------------------------------ signing


@given(
    path=st.lists(st.text("abz09-._~%$:@!*'() ", max_size=6), min_size=1, max_size=4),
    body=st.binary(max_size=40),
    service=st.sampled_from(["lambda", "logs", "trivet"]),
    token=st.text("abc xyz,;=", max_size=12),
)
def test_what_we_sign_is_what_botocore_signs_and_the_platform_accepts(
    path: list[str], body: bytes, service: str, token: str
) -> None:
    at = datetime.now(UTC).replace(microsecond=0)
    raw = "/" + "/".join(quote(part, safe="") for part in path)
    headers = {b"host": b"127.0.0.1:4566", b"x-amz-target": token.encode()}
    fields = Signer(ACCESS_KEY, SECRET, "us-east-1").signed("POST", raw, headers, body, service, at)
    verified = Verifier({ACCESS_KEY: SECRET}.get, "us-east-1").verify(
        "POST", raw.encode(), b"", list(fields.items()), body
    )
    assert (verified.access_key, verified.service) == (ACCESS_KEY, service)
    request = AWSRequest("POST", f"http://127.0.0.1:4566{raw}", data=body)
    request.headers["x-amz-target"] = token
    request.context["timestamp"] = at.strftime("%Y%m%dT%H%M%SZ")
    signer = SigV4Auth(Credentials(ACCESS_KEY, SECRET), service, "us-east-1")
    signer._modify_request_before_signing(request)
    del request.headers["X-Amz-Date"]
    request.headers["X-Amz-Date"] = request.context["timestamp"]
    text = signer.string_to_sign(request, signer.canonical_request(request))
    theirs = signer.signature(text, request)
    assert fields[b"authorization"].endswith(f"Signature={theirs}".encode())


# ------------------------------------------------------------------- which platform it is


def test_arguments_go_before_variables() -> None:
    variables = {
        "AWS_ENDPOINT_URL": "http://one:4566",
        "AWS_ACCESS_KEY_ID": "from-env",
        "AWS_SECRET_ACCESS_KEY": "of-env",
        "AWS_DEFAULT_REGION": "eu-north-1",
    }
    place = find_place(variables=variables)
    assert (place.url, place.access_key, place.region) == (
        "http://one:4566",
        "from-env",
        "eu-north-1",
    )
    place = find_place("https://two", "mine", "secret", "eu-west-1", variables=variables)
    assert (place.url, place.port, place.access_key) == ("https://two", 443, "mine")
    assert (place.region, place.authority) == ("eu-west-1", "two")
    assert "secret" not in repr(place)


def test_a_key_of_another_account_is_never_used(tmp_path: Path) -> None:
    """Without an endpoint AWS_ACCESS_KEY_ID is for AWS, not for us."""
    variables = {"AWS_ACCESS_KEY_ID": "real", "AWS_SECRET_ACCESS_KEY": "real"}
    (tmp_path / "run").mkdir()
    state = json.dumps({"aws_url": "http://127.0.0.1:4566", "region": "us-east-1"})
    (tmp_path / "run" / "platform.json").write_text(state)
    with pytest.raises(Unavailable, match="access keys"):  # no durable server to read ours from
        find_place(data=str(tmp_path), variables=variables)


def test_no_platform_on_a_data_folder_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=f"no platform is running on {tmp_path}") as told:
        find_place(data=str(tmp_path), variables={})
    assert told.value.hint.endswith(" up --detach")
    with pytest.raises(Unavailable):
        find_place(variables={"TRIVET_DATA": str(tmp_path)})


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:4566", "ftp://x", "http://", "http://h:x", "http://h/p"]
)
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="endpoint"):
        find_place(endpoint, "key", "secret", variables={})
    with pytest.raises(SettingsError, match="no access key"):
        find_place("http://127.0.0.1:4566", variables={})
