"""Egress: what functions reach outside, on a host of the test's own with a small internet behind.

The host is a network namespace, and the platform runs in it as it would on a machine.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.e2e.conftest import Deployed, Running, deployer
from tests.platform.provisioned import (
    HOST,
    INTERNET,
    METADATA,
    OTHER,
    PRIVATE,
    World,
    inside,
    make_world,
)

from trivet.core.dns import NO_SUCH_NAME, read_question

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root has networks to give"),
]

Deploy = Callable[..., Deployed]

OPENED = f"{PRIVATE}:80"
ADDRESSES = {
    "web.example.test": INTERNET,
    "other.example.test": OTHER,
    "opened.example.test": PRIVATE,
    "metadata.example.test": METADATA,
}

# Asks for names, then connects, one after the other, and says how each ended and how long it took.
REACH = """
import errno, socket, time

def resolved(name):
    try:
        found = socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)
        return sorted(entry[4][0] for entry in found)
    except socket.gaierror as error:
        return error.errno

def connected(target):
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
        return "connected"
    except OSError as error:
        return errno.errorcode.get(error.errno, type(error).__name__)

def timed(act, what):
    began_s = time.monotonic()
    answer = act(what)
    return [answer, time.monotonic() - began_s]

def handler(event, context):
    names = {name: timed(resolved, name) for name in event.get("names", ())}
    return [names, {target: timed(connected, target) for target in event.get("targets", ())}]
"""

# Listens where others could reach it, and tells where that is.
NEIGHBOUR = """
import socket

listener = socket.create_server(("0.0.0.0", 8000))

def handler(event, context):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        any_socket.connect((event, 9))
        own = any_socket.getsockname()[0]
    socket.create_connection((own, 8000), timeout=2).close()
    with open("/proc/net/route") as file:
        routes = [line.split() for line in file]
    hops = {bytes.fromhex(route[2])[::-1] for route in routes[1:]} - {bytes(4)}
    return [own, [socket.inet_ntoa(hop) for hop in hops]]
"""


class _Resolver:
    """A resolver of the internet, that knows ADDRESSES."""

    def __init__(self, elsewhere: int) -> None:
        with inside(elsewhere):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.bind((INTERNET, 53))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self._elsewhere = elsewhere

    def _serve(self) -> None:
        while True:
            asked, client = self._socket.recvfrom(4096)
            if not asked:
                return
            question = read_question(asked)
            address = ADDRESSES.get(question.name)
            if address is None:
                self._socket.sendto(question.answered_with(NO_SUCH_NAME), client)
                continue
            records = b""
            if question.kind == 1:
                packed = socket.inet_aton(address)
                records = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, len(packed)) + packed
            head = struct.pack(">HHHHHH", question.id, 0x8180, 1, bool(records), 0, 0)
            self._socket.sendto(head + question.raw + records, client)

    def close(self) -> None:
        with inside(self._elsewhere), socket.socket(type=socket.SOCK_DGRAM) as last:
            last.sendto(b"", (INTERNET, 53))
        self._thread.join()
        self._socket.close()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """The test, too, is on that host until the end of this module."""
    world = make_world()
    for address in (INTERNET, OTHER, PRIVATE, METADATA):
        for port in (80, 81):
            world.listen(world.elsewhere, address, port)
    world.listen(world.host, "0.0.0.0", 80)
    resolver = _Resolver(world.elsewhere)
    with inside(world.host):
        yield world
    resolver.close()
    world.close()


@pytest.fixture(scope="module")
def platform(start_platform: Callable[..., Running], world: World) -> Running:
    return start_platform(
        TRIVET_EGRESS="internet", TRIVET_EGRESS_ALLOW=OPENED, TRIVET_RESOLVERS=INTERNET
    )


class Reaches:
    """A function, and what it can reach."""

    def __init__(self, deployed: Deployed) -> None:
        self._deployed = deployed

    def names(self, *names: str) -> dict[str, Any]:
        return self.all(names, ())[0]

    def targets(self, *targets: str) -> dict[str, Any]:
        return self.all((), targets)[1]

    def all(
        self, names: tuple[str, ...], targets: tuple[str, ...]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        found, ended = self._deployed.call({"names": names, "targets": targets})
        for what, (answer, took_s) in {**found, **ended}.items():
            # A refusal comes from somebody, and is not the absence of an answer.
            assert answer != "TimeoutError", what
            assert took_s < 1, what
        return ({k: v[0] for k, v in found.items()}, {k: v[0] for k, v in ended.items()})


@pytest.fixture
def reaches(deploy: Deploy) -> Callable[[str], Reaches]:
    def make(egress: str = "") -> Reaches:
        tags = {"trivet:egress": egress} if egress else {}
        return Reaches(deploy(REACH, Tags=tags, Timeout=30))

    return make


def connected(ended: dict[str, Any]) -> set[str]:
    return {target for target, answer in ended.items() if answer == "connected"}


def on(port: int, *addresses: str) -> tuple[str, ...]:
    return tuple(f"{address}:{port}" for address in addresses)


EVERYWHERE = (
    *on(80, INTERNET, OTHER, PRIVATE, METADATA, HOST, "127.0.0.1"),
    *on(81, INTERNET, OTHER, PRIVATE),
)


# ----------------------------------------------------------------------------------- addresses


def test_the_internet_is_reached_and_nothing_nearer(
    world: World, reaches: Callable[..., Reaches]
) -> None:
    ended = reaches().targets(*EVERYWHERE)
    assert connected(ended) == {
        *on(80, INTERNET, OTHER, PRIVATE),  # the operator opened this one port of the last
        *on(81, INTERNET, OTHER),
    }
    assert set(world.accepted(INTERNET)) == {HOST}
    # The listeners are there: from where nothing is in the way, all of them answer.
    for target in EVERYWHERE:
        address, _, port = target.partition(":")
        if target != f"127.0.0.1:{port}":
            socket.create_connection((address, int(port)), timeout=2).close()


def test_a_tag_shuts_a_function_in(reaches: Callable[..., Reaches]) -> None:
    assert connected(reaches("none").targets(*EVERYWHERE)) == set()


def test_a_list_is_all_that_is_reached(reaches: Callable[..., Reaches]) -> None:
    function = reaches(f"{OTHER}:80 {PRIVATE}:80-81 {METADATA}")
    # A private address that only the function lists is opened by nobody.
    assert connected(function.targets(*EVERYWHERE)) == {*on(80, OTHER, PRIVATE)}


def test_of_the_platform_only_its_endpoint_is_reached(
    platform: Running, reaches: Callable[..., Reaches]
) -> None:
    function = reaches()
    ports = [int(platform.env["AWS_ENDPOINT_URL"].rpartition(":")[2])]
    ports.append(int(platform.http_url.rpartition(":")[2]))
    for port in ports:
        targets = on(port, "127.0.0.1", HOST, "127.0.1.1", "0.0.0.0")
        assert connected(function.targets(*targets)) == set()
        socket.create_connection(("127.0.0.1", port), timeout=2).close()


def test_no_environment_reaches_another(deploy: Deploy, reaches: Callable[..., Reaches]) -> None:
    own, hops = deploy(NEIGHBOUR).call(INTERNET)
    function = reaches()
    targets = (*on(8000, own), *on(80, *hops))
    assert hops
    assert connected(function.targets(*targets)) == set()


# --------------------------------------------------------------------------------------- names


def test_names_of_the_internet_are_found(reaches: Callable[..., Reaches]) -> None:
    names, ended = reaches().all(
        (*ADDRESSES, "nowhere.example.test"), ("web.example.test:80", "opened.example.test:80")
    )
    assert names == {
        "web.example.test": [INTERNET],
        "other.example.test": [OTHER],
        "opened.example.test": [PRIVATE],
        # A name of the world's that leads to a private address is a trick.
        "metadata.example.test": socket.EAI_NONAME,
        "nowhere.example.test": socket.EAI_NONAME,
    }
    assert connected(ended) == {"web.example.test:80", "opened.example.test:80"}


def test_without_a_network_no_name_is_found_and_at_once(reaches: Callable[..., Reaches]) -> None:
    (answer,) = reaches("none").names("web.example.test").values()
    assert answer in (socket.EAI_AGAIN, socket.EAI_NONAME)


def test_of_a_list_only_its_names_are_found_and_reached(reaches: Callable[..., Reaches]) -> None:
    function = reaches("web.example.test")
    assert connected(function.targets(*on(80, INTERNET))) == set()
    names, ended = function.all(tuple(ADDRESSES), ("web.example.test:80", *EVERYWHERE))
    missing = dict.fromkeys(ADDRESSES, socket.EAI_NONAME)
    assert names == {**missing, "web.example.test": [INTERNET]}
    # An address stands for its name, whatever listens there.
    assert connected(ended) == {"web.example.test:80", *on(80, INTERNET), *on(81, INTERNET)}


def test_a_new_environment_reaches_a_listed_name_at_its_first_try(
    reaches: Callable[..., Reaches],
) -> None:
    for _ in range(5):
        assert connected(reaches(".example.test").targets("web.example.test:80"))


def test_a_list_without_names_finds_none_and_at_once(reaches: Callable[..., Reaches]) -> None:
    (answer,) = reaches(f"{OTHER}:80").names("web.example.test").values()
    assert answer in (socket.EAI_AGAIN, socket.EAI_NONAME)


# ------------------------------------------------------------------------------------ settings


@pytest.mark.slow
def test_no_tag_widens_what_the_operator_set(
    start_platform: Callable[..., Running], world: World, request: pytest.FixtureRequest
) -> None:
    running = start_platform(
        TRIVET_EGRESS=f"{OTHER}:80 web.example.test", TRIVET_RESOLVERS=INTERNET
    )
    deploy = deployer(running, request)
    names, nearly_all = tuple(ADDRESSES), (*EVERYWHERE, "web.example.test:81")
    for tags in ({}, {"trivet:egress": "internet"}):
        function = Reaches(deploy(REACH, Tags=tags, Timeout=30))
        found, ended = function.all(names[:1], nearly_all)
        assert found == {"web.example.test": [INTERNET]}
        assert connected(ended) == {
            *on(80, OTHER, INTERNET),
            *on(81, INTERNET),
            "web.example.test:81",
        }
    function = Reaches(deploy(REACH, Tags={"trivet:egress": f"{INTERNET} {OTHER}"}, Timeout=30))
    found, ended = function.all(names[:1], nearly_all)
    assert connected(ended) == {*on(80, OTHER)}
    function = Reaches(deploy(REACH, Tags={"trivet:egress": "none"}, Timeout=30))
    assert connected(function.targets(*nearly_all)) == set()
