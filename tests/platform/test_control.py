"""Control: both ends of the link between the launcher and a service."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest
from tests.platform.launched import DEADLINE_S

from trivet.control import Control
from trivet.errors import PlatformError
from trivet.launcher.link import VARIABLE, Link

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def link() -> Iterator[Link]:
    link = Link()
    yield link
    link.close()


@pytest.fixture
def control(link: Link, monkeypatch: pytest.MonkeyPatch) -> Control:
    monkeypatch.setenv(VARIABLE, str(os.dup(link.service_end.fileno())))
    link.service_end.close()
    control = Control.inherited()
    assert VARIABLE not in os.environ
    return control


async def test_a_service_says_that_it_is_ready(link: Link, control: Control) -> None:
    assert link.receive_ready() is None
    control.ready({"isolation": 7})
    assert link.receive_ready() == 7
    control.ready()
    assert link.receive_ready() == 0
    control.close()
    with pytest.raises(EOFError):
        link.receive_ready()


async def test_a_zygote_arrives_with_its_socket(link: Link, control: Control) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    arrived: asyncio.Queue[tuple[str, socket.socket]] = asyncio.Queue()
    link.send_peer("zygote python3.11", theirs)
    theirs.close()
    control.on_zygote(lambda runtime, end: arrived.put_nowait((runtime, end)))
    async with asyncio.timeout(DEADLINE_S):
        runtime, end = await arrived.get()
    assert runtime == "python3.11"
    assert not end.get_inheritable()
    assert not end.getblocking()
    end.send(b"hello")
    assert ours.recv(16) == b"hello"
    end.close()
    ours.close()
    control.close()


async def test_a_zygote_that_comes_early_waits(link: Link, control: Control) -> None:
    arrived = asyncio.Event()
    asyncio.get_running_loop().add_reader(control.fileno(), arrived.set)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.send_peer("zygote nodejs20.x", theirs)
    theirs.close()
    async with asyncio.timeout(DEADLINE_S):
        await arrived.wait()
    control.ready()  # reads from now on, and nobody has asked for zygotes yet
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    names: list[str] = []

    def take(runtime: str, end: socket.socket) -> None:
        names.append(runtime)
        end.close()

    control.on_zygote(take)
    link.close()
    async with asyncio.timeout(DEADLINE_S):
        await control.closed.wait()
    assert names == ["nodejs20.x"]
    ours.close()


async def test_each_peer_comes_to_whoever_asked_for_it(link: Link, control: Control) -> None:
    arrived: asyncio.Queue[tuple[str, socket.socket]] = asyncio.Queue()
    ours: dict[str, socket.socket] = {}
    for name in ("gateway", "zygote python3.11", "provisioner"):
        ours[name], theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.send_peer(name, theirs)
        theirs.close()
    control.on_zygote(lambda runtime, end: arrived.put_nowait((f"zygote of {runtime}", end)))
    async with asyncio.timeout(DEADLINE_S):
        name, end = await arrived.get()
    assert name == "zygote of python3.11"
    end.close()
    for name in ("provisioner", "gateway"):  # these two waited
        peers: asyncio.Queue[socket.socket] = asyncio.Queue()
        control.on_peer(name, peers.put_nowait)
        async with asyncio.timeout(DEADLINE_S):
            end = await peers.get()
        assert not end.get_inheritable()
        assert not end.getblocking()
        ours[name].send(b"hello")
        assert end.recv(16) == b"hello"
        end.close()
    for end in ours.values():
        end.close()
    control.close()


async def test_of_a_peer_that_nobody_asked_for_only_the_latest_is_kept(
    link: Link, control: Control
) -> None:
    first, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.send_peer("gateway", theirs)
    theirs.close()
    control.ready()  # reads from now on
    second, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.send_peer("gateway", theirs)
    theirs.close()
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(first, gone.set)
    async with asyncio.timeout(DEADLINE_S):
        await gone.wait()
    asyncio.get_running_loop().remove_reader(first)
    assert first.recv(1) == b""
    arrived: list[socket.socket] = []
    control.on_peer("gateway", arrived.append)
    (end,) = arrived
    second.send(b"hello")
    assert end.recv(16) == b"hello"
    for each in (first, second, end):
        each.close()
    control.close()


async def test_the_launchers_death_is_noticed(link: Link, control: Control) -> None:
    calls: list[str] = []
    control.on_closed(lambda: calls.append("closed"))
    link.close()
    async with asyncio.timeout(DEADLINE_S):
        await control.closed.wait()
    assert calls == ["closed"]
    assert repr(control) == "<Control closed>"


async def test_what_the_launcher_does_not_know_is_not_read(link: Link) -> None:
    link.service_end.send(b"\x01")
    assert link.receive_ready() is None
    link.service_end.send(b"\x63\0\0\0\0\0\0\0")
    assert link.receive_ready() is None


async def test_a_service_run_by_hand_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(PlatformError, match="which `trivet up` starts"):
        Control.inherited()
