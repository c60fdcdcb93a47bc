"""Names: real queries over real sockets, with a resolver of the test's own as the outside."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trivet.core.dns import (
    NO_SUCH_NAME,
    REFUSED,
    SERVER_FAILED,
    Malformed,
    is_private,
    read_answer,
    read_question,
)
from trivet.core.egress import parse, parse_networks
from trivet.core.resolvers import Resolver
from trivet.gateway.names import QUERIES_OF_ONE, Forwarder, HostResolvers

pytestmark = pytest.mark.anyio

DOOR = 7
PUBLIC, PRIVATE = "93.184.216.34", "10.1.2.3"
FIRST = ip_address("93.184.0.0")
A, AAAA, ANY = 1, 28, 255

Answerer = Callable[[bytes], Sequence[bytes]]
"""Takes a query; gives what the resolver sends back, in order."""


def name_of(text: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in text.split(".")) + b"\0"


def query(name: str, kind: int = A, *, id: int = 0x1234, extended: bool = False) -> bytes:
    head = struct.pack(">HHHHHH", id, 0x0100, 1, 0, 0, int(extended))
    option = b"\0" + struct.pack(">HHIH", 41, 4_096, 0, 0) if extended else b""
    return head + name_of(name) + struct.pack(">HH", kind, 1) + option


def answer(asked: bytes, *addresses: str, ttl_s: int = 5, flags: int = 0x8180) -> bytes:
    """The answer to the message `asked`, with an alias in front of the addresses."""
    question = read_question(asked)
    alias = b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, ttl_s, 2) + b"\xc0\x0c"
    records = [alias]
    for each in map(ip_address, addresses):
        kind = A if each.version == 4 else AAAA
        records.append(
            b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, ttl_s, len(each.packed)) + each.packed
        )
    head = struct.pack(">HHHHHH", question.id, flags, 1, len(records), 0, 0)
    return head + question.raw + b"".join(records)


def code_of(message: bytes) -> int:
    return message[3] & 15


@dataclass
class World:
    """A function's view: its socket, and what was permitted for it."""

    forwarder: Forwarder
    address: tuple[str, int]
    asked: list[bytes] = field(default_factory=list)
    permits: list[tuple[int, str, int]] = field(default_factory=list)
    are_permits_confirmed: bool = True

    async def ask(self, *messages: bytes, within_s: float = 10.0) -> bytes:
        """The first answer to any of `messages`."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(self.address)
            for message in messages:
                client.send(message)
            with anyio.fail_after(within_s):
                return await loop.sock_recv(client, 65_535)

    def permit(self, door: int, ticket: int, address: str, seconds: int) -> None:
        self.permits.append((door, address, seconds))
        if self.are_permits_confirmed:
            asyncio.get_running_loop().call_soon(self.forwarder.permitted, door, ticket)


class Outside(asyncio.DatagramProtocol):
    """A resolver of the world."""

    def __init__(self, world: World, answers: Answerer) -> None:
        self.world = world
        self.answers = answers

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.world.asked.append(data)
        for each in self.answers(data):
            self.transport.sendto(each, addr)


@asynccontextmanager
async def world(
    egress: str, answers: Answerer, *, opened: str = "", dead: Sequence[Resolver] = ()
) -> AsyncIterator[World]:
    """`dead` resolvers are asked before the one that answers."""
    resolvers = list(dead)
    forwarder = Forwarder(
        opened=parse_networks(opened),
        permit=lambda *said: found.permit(*said),
        resolvers=lambda: resolvers,
    )
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind(("127.0.0.1", 0))
    found = World(forwarder, names.getsockname())
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Outside(found, answers), local_addr=("127.0.0.1", 0)
    )
    resolvers.append(transport.get_extra_info("sockname")[:2])
    forwarder.serve(DOOR, names.detach(), parse(egress))
    try:
        yield found
    finally:
        forwarder.close()
        transport.close()
        assert forwarder.in_flight == 0


def with_addresses(*addresses: str, ttl_s: int = 5) -> Answerer:
    return lambda asked: [answer(asked, *addresses, ttl_s=ttl_s)]


def silence(asked: bytes) -> Sequence[bytes]:
    return []


# -------------------------------------------------------------------------------- what is answered


async def test_an_answer_comes_back_as_it_was_under_the_id_of_the_question() -> None:
    async with world("internet", with_addresses(PUBLIC)) as here:
        received = await here.ask(query("Example.COM"))
    assert received == answer(query("Example.COM"), PUBLIC)
    assert here.permits == []  # who may reach all needs no leave


async def test_the_id_asked_by_is_our_own_each_time() -> None:
    async with world("internet", with_addresses(PUBLIC)) as here:
        for _ in range(8):
            await here.ask(query("example.com"))
    assert len({asked[:2] for asked in here.asked}) > 4


async def test_what_a_client_hides_in_its_message_goes_no_further() -> None:
    async with world("internet", with_addresses(PUBLIC)) as here:
        await here.ask(query("example.com", extended=True) + b"hidden")
    assert b"hidden" not in here.asked[0]
    assert here.asked[0][-11:-8] == b"\0\0\x29"  # it may take long answers, and no more is said


@pytest.mark.parametrize(
    "address", [PRIVATE, "127.0.0.1", "169.254.169.254", "100.64.0.1", "::ffff:10.0.0.1", "fd00::1"]
)
async def test_a_name_of_the_world_leads_to_no_private_address(address: str) -> None:
    async with world("internet", with_addresses(PUBLIC, address)) as here:
        received = await here.ask(query("rebound.example.com"))
    assert code_of(received) == NO_SUCH_NAME
    assert ip_address(PUBLIC).packed not in received


async def test_a_private_address_that_the_operator_opened_may_be_named() -> None:
    async with world("internet", with_addresses(PRIVATE), opened="10.1.0.0/16:443") as here:
        assert ip_address(PRIVATE).packed in await here.ask(query("db.example.com"))


async def test_a_question_that_is_an_amplifiers_is_refused() -> None:
    async with world("internet", with_addresses(PUBLIC)) as here:
        assert code_of(await here.ask(query("example.com", ANY))) == REFUSED
    assert here.asked == []


# ------------------------------------------------------------------------------------ with a list


async def test_names_that_are_not_listed_are_asked_of_nobody() -> None:
    async with world("api.example.com *.s3.example.com", with_addresses(PUBLIC)) as here:
        for name in ("example.com", "x.api.example.com", "s3.example.com", "evil.com"):
            received = await here.ask(query(name))
            assert (code_of(received), received[:2]) == (NO_SUCH_NAME, b"\x12\x34")
        assert here.asked == []
        for name in ("API.example.com", "bucket.s3.example.com", "a.b.s3.example.com"):
            assert code_of(await here.ask(query(name))) == 0


@pytest.mark.parametrize(("ttl_s", "permitted_s"), [(5, 120), (300, 600), (900_000, 7_200)])
async def test_addresses_are_permitted_before_they_are_told(ttl_s: int, permitted_s: int) -> None:
    other = "93.184.216.35"
    answers = with_addresses(PUBLIC, other, "2606::1", ttl_s=ttl_s)
    async with world("api.example.com", answers) as here:
        told: list[int] = []
        take = here.permit

        def permit(*said: Any) -> None:
            take(*said)
            told.append(here.forwarder.in_flight)

        here.permit = permit  # type: ignore[method-assign, assignment]  # to look on while it is asked for
        await here.ask(query("api.example.com"))
    assert here.permits == [(DOOR, PUBLIC, permitted_s), (DOOR, other, permitted_s)]
    assert told == [1, 1]


async def test_what_is_permitted_for_long_enough_is_not_asked_for_again() -> None:
    """Each permit keeps the provisioner busy, and everybody's networks come from there."""
    async with world("*.example.com", with_addresses(PUBLIC)) as here:
        here.are_permits_confirmed = False
        await here.ask(query("a.example.com"))
        here.are_permits_confirmed = True  # from now on it may be relied on
        for name in ("a.example.com", "b.example.com", "a.example.com"):
            assert code_of(await here.ask(query(name))) == 0
    assert here.permits == [(DOOR, PUBLIC, 120)] * 2


async def test_permits_are_bounded_in_their_rate() -> None:
    count = 0

    def ever_new(asked: bytes) -> Sequence[bytes]:
        nonlocal count
        count += 16
        return [answer(asked, *(str(FIRST + number) for number in range(count - 16, count)))]

    async with world("*.example.com", ever_new) as here:
        codes = [code_of(await here.ask(query("a.example.com"))) for _ in range(12)]
    assert codes[:8] == [0] * 8
    assert codes[-1] == SERVER_FAILED
    assert len(here.permits) == 16 * codes.count(0)


async def test_an_answer_waits_for_its_permit_but_not_for_ever() -> None:
    async with world("api.example.com", with_addresses(PUBLIC)) as here:
        here.are_permits_confirmed = False
        started = asyncio.get_running_loop().time()
        assert code_of(await here.ask(query("api.example.com"))) == 0
        assert asyncio.get_running_loop().time() - started >= 0.4


# ---------------------------------------------------------------------------- forgers and deadlines


async def test_a_forged_answer_is_passed_over() -> None:
    def forgeries(asked: bytes) -> Sequence[bytes]:
        wrong_id = bytes([asked[0] ^ 1]) + asked[1:]
        other = asked[:2] + query("other.com")[2:]
        genuine = answer(asked, PUBLIC)
        return [
            answer(wrong_id, "6.6.6.6"),
            answer(other, "6.6.6.6"),
            answer(asked, "6.6.6.6", flags=0x0100),
            answer(asked, "6.6.6.6")[:-2],
            b"",
            genuine,
        ]

    async with world("internet", forgeries) as here:
        received = await here.ask(query("example.com"))
    assert ip_address(PUBLIC).packed in received


async def test_the_next_resolver_is_asked_when_one_is_away() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = nobody.getsockname()
    async with world("internet", with_addresses(PUBLIC), dead=[dead]) as here:
        assert code_of(await here.ask(query("example.com"), within_s=2.0)) == 0


async def test_a_silent_resolver_makes_a_failure_within_two_seconds() -> None:
    async with world("internet", silence) as here:
        assert code_of(await here.ask(query("example.com"), within_s=3.0)) == SERVER_FAILED
    assert len(here.asked) == 3  # a packet may get lost


async def test_a_hostile_client_has_a_bounded_number_of_queries_in_flight() -> None:
    flood = [query(f"n{number}.example.com", id=number) for number in range(200)]
    async with world("internet", silence) as here:
        assert code_of(await here.ask(*flood)) == SERVER_FAILED
        assert here.forwarder.in_flight <= QUERIES_OF_ONE


async def test_a_client_that_asks_too_fast_waits() -> None:
    flood = [query(f"n{number}.example.com", id=number) for number in range(100)]
    started = asyncio.get_running_loop().time()
    async with world("api.example.com", with_addresses(PUBLIC)) as here:
        for _ in range(7):
            await here.ask(*flood)
        assert code_of(await here.ask(query("api.example.com"))) == 0
    assert asyncio.get_running_loop().time() - started > 0.1


async def test_garbage_is_not_answered_and_hurts_nobody() -> None:
    async with world("internet", with_addresses(PUBLIC)) as here:
        garbage = [b"", b"\0", b"\xff" * 600, query("a.com")[:-1], answer(query("a.com"), PUBLIC)]
        received = await here.ask(*garbage, query("example.com", id=9))
    assert received[:2] == b"\0\x09"
    assert len(here.asked) == 1


async def test_what_ended_is_forgotten() -> None:
    asked = anyio.Event()

    def heard(message: bytes) -> Sequence[bytes]:
        asked.set()
        return []

    async with world("internet", heard) as here:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(here.address)
            client.send(query("example.com"))
            with anyio.fail_after(5):
                await asked.wait()
            here.forwarder.forget(DOOR)
            assert here.forwarder.in_flight == 0
            client.setblocking(False)
            with suppress(ConnectionRefusedError):
                client.send(query("example.com"))  # nobody has the socket any more
            with pytest.raises((BlockingIOError, ConnectionRefusedError)):
                client.recv(100)


# ------------------------------------------------------------------------------------- the messages


@given(st.binary(max_size=600))
@example(query("a.com")[:12] + b"\xc0\x0c\0\1\0\1")
@example(query("a.com")[:12] + b"\x3f" + b"a" * 20)
def test_no_question_is_too_strange(message: bytes) -> None:
    with suppress(Malformed):
        question = read_question(message)
        assert len(question.asked_anew(1)) <= 12 + len(message) + 11


@given(st.binary(max_size=300), st.integers(0, 65_535))
def test_no_answer_is_too_strange(tail: bytes, records: int) -> None:
    head = struct.pack(">HHHHHH", 1, 0x8180, 1, records, 0, 0)
    with suppress(Malformed):
        read_answer(head + name_of("a.com") + b"\0\1\0\1" + tail)


def test_two_names_cannot_look_alike() -> None:
    inner = b"\x0bexample.com\0\0\1\0\1"
    with pytest.raises(Malformed):
        read_question(query("a")[:12] + inner)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("8.8.8.8", False), ("2606:4700::1", False), ("2002:0a00:0001::1", True), ("::1", True)],
)
def test_private_addresses(address: str, expected: bool) -> None:
    assert is_private(ip_address(address), ()) is expected


def test_the_hosts_resolvers_are_read_anew_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    resolvers = HostResolvers(path)
    assert resolvers() == (("127.0.0.1", 53),)
    path.write_text("search lan\nnameserver 192.0.2.1\nnameserver bad\nnameserver fe80::1%eth0\n")
    assert resolvers() == (("192.0.2.1", 53), ("fe80::1%eth0", 53))
    path.write_text("# none\n")
    assert resolvers() == (("127.0.0.1", 53),)
