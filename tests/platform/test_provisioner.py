"""The provisioner: what its networks reach, what its scratch space holds, and what it leaves.

On a host of its own, which is a network namespace, with an internet of the test behind it.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2 import IPRoute
from tests.platform.provisioned import (
    HOST,
    INTERNET,
    METADATA,
    NAME,
    OTHER,
    PRIVATE,
    Running,
    World,
    address_of,
    devices,
    inside,
    left_behind,
    loops,
    make_world,
    reached,
    until,
)

from trivet.provisioner import wire
from trivet.provisioner.nft import DELETE_TABLE, Tables, table
from trivet.provisioner.spans import Span
from trivet.provisioner.wire import Message

pytestmark = pytest.mark.slow

EVERYWHERE = [(INTERNET, 80), (OTHER, 80), (PRIVATE, 80), (METADATA, 80), (HOST, 80)]


@pytest.fixture
def world() -> Iterator[World]:
    world = make_world()
    for address in (INTERNET, OTHER, PRIVATE, METADATA):
        world.listen(world.elsewhere, address, 80)
        world.listen(world.elsewhere, address, 81)
    world.listen(world.host, "0.0.0.0", 80)
    yield world
    world.close()


@pytest.fixture
def running(world: World) -> Iterator[Running]:
    running = Running(world.host).begin()
    yield running
    running.stop()
    assert left_behind(world.host) == set()


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def at_an_end(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


# ------------------------------------------------------------------------------ the internet


def test_the_internet_is_reached_from_the_hosts_own_address(
    world: World, running: Running, closing: contextlib.ExitStack
) -> None:
    network = at_an_end(closing, running.network(0, wire.INTERNET))
    assert reached(network, [(INTERNET, 80)]) == {(INTERNET, 80)}
    assert world.accepted(INTERNET) == [HOST]


def test_of_all_else_nothing_is_reached(
    world: World, running: Running, closing: contextlib.ExitStack
) -> None:
    """Not the host under any of its addresses, no other environment, no private network."""
    network = at_an_end(closing, running.network(0, wire.INTERNET))
    other = at_an_end(closing, running.network(1, wire.INTERNET))
    own, neighbour = (ipaddress.IPv4Address(address_of(one)) for one in (network, other))
    world.listen(other, str(neighbour), 80)
    gateway = str(own - 1)
    targets = [
        *EVERYWHERE,
        *((address, 80) for address in ("127.0.0.1", str(neighbour), gateway)),
    ]
    assert reached(network, targets) == {(INTERNET, 80), (OTHER, 80)}
    # The listeners are there: from where nothing is in the way, all of them answer.
    assert reached(world.host, EVERYWHERE) == set(EVERYWHERE)
    assert reached(other, [(str(neighbour), 80)]) == {(str(neighbour), 80)}


def test_a_refused_destination_is_refused_at_once(
    running: Running, closing: contextlib.ExitStack
) -> None:
    """So that an SDK that looks for credentials at the metadata address does not hang."""
    network = at_an_end(closing, running.network(0, wire.INTERNET))
    for _ in range(20):  # the kernel bounds the rate of ICMP's errors
        with inside(network), socket.socket() as one:
            one.settimeout(0.5)
            with pytest.raises(ConnectionRefusedError):
                one.connect((METADATA, 80))
    with inside(network), socket.socket(type=socket.SOCK_DGRAM) as one:
        one.settimeout(5)
        one.connect((METADATA, 80))
        one.send(b"")
        with pytest.raises(OSError, match="No route to host"):
            one.recv(1)


def test_no_address_can_be_used_but_ones_own(
    world: World, running: Running, closing: contextlib.ExitStack
) -> None:
    network = at_an_end(closing, running.network(0, wire.INTERNET))
    own = ipaddress.IPv4Address(address_of(network))
    foreign = str(own + 1)
    at_an_end(closing, running.network(1, wire.INTERNET))  # whose address it is
    with inside(network), IPRoute() as links:
        device = links.link_lookup(ifname="eth0")[0]
        links.addr("add", index=device, address=foreign, prefixlen=32)
    with inside(world.elsewhere):
        server = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        server.bind((INTERNET, 99))
    server.settimeout(0.5)
    for source in (foreign, str(own)):
        with inside(network), socket.socket(type=socket.SOCK_DGRAM) as client:
            client.bind((source, 0))
            client.sendto(source.encode(), (INTERNET, 99))
    assert server.recv(100).decode() == str(own)  # the first that arrives, and the only one
    with pytest.raises(TimeoutError):
        server.recv(100)


@pytest.mark.slow
def test_nothing_but_tcp_and_udp_leaves(running: Running, closing: contextlib.ExitStack) -> None:
    network = at_an_end(closing, running.network(0, wire.INTERNET))
    echo = b"\x08\x00\xf7\xff" + bytes(4)
    with inside(network), socket.socket(socket.AF_INET, socket.SOCK_RAW, 1) as raw:
        raw.settimeout(0.3)
        raw.sendto(echo, (INTERNET, 0))
        with pytest.raises(TimeoutError):
            raw.recv(100)


@pytest.mark.slow
def test_there_is_no_ipv6_but_loopback(running: Running, closing: contextlib.ExitStack) -> None:
    network = at_an_end(closing, running.network(0, wire.INTERNET))
    with inside(network), IPRoute() as links:
        addresses = {a.get_attr("IFA_ADDRESS") for a in links.get_addr(family=socket.AF_INET6)}
    assert addresses <= {"::1"}


def test_a_network_of_no_egress_has_its_loopback_and_nothing_else(
    world: World, closing: contextlib.ExitStack
) -> None:
    running = Running(world.host, "--egress", "none").begin()
    network = at_an_end(closing, running.network(0, wire.NONE))
    world.listen(network, "127.0.0.1", 80)
    assert reached(network, [("127.0.0.1", 80), *EVERYWHERE]) == {("127.0.0.1", 80)}
    with pytest.raises(PermissionError):
        running.network(1, wire.INTERNET)
    assert left_behind(world.host) == set()
    running.stop()


# --------------------------------------------------------------------------------- by a list


def test_a_listed_network_reaches_its_list_alone(
    running: Running, closing: contextlib.ExitStack
) -> None:
    network = at_an_end(closing, running.network(0, wire.LISTED))
    other = at_an_end(closing, running.network(1, wire.LISTED))
    assert reached(network, EVERYWHERE) == set()
    running.rule(0, "203.0.113.0", 24, 80, 80)
    running.rule(0, INTERNET, 32, 1, 100)  # overlaps: a set of nf_tables would refuse it as it is
    targets = [*EVERYWHERE, (INTERNET, 81), (OTHER, 81)]
    assert reached(network, targets) == {(INTERNET, 80), (OTHER, 80), (INTERNET, 81)}
    assert reached(other, targets) == set()


def test_a_private_network_is_opened_by_the_operator_and_then_by_the_list(
    world: World, closing: contextlib.ExitStack
) -> None:
    running = Running(
        world.host,
        *("--open", f"{PRIVATE}/32:80-80", "--open", f"{HOST}/32:80-80"),
        *("--open", f"{PRIVATE}/32:79-80"),  # overlaps, as operators' lists may
    ).begin()
    network = at_an_end(closing, running.network(0, wire.INTERNET))
    listed = at_an_end(closing, running.network(1, wire.LISTED))
    opened = {(PRIVATE, 80), (HOST, 80)}
    targets = [*opened, (PRIVATE, 81), (METADATA, 80)]
    assert reached(network, targets) == opened
    assert reached(listed, targets) == set()
    running.rule(1, "0.0.0.0", 0, 0, 65_535)
    assert reached(listed, targets) == opened
    running.stop()


def test_a_permit_ends_and_what_is_connected_then_stays(
    world: World, running: Running, closing: contextlib.ExitStack
) -> None:
    network = at_an_end(closing, running.network(0, wire.LISTED))
    running.permit(0, INTERNET, 600)
    running.permit(0, INTERNET, 1)  # the later word counts
    running.permit(0, PRIVATE, 600)  # a name can be given any address: a private one is none
    with inside(world.elsewhere):
        server = closing.enter_context(socket.create_server((INTERNET, 90)))
    with inside(network):
        client = closing.enter_context(socket.create_connection((INTERNET, 90), timeout=5))
    connection = closing.enter_context(server.accept()[0])
    assert reached(network, EVERYWHERE) == {(INTERNET, 80)}
    until(lambda: not reached(network, [(INTERNET, 80)]))
    client.sendall(b"still here")
    connection.settimeout(5)
    assert connection.recv(100) == b"still here"


def test_the_next_network_at_an_address_has_nothing_of_the_one_before(
    world: World, running: Running, closing: contextlib.ExitStack
) -> None:
    """Neither its list, nor its permits, nor a connection that the kernel still remembers."""
    with inside(world.elsewhere):
        server = closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        server.bind((INTERNET, 99))
    server.settimeout(0.5)

    def exchange(network: int) -> None:
        with inside(network), socket.socket(type=socket.SOCK_DGRAM) as client:
            client.bind(("0.0.0.0", 5555))
            client.settimeout(5)
            client.sendto(b"x", (INTERNET, 99))
            server.sendto(b"y", server.recvfrom(10)[1])
            assert client.recv(10) == b"y"

    for mark, kind in ((1, wire.LISTED), (2, wire.INTERNET)):
        network = running.network(0, kind, mark)
        if kind == wire.LISTED:
            running.rule(0, OTHER, 32, 80, 80)
            running.permit(0, INTERNET, 600)
        exchange(network)
        os.close(network)
        running.release(0)
    heir = at_an_end(closing, running.network(0, wire.LISTED, 3))
    with pytest.raises(TimeoutError):
        exchange(heir)
    assert reached(heir, EVERYWHERE) == set()


# ------------------------------------------------------------------------------ life and death


def test_released_networks_end_though_somebody_still_holds_them(
    world: World, running: Running, closing: contextlib.ExitStack
) -> None:
    kept = at_an_end(closing, running.network(0, wire.INTERNET))
    for number in range(1, 200):
        at_an_end(closing, running.network(number, wire.INTERNET))
    for number in range(1, 200):
        running.send(Message(wire.RELEASE, number))
    until(lambda: devices(world.host) == {f"tv{NAME}x0"})
    assert reached(kept, EVERYWHERE) == {(INTERNET, 80), (OTHER, 80)}


def test_a_released_number_can_be_asked_for_at_once(
    world: World, running: Running, closing: contextlib.ExitStack
) -> None:
    older = at_an_end(closing, running.network(0, wire.INTERNET, 1))
    running.send(Message(wire.RELEASE, 0))
    newer = at_an_end(closing, running.network(0, wire.INTERNET, 2))
    assert reached(newer, EVERYWHERE) == {(INTERNET, 80), (OTHER, 80)}
    assert reached(older, EVERYWHERE) == set()
    assert devices(world.host) == {f"tv{NAME}x0"}


def test_a_network_can_be_used_the_moment_it_is_given(world: World, running: Running) -> None:
    """No packet of it is lost, which would be sent again after a second; most are not anyway."""
    for number in range(60):
        network = running.network(number, wire.INTERNET)
        assert reached(network, [(INTERNET, 80)], within_s=0.7) == {(INTERNET, 80)}
        os.close(network)
        running.send(Message(wire.RELEASE, number))


def test_a_released_network_reaches_nothing_even_before_it_has_ended(
    world: World, running: Running, closing: contextlib.ExitStack
) -> None:
    network = at_an_end(closing, running.network(0, wire.INTERNET))
    assert reached(network, EVERYWHERE)
    running.release(0)
    assert reached(network, EVERYWHERE) == set()


@pytest.mark.slow
def test_networks_outlive_a_killed_provisioner_and_its_successor_keeps_those_in_use(
    world: World, closing: contextlib.ExitStack
) -> None:
    first = Running(world.host).begin()
    kept = at_an_end(closing, first.network(0, wire.LISTED, 7))
    first.rule(0, INTERNET, 32, 80, 80)
    lost = at_an_end(closing, first.network(1, wire.INTERNET, 8))
    first.kill()
    assert reached(kept, EVERYWHERE) == {(INTERNET, 80)}
    assert reached(lost, EVERYWHERE) == {(INTERNET, 80), (OTHER, 80)}
    second = Running(world.host).begin(
        Message(wire.KEEP, 0, 7, wire.LISTED),
        Message(wire.RULE, 0, 0, 0, 4, 32, socket.inet_aton(OTHER), 80, 80),
        Message(wire.KEEP, 5, 9, wire.INTERNET),  # which is no more
    )
    second.settle()
    assert reached(kept, EVERYWHERE) == {(OTHER, 80)}  # as the successor was told
    assert reached(lost, EVERYWHERE) == set()
    with pytest.raises(FileExistsError):
        second.network(0, wire.INTERNET, 10)
    fresh = at_an_end(closing, second.network(1, wire.INTERNET, 11))
    assert reached(fresh, EVERYWHERE) == {(INTERNET, 80), (OTHER, 80)}
    second.stop()
    assert left_behind(world.host) == set()


@pytest.mark.slow
def test_a_successor_that_is_told_of_nothing_leaves_nothing(world: World) -> None:
    first = Running(world.host).begin()
    os.close(first.network(0, wire.INTERNET))
    first.kill()
    assert "forwarding" in left_behind(world.host)
    second = Running(world.host).begin()
    second.settle()
    assert left_behind(world.host) == set()
    second.stop()


@pytest.mark.slow
def test_the_end_of_the_launcher_ends_it(world: World) -> None:
    running = Running(world.host).begin()
    os.close(running.network(0, wire.INTERNET))
    running.parent.close()
    assert running.process.wait(timeout=20) == 0
    running.stop()
    assert left_behind(world.host) == set()


def test_nobody_else_can_take_the_rules_away(
    world: World, running: Running, closing: contextlib.ExitStack
) -> None:
    """A firewall that starts and flushes all tables would open the host to every function."""
    network = at_an_end(closing, running.network(0, wire.INTERNET))
    with inside(world.host):
        tables = Tables()
    with contextlib.closing(tables), pytest.raises(PermissionError):
        tables.commit(table(DELETE_TABLE, f"trivet_{NAME}"))
    assert reached(network, EVERYWHERE) == {(INTERNET, 80), (OTHER, 80)}


def test_a_network_is_given_with_the_rules_that_came_before_it(
    running: Running, closing: contextlib.ExitStack
) -> None:
    running.rule(0, INTERNET, 32, 80, 80)
    network = at_an_end(closing, running.network(0, wire.LISTED))
    assert reached(network, EVERYWHERE) == {(INTERNET, 80)}
    running.rule(1, INTERNET, 32, 80, 80)
    running.release(1)
    network = at_an_end(closing, running.network(1, wire.LISTED))
    assert reached(network, EVERYWHERE) == set()


@pytest.mark.slow
def test_two_platforms_share_a_host(world: World, closing: contextlib.ExitStack) -> None:
    """Each has addresses of its own, and the last to go puts forwarding back."""
    one, other = Running(world.host).begin(), Running(world.host, name="ab1e7e57").begin()
    networks = [at_an_end(closing, each.network(0, wire.INTERNET)) for each in (one, other)]
    assert len({address_of(network) for network in networks}) == 2
    one.stop()
    assert reached(networks[1], EVERYWHERE) == {(INTERNET, 80), (OTHER, 80)}
    other.stop()
    assert left_behind(world.host) == set()


@pytest.mark.slow
def test_a_range_that_is_in_use_is_left_alone(world: World) -> None:
    with inside(world.host), IPRoute() as links:
        wan = links.link_lookup(ifname="wan")[0]
        links.addr("add", index=wan, address="10.213.77.1", prefixlen=16)
    running = Running(world.host).begin()
    with pytest.raises(OSError, match="in use"):
        running.network(0, wire.INTERNET)
    running.stop()


@pytest.mark.slow
def test_a_host_that_forwarded_before_forwards_on(world: World) -> None:
    with inside(world.host):
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    running = Running(world.host).begin()
    os.close(running.network(0, wire.INTERNET))
    running.stop()
    assert left_behind(world.host) == {"forwarding"}


def test_what_is_not_understood_is_ignored(world: World, running: Running) -> None:
    with open(os.devnull) as null:
        for junk in (b"x", bytes(wire.SIZE), bytes(wire.SIZE + 1), b"\xff" * wire.SIZE):
            socket.send_fds(running.link, [junk], [null.fileno()] * 3)
    for kind in (wire.RULE, wire.PERMIT, wire.RELEASE):
        running.send(Message(kind, 4_000_000, 1, 0, 4, 8, bytes(4), 1, 2))
    assert running.receive()[0].kind == wire.PERMITTED  # who waits for it waits no longer
    running.settle()
    with pytest.raises(OSError, match="out of range"):
        running.network(5000, wire.INTERNET)
    descriptors = Path(f"/proc/{running.process.pid}/fd")
    before = len(os.listdir(descriptors))
    for _ in range(20):
        os.close(running.network(0, wire.INTERNET))
        running.release(0)
    assert len(os.listdir(descriptors)) <= before + 2  # it closes after it has answered


@given(st.binary(max_size=wire.SIZE + 4))
def test_a_message_is_read_whole_or_refused(data: bytes) -> None:
    try:
        message = Message.unpack(data)
    except ValueError:
        return
    assert Message.unpack(message.pack()) == message


NETWORKS = st.builds(
    lambda n, prefix: ipaddress.IPv4Network((n << 24, prefix), strict=False),
    st.integers(0, 3),
    st.sampled_from([6, 7, 8, 9]),
)
SPANS = st.builds(
    lambda network, ports: Span(network, *sorted(ports)),
    NETWORKS,
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
)


@given(st.lists(SPANS, max_size=6), st.integers(0, 7), st.integers(0, 9))
def test_spans_are_cut_so_that_none_overlap_and_nothing_is_lost(
    spans: list[Span], where: int, port: int
) -> None:
    pieces: list[Span] = []
    for span in spans:
        pieces += span.without(pieces)
    point = ipaddress.IPv4Address(where << 23)

    def holders(among: list[Span]) -> int:
        return sum(s.first_port <= port <= s.last_port and point in s.network for s in among)

    assert holders(pieces) == (1 if holders(spans) else 0)


# ----------------------------------------------------------------------------------- scratch


INSIDE = """
import json, os, sys
from trivet_worker import kernel
mount, target = int(sys.argv[1]), sys.argv[2]
kernel.unshare(kernel.CLONE_NEWNS)
kernel.make_private("/")
kernel.call(*kernel.attaching(mount, target))
os.close(mount)
os.setresuid(65534, 65534, 65534)
os.chdir(target)
"""


def run_inside(mount: int, target: Path, script: str) -> dict[str, int]:
    """What a script prints as JSON that runs as nobody, in a folder that is the mount."""
    target.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-I", "-c", INSIDE + script, str(mount), str(target)],
        pass_fds=[mount],
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.fixture
def scratches(world: World, tmp_path: Path) -> Iterator[Running]:
    running = Running(world.host, "--scratch-folder", str(tmp_path)).begin()
    yield running
    running.stop()
    until(lambda: loops(tmp_path) == 0)


@pytest.fixture
def target() -> Iterator[Path]:
    """A folder below folders that everybody may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


FILL = """
written, chunk = 0, bytes(1 << 20)
with open("file", "wb", buffering=0) as file:
    try:
        while True:
            written += file.write(chunk)
    except OSError as error:
        failure = error.errno
room = os.statvfs(".")
print(json.dumps({"written": written, "errno": failure, "free": room.f_bavail,
    "size": room.f_blocks * room.f_frsize, "files": room.f_files,
    "flags": room.f_flag}))
"""


def test_scratch_space_holds_its_size_and_no_more(scratches: Running, target: Path) -> None:
    mount = scratches.scratch(16)
    try:
        found = run_inside(mount, target, FILL)
    finally:
        os.close(mount)
    assert found["errno"] == errno.ENOSPC
    assert 16 << 20 <= found["written"] < 18 << 20
    assert found["free"] <= 16  # blocks that are too few for one more extent
    assert found["files"] <= 2048
    assert found["flags"] & (os.ST_NOSUID | os.ST_NODEV) == os.ST_NOSUID | os.ST_NODEV


def test_512_mb_are_512_mb(scratches: Running) -> None:
    mount = scratches.scratch(512)
    room = os.fstatvfs(mount)
    assert 512 << 20 <= room.f_bavail * room.f_frsize < 514 << 20
    assert os.listdir(f"/proc/self/fd/{mount}") == []
    assert os.fstat(mount).st_mode & 0o7777 == 0o1777
    os.close(mount)


@pytest.mark.slow
def test_scratch_space_goes_with_its_mount_and_with_nothing_else(
    scratches: Running, tmp_path: Path
) -> None:
    one, other = scratches.scratch(16), scratches.scratch(16)
    assert loops(tmp_path) == 2
    assert os.listdir(tmp_path) == []  # no name: nothing is left of them whatever happens
    Path(f"/proc/self/fd/{one}/mine").write_text("of one")
    assert os.listdir(f"/proc/self/fd/{other}") == []
    os.close(other)
    until(lambda: loops(tmp_path) == 1)
    scratches.kill()
    assert Path(f"/proc/self/fd/{one}/mine").read_text() == "of one"
    os.close(one)


CHARGED = """
file = open("file", "wb", buffering=0)
for _ in range(48):
    file.write(bytes(1 << 20))
print(json.dumps({"written": file.tell()}))
"""


@pytest.mark.slow
def test_what_is_written_there_is_not_charged_as_memory(scratches: Running, target: Path) -> None:
    """Three times the memory that the writer may have: cache, which the kernel takes back."""
    folder = Path("/sys/fs/cgroup/memory") / f"trivet-test-{os.getpid()}"
    if not Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists():
        pytest.skip("no memory controller of cgroup v1 here")
    mount = scratches.scratch(64)
    folder.mkdir()
    try:
        (folder / "memory.limit_in_bytes").write_text(str(24 << 20))
        joined = f"open('{folder}/cgroup.procs', 'w').write('0')\n"
        script = INSIDE.replace("kernel.unshare", joined + "kernel.unshare", 1) + CHARGED
        done = subprocess.run(
            [sys.executable, "-I", "-c", script, str(mount), str(target)],
            pass_fds=[mount],
            stdout=subprocess.PIPE,
            check=True,
        )
        assert json.loads(done.stdout) == {"written": 48 << 20}
        stat = (folder / "memory.oom_control").read_text().split()
        assert stat[stat.index("oom_kill") + 1] == "0"
    finally:
        os.close(mount)
        folder.rmdir()


@pytest.mark.parametrize(
    ("options", "number"),
    [([], errno.EOPNOTSUPP), (["/nowhere"], errno.ENOENT), (["/dev/shm"], errno.EOPNOTSUPP)],
)
def test_where_there_is_no_disk_it_says_so(world: World, options: list[str], number: int) -> None:
    running = Running(world.host, *(("--scratch-folder", *options) if options else ())).begin()
    with pytest.raises(OSError, match=r"\d") as raised:
        running.scratch(16)
    assert raised.value.errno == number
    running.stop()


@pytest.mark.slow
def test_more_than_the_disk_has_is_refused(scratches: Running) -> None:
    with pytest.raises(OSError, match="No space left"):
        scratches.scratch(1 << 30)  # a petabyte
