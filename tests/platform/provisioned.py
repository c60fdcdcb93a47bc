"""A host of its own for a provisioner: a network namespace, with a small internet behind it."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from trivet.provisioner import wire
from trivet.provisioner.kernel import CLONE_NEWNET, new_network_namespace
from trivet.provisioner.nft import Tables
from trivet.provisioner.wire import Message

NAME = "7e57ab1e"
WITHIN_S = 20.0

HOST = "192.0.2.2"
INTERNET = "203.0.113.5"
OTHER = "203.0.113.6"
PRIVATE = "10.99.0.1"
METADATA = "169.254.169.254"

_libc = ctypes.CDLL(None, use_errno=True)

Target = tuple[str, int]


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Be in a network namespace: this thread, and what it starts."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        assert _libc.setns(namespace, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        yield
    finally:
        assert _libc.setns(home, CLONE_NEWNET) == 0
        os.close(home)


@dataclass
class World:
    """Two namespaces: the host, at 192.0.2.2, and all else, at many addresses."""

    host: int
    elsewhere: int
    _listeners: list[socket.socket] = field(default_factory=list)

    def listen(self, namespace: int, address: str, port: int) -> None:
        """Be reachable: the kernel accepts as many as the test ever makes."""
        with inside(namespace):
            listener = socket.create_server((address, port), backlog=128)
        self._listeners.append(listener)

    def accepted(self, address: str) -> list[str]:
        """Who connected to the listener at `address`."""
        found = []
        for listener in self._listeners:
            if listener.getsockname()[0] == address:
                listener.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        connection, peer = listener.accept()
                        connection.close()
                        found.append(peer[0])
        return found

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()
        os.close(self.host)
        os.close(self.elsewhere)


def make_world() -> World:
    if os.geteuid() != 0:
        pytest.skip("the provisioner is root's")
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        with new_network_namespace(home) as host, IPRoute() as links:
            with new_network_namespace(host) as elsewhere:
                beyond = IPRoute()
            # A new namespace has this machine's own.
            for name in ("ip_forward", "conf/all/rp_filter", "conf/default/rp_filter"):
                Path("/proc/sys/net/ipv4", name).write_text("0")
            peer = {"ifname": "wan", "net_ns_fd": elsewhere}
            links.link("add", ifname="wan", kind="veth", peer=peer)
            for one, address in ((links, HOST), (beyond, "192.0.2.1")):
                one.link("set", index=1, state="up")
                wan = one.link_lookup(ifname="wan")[0]
                one.link("set", index=wan, state="up")
                one.addr("add", index=wan, address=address, prefixlen=24)
            for address in (INTERNET, OTHER, PRIVATE, METADATA):
                beyond.addr("add", index=1, address=address, prefixlen=32)
            links.route("add", dst="0.0.0.0/0", gateway="192.0.2.1")
            beyond.close()
    finally:
        os.close(home)
    return World(host, elsewhere)


def reached(namespace: int, targets: Iterable[Target], *, within_s: float = 1.0) -> set[Target]:
    """Those of the TCP addresses that can be connected to from inside a network namespace."""
    waiting: dict[int, tuple[socket.socket, Target]] = {}
    found = set()
    poll = select.poll()
    with inside(namespace):
        for target in targets:
            one = socket.socket()
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                try:
                    one.connect(target)
                except OSError as error:
                    if not isinstance(error, BlockingIOError):
                        one.close()
                        continue
            waiting[one.fileno()] = one, target
            poll.register(one, select.POLLOUT)
    deadline = time.monotonic() + within_s
    while waiting and time.monotonic() < deadline:
        for descriptor, _ in poll.poll((deadline - time.monotonic()) * 1000):
            one, target = waiting.pop(descriptor)
            poll.unregister(descriptor)
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.add(target)
            one.close()
    for one, _ in waiting.values():
        one.close()
    return found


class Running:
    """A provisioner's process, and the ends of its links."""

    def __init__(self, host: int, *options: str, name: str = NAME) -> None:
        self.link, commands = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.parent, parent = socket.socketpair()
        self.link.settimeout(WITHIN_S)
        fds = [commands.fileno(), parent.fileno()]
        with inside(host):
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-m", "trivet.provisioner", "--name", name),
                    *("--commands", str(fds[0]), "--parent", str(fds[1])),
                    *("--network-range", "10.213.0.0/16", *options),
                ],
                pass_fds=fds,
                stderr=subprocess.PIPE,
            )
        commands.close()
        parent.close()

    def receive(self) -> tuple[Message, list[int]]:
        data, descriptors, _, _ = socket.recv_fds(self.link, wire.SIZE, 4)
        assert data, self.stop()
        return Message.unpack(data), descriptors

    def begin(self, *kept: Message) -> Running:
        assert self.receive()[0] == Message(wire.READY, value=wire.PROTOCOL)
        for message in (*kept, Message(wire.BEGIN)):
            self.send(message)
        return self

    def send(self, message: Message) -> None:
        self.link.send(message.pack())

    def network(self, number: int, kind: int, mark: int = 0) -> int:
        """The namespace. Raises OSError as the provisioner says."""
        return self._ask(Message(wire.NETWORK, number, mark or number + 1, kind))

    def scratch(self, size_mb: int) -> int:
        return self._ask(Message(wire.SCRATCH, 1, size_mb))

    def rule(self, number: int, address: str, prefix: int, first: int, last: int) -> None:
        packed = socket.inet_aton(address)
        self.send(
            Message(
                wire.RULE,
                number,
                family=4,
                prefix=prefix,
                address=packed,
                first_port=first,
                last_port=last,
            )
        )
        self.settle()

    def permit(self, number: int, address: str, seconds: int) -> None:
        packed = socket.inet_aton(address)
        said = Message(wire.PERMIT, number, seconds, family=4, prefix=32, address=packed)
        self.send(said)
        assert self.receive() == (dataclasses.replace(said, kind=wire.PERMITTED), [])

    def release(self, number: int) -> None:
        self.send(Message(wire.RELEASE, number))
        self.settle()

    def settle(self) -> None:
        """What was sent before has been done."""
        os.close(self.network(9999, wire.NONE))

    def _ask(self, message: Message) -> int:
        self.send(message)
        answer, descriptors = self.receive()
        assert (answer.number, answer.detail) == (message.number, message.kind)
        if answer.kind == wire.REFUSED:
            raise OSError(answer.value, os.strerror(answer.value))
        assert answer.kind == wire.GIVEN
        (descriptor,) = descriptors
        return descriptor

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.stop()

    def stop(self) -> str:
        """End it as the end of the supervisor does. What it said of errors."""
        self.link.close()
        self.parent.close()
        _, errors = self.process.communicate(timeout=WITHIN_S)
        return errors.decode()


def until(condition: Callable[[], object]) -> None:
    """Ask again and again, while there is hope; for what the kernel does in its own time."""
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        select.poll().poll(20)


def address_of(namespace: int) -> str:
    """The address that a network has beyond its loopback."""
    with inside(namespace), IPRoute() as links:
        device = links.link_lookup(ifname="eth0")[0]
        (address,) = links.get_addr(index=device, family=socket.AF_INET)
        return str(address.get_attr("IFA_ADDRESS"))


def loops(folder: Path) -> int:
    """How many loop devices hold files of a folder."""
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    found = 0
    for file in files:
        with contextlib.suppress(OSError):  # it went meanwhile
            found += file.read_text().startswith(f"{folder}/")
    return found


def devices(host: int) -> set[str]:
    """The names of all devices on a host, but for what it had before."""
    with inside(host), IPRoute() as links:
        return {link.get_attr("IFLA_IFNAME") for link in links.get_links()} - {"lo", "wan"}


def left_behind(host: int) -> set[str]:
    """All that a provisioner may have made on a host: devices, routes, tables, and forwarding."""
    found = devices(host)
    with inside(host):
        tables = Tables()
        with IPRoute() as links:
            found |= {
                f"route {route.get_attr('RTA_DST')}"
                for route in links.get_routes(family=2)
                if str(route.get_attr("RTA_DST")).startswith("10.213.")
            }
        found |= {f"table {table}" for table, _ in tables.chains()}
        tables.close()
        if Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1":
            found.add("forwarding")
    return found
