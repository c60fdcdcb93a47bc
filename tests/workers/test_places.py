"""What an environment may be given: layers, a network, scratch space, a cgroup, its own program."""

from __future__ import annotations

import errno
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.workers import driver
from tests.workers.conftest import Code, needs_root
from tests.workers.driver import Zygote

from trivet_worker import kernel, view, wire

Files = Callable[[dict[str, str]], Path]

_LOOK = """
import errno, os, socket
def attempt(call, *args):
    try:
        call(*args)
    except OSError as error:
        return error.errno
    return 0
def connect(port, kind=socket.SOCK_STREAM, host="127.0.0.1"):
    with socket.socket(socket.AF_INET, kind) as end:
        end.settimeout(10)
        end.connect((host, port))
        end.send(b"hello")
        return end.recv(100).decode()
def handler(event, context):
    return eval(event)
"""


# A network or a small filesystem is made by a process of its own.
def _network() -> int:
    kernel.unshare(kernel.CLONE_NEWNET)
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def _scratch() -> int:
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.make_private("/")
    kernel.mount("tmpfs", "/mnt", 0, "size=1m,mode=1777")
    return view.clone("/mnt")


@pytest.fixture
def network() -> Iterator[int]:
    descriptor = driver.made_elsewhere(_network)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def scratch() -> Iterator[int]:
    descriptor = driver.made_elsewhere(_scratch)
    yield descriptor
    os.close(descriptor)


def test_doors_lead_out_of_the_network_they_were_bound_in(zygote: Zygote, code: Code) -> None:
    environment = zygote.spawn(code(_LOOK))
    environment.init()
    aws, names = environment.doors[wire.DOOR_AWS], environment.doors[wire.DOOR_NAMES]
    attempt = environment.send(wire.EVENT, driver.event_body(b'"connect(4566)"'))
    aws.settimeout(driver.DEADLINE_S)
    connection, _ = aws.accept()
    assert connection.getsockname() == ("127.0.0.1", wire.AWS_PORT)
    connection.sendall(b"from outside")
    assert (answer := environment.receive()).attempt == attempt
    assert answer.json == "from outside"
    connection.close()
    query = b'"connect(53, socket.SOCK_DGRAM)"'
    environment.send(wire.EVENT, driver.event_body(query))
    names.settimeout(driver.DEADLINE_S)
    data, address = names.recvfrom(100)
    assert data == b"hello"
    names.sendto(b"resolved", address)
    assert environment.receive().json == "resolved"
    assert environment.kill() == -signal.SIGKILL


def _own_network() -> int:
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def _network_of_a_process() -> int:
    return os.pidfd_open(os.getpid())


@needs_root
@pytest.mark.parametrize("given", [_own_network, _network_of_a_process])
def test_the_network_of_the_host_or_of_a_process_is_not_entered(
    zygote: Zygote, code: Code, given: Callable[[], int]
) -> None:
    network = given()
    environment = zygote.send_spawn(code(_LOOK), network=network)
    assert zygote.refused(environment.number).first == errno.EPERM
    os.close(network)


def test_any_loopback_address_leads_to_the_aws_door(zygote: Zygote, code: Code) -> None:
    environment = zygote.spawn(code(_LOOK))
    environment.init()
    aws = environment.doors[wire.DOOR_AWS]
    environment.send(wire.EVENT, driver.event_body(b'''"connect(4566, host='127.0.1.7')"'''))
    aws.settimeout(driver.DEADLINE_S)
    connection, _ = aws.accept()
    assert connection.getsockname()[0] == "127.0.1.7"
    connection.close()
    environment.receive()
    assert environment.kill() == -signal.SIGKILL


def test_without_a_network_it_reaches_nothing(zygote: Zygote, code: Code) -> None:
    environment = zygote.spawn(code(_LOOK))
    environment.init()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert environment.invoke(f"attempt(connect, {port})").json == errno.ECONNREFUSED
    far = "attempt(connect, 80, socket.SOCK_STREAM, '203.0.113.1')"
    assert environment.invoke(far).json == errno.ENETUNREACH
    assert environment.invoke("socket.if_nameindex()").json == [[1, "lo"]]
    assert environment.kill() == -signal.SIGKILL


@needs_root
def test_a_given_network_is_joined(zygote: Zygote, code: Code, network: int) -> None:
    if not zygote.bits & wire.ISOLATION_UID:
        pytest.skip("a network made by root can be joined with its power only")
    environment = zygote.spawn(code(_LOOK), network=network)
    inside = os.stat(f"/proc/{environment.pid}/ns/net").st_ino
    assert inside == os.fstat(network).st_ino
    assert environment.kill() == -signal.SIGKILL


@needs_root
def test_given_scratch_is_its_tmp(zygote: Zygote, code: Code, scratch: int) -> None:
    if not zygote.bits & wire.ISOLATION_UID:
        pytest.skip("a mount made by root can be attached with its power only")
    environment = zygote.spawn(code(_LOOK), scratch=scratch)
    environment.init()
    assert environment.invoke("open('/tmp/note', 'w').write('kept')").json == 4
    size = "os.statvfs('/tmp').f_blocks * os.statvfs('/tmp').f_frsize"
    assert environment.invoke(size).json == 1024 * 1024
    full = "attempt(open('/tmp/large', 'wb', 0).write, bytes(2 << 20))"
    assert environment.invoke(full).json in (0, errno.ENOSPC)
    assert environment.invoke("os.stat('/tmp/large').st_size").json < 1024 * 1024
    assert environment.kill() == -signal.SIGKILL


def test_its_tmp_has_the_size_that_was_asked_for(zygote: Zygote, code: Code) -> None:
    environment = zygote.spawn(code(_LOOK), tmp_mb=10)
    environment.init()
    size = "os.statvfs('/tmp').f_blocks * os.statvfs('/tmp').f_frsize"
    assert environment.invoke(size).json == 10 * 1024 * 1024
    full = "attempt(open('/tmp/large', 'wb', 0).write, bytes(11 << 20))"
    environment.invoke(full)
    more = "attempt(open('/tmp/more', 'wb', 0).write, b'x')"
    assert environment.invoke(more).json == errno.ENOSPC
    assert environment.kill() == -signal.SIGKILL


def test_layers_are_read_only_below_opt(zygote: Zygote, code: Code, files: Files) -> None:
    layers = files({"data.txt": "of a layer"})
    environment = zygote.spawn(code(_LOOK), layers=layers)
    environment.init()
    assert environment.invoke("open('/opt/data.txt').read()").json == "of a layer"
    assert environment.invoke("attempt(open, '/opt/new', 'w')").json == errno.EROFS
    assert environment.kill() == -signal.SIGKILL


def test_a_cell_gets_layers_with_its_code(node_zygote: Zygote, files: Files) -> None:
    cell = node_zygote.spawn(None)
    source = (
        'import fs from "node:fs";\n'
        'export const handler = async () => fs.readFileSync("/opt/data.txt", "utf8");\n'
    )
    folders = [files({"index.mjs": source}), files({"data.txt": "of a layer"})]
    descriptors = tuple(os.open(folder, os.O_PATH | os.O_DIRECTORY) for folder in folders)
    given = wire.WITH_CODE | wire.WITH_LAYERS
    node_zygote.command(wire.FILL, cell.number, 0, descriptors, given)
    for descriptor in descriptors:
        os.close(descriptor)
    node_zygote.expect(wire.FILLED, cell.number)
    assert cell.init().kind == wire.INITIALISED
    assert cell.invoke().json == "of a layer"
    assert cell.kill() == -signal.SIGKILL


def test_libraries_are_shown_beside_the_code(code: Code, files: Files) -> None:
    library = files({"shared.py": "VALUE = 42\n"})
    zygote = driver.start_zygote(libraries=[str(library), str(library / "shared.py")])
    environment = zygote.spawn(code(_LOOK))
    environment.init()
    names = sorted(environment.invoke("os.listdir('/var/runtime')").json)
    assert names == sorted([library.name, "shared.py"])
    assert environment.invoke("open('/var/runtime/shared.py').read()").json == "VALUE = 42\n"
    assert environment.kill() == -signal.SIGKILL
    zygote.close()


def _hierarchies() -> list[Path]:
    return [Path(f"/sys/fs/cgroup/{name}") for name in ("memory", "pids")]


@pytest.fixture
def bases() -> Iterator[list[Path]]:
    bases = [Path(tempfile.mkdtemp(prefix="trivet-test-", dir=each)) for each in _hierarchies()]
    yield bases
    for base in bases:
        for child in base.iterdir():
            if child.is_dir():
                child.rmdir()
        base.rmdir()


needs_cgroups = pytest.mark.skipif(
    os.geteuid() != 0 or not all((each / "cgroup.procs").exists() for each in _hierarchies()),
    reason="needs root and cgroups v1",
)


@needs_cgroups
def test_an_environment_joins_the_cgroups_of_its_uid(code: Code, bases: list[Path]) -> None:
    zygote = driver.start_zygote(cgroups=[str(base) for base in bases])
    assert zygote.bits & wire.ISOLATION_CGROUP
    uid = next(zygote.uids)
    for base in bases:
        (base / str(uid)).mkdir()
    environment = zygote.started(zygote.send_spawn(code(_LOOK), uid, joins_cgroup=True))
    for base in bases:
        assert (base / str(uid) / "cgroup.procs").read_text().split() == [str(environment.pid)]
    environment.init()
    # Its own cgroups are the root of all that it is told of.
    lines = environment.invoke("open('/proc/self/cgroup').read()").json.splitlines()
    told = dict(line.split(":")[1:] for line in lines)
    assert (told["memory"], told["pids"]) == ("/", "/")
    assert environment.kill() == -signal.SIGKILL
    zygote.close()


@needs_cgroups
def test_a_frozen_environment_ends_with_its_zygote(code: Code) -> None:
    base = Path(tempfile.mkdtemp(prefix="trivet-test-", dir="/sys/fs/cgroup/freezer"))
    zygote = driver.start_zygote(cgroups=[str(base)])
    uid = next(zygote.uids)
    (base / str(uid)).mkdir()
    environment = zygote.started(zygote.send_spawn(code(_LOOK), uid, joins_cgroup=True))
    environment.init()
    (base / str(uid) / "freezer.state").write_text("FROZEN")
    zygote.parent.close()
    assert zygote.process.wait(driver.DEADLINE_S) == 0
    assert driver.has_ended(environment.pidfd, within_s=0)
    zygote.close()
    (base / str(uid)).rmdir()
    base.rmdir()


@needs_cgroups
def test_without_its_cgroup_an_environment_is_refused(code: Code, bases: list[Path]) -> None:
    zygote = driver.start_zygote(cgroups=[str(base) for base in bases])
    environment = zygote.send_spawn(code(_LOOK), joins_cgroup=True)
    assert zygote.refused(environment.number).first == errno.ENOENT
    zygote.close()


_UNIFIED = Path("/sys/fs/cgroup/unified")
_IN_ITS_CGROUP = """
import os, signal, subprocess, threading
def handler(event, context):
    if event == "abort":
        os.abort()
    threads = [threading.Thread(target=lambda: done.append(1)) for _ in range(4)]
    done = []
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    lock = threading.RLock()
    with lock, lock:
        said = subprocess.run(["/bin/echo", "hi"], capture_output=True, text=True).stdout
    child = os.fork()
    if child == 0:
        os._exit(7)
    return [os.getpid(), threading.get_native_id(), len(done), said, os.waitpid(child, 0)[1] >> 8]
"""


@pytest.fixture
def base_of_version_2() -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="trivet-test-", dir=_UNIFIED))
    yield base
    for child in base.iterdir():
        if child.is_dir():
            child.rmdir()
    base.rmdir()


@pytest.mark.skipif(
    os.geteuid() != 0 or not (_UNIFIED / "cgroup.procs").exists(),
    reason="needs root and a cgroup2 mount",
)
def test_on_version_2_an_environment_is_born_in_its_cgroup(
    code: Code, base_of_version_2: Path
) -> None:
    """By clone3, behind the C library's back: what it keeps of a process must be right inside."""
    base = base_of_version_2
    zygote = driver.start_zygote(cgroups=[str(base)])
    assert zygote.bits & wire.ISOLATION_CGROUP
    uid = next(zygote.uids)
    (base / str(uid)).mkdir()
    folder = code(_IN_ITS_CGROUP)
    environment = zygote.started(zygote.send_spawn(folder, uid, joins_cgroup=True))
    assert (base / str(uid) / "cgroup.procs").read_text().split() == [str(environment.pid)]
    environment.init()
    for _ in range(3):
        assert environment.invoke().json == [1, 1, 4, "hi\n", 7]
    assert "populated 1" in (base / str(uid) / "cgroup.events").read_text()
    # A frozen one is killed by its cgroup, whole.
    (base / str(uid) / "cgroup.freeze").write_text("1")
    (base / str(uid) / "cgroup.kill").write_text("1")
    assert environment.exit_status() == -signal.SIGKILL
    assert "populated 0" in (base / str(uid) / "cgroup.events").read_text()
    missing = zygote.send_spawn(folder, joins_cgroup=True)
    assert zygote.refused(missing.number).first == errno.ENOENT
    # And one that is gone by the time at which it is to be born there.
    os.kill(zygote.template, signal.SIGSTOP)
    gone = zygote.send_spawn(folder, uid, joins_cgroup=True)
    missing = zygote.send_spawn(folder, joins_cgroup=True)
    assert zygote.refused(missing.number).first == errno.ENOENT
    (base / str(uid)).rmdir()
    os.kill(zygote.template, signal.SIGCONT)
    assert zygote.refused(gone.number).first == errno.ENOENT
    zygote.close()


def test_a_cgroup_that_the_zygote_does_not_have_is_refused(zygote: Zygote, code: Code) -> None:
    environment = zygote.send_spawn(code(_LOOK), joins_cgroup=True)
    assert zygote.refused(environment.number).first == errno.EPERM


_BOOTSTRAP = """#!/bin/sh
exec 3<>/dev/null
echo "custom $0 $AWS_LAMBDA_RUNTIME_API $GREETING"
sleep 1000
"""


def test_a_custom_runtime_is_the_users_own_program(zygote: Zygote, files: Files) -> None:
    folder = files({"bootstrap": _BOOTSTRAP})
    (folder / "bootstrap").chmod(0o755)
    environment = zygote.spawn(folder, is_custom=True)
    api = environment.doors[wire.DOOR_RUNTIME]
    assert api.getsockname() == ("127.0.0.1", wire.RUNTIME_PORT)
    order = b'{"environment": {"GREETING": "hi", "PATH": "/usr/bin:/bin"}}'
    environment.send(wire.INIT, order)
    assert environment.channel.recv(1) == b""  # closed as the program started
    said = os.read(environment.log_fd, 1000).decode()
    assert said == "custom /var/task/bootstrap 127.0.0.1:9001 hi\n"
    assert environment.kill() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({}, "Error: Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]"),
        ({"bootstrap": "#!/bin/sh\n"}, "Error: fork/exec /var/task/bootstrap: permission denied"),
    ],
)
def test_a_program_that_cannot_be_started_is_told(
    zygote: Zygote, files: Files, contents: dict[str, str], words: str
) -> None:
    environment = zygote.spawn(files(contents), is_custom=True)
    environment.send(wire.INIT, b'{"environment": {}}')
    frame = environment.receive()
    assert frame.kind == wire.INIT_FAILED
    assert frame.json == {"errorType": "Runtime.InvalidEntrypoint", "errorMessage": words}
    assert zygote.expect(wire.EXITED, environment.number).first == 1


@needs_root
def test_only_what_runs_as_an_environment_can_be_adopted(zygote: Zygote, code: Code) -> None:
    if not zygote.bits & wire.ISOLATION_UID:
        pytest.skip("all run as this very user")
    stranger = os.fork()
    if stranger == 0:
        signal.pause()
    pidfd = os.pidfd_open(stranger)
    for number, uid in ((900, 0), (901, 100_000), (902, 65_534)):
        zygote.command(wire.ADOPT, number, uid, (pidfd,))
        zygote.command(wire.KILL, number)
    environment = zygote.spawn(code(_LOOK))  # all before it has been carried out
    assert not driver.has_ended(pidfd, within_s=0)
    os.kill(stranger, signal.SIGKILL)
    os.waitpid(stranger, 0)
    os.close(pidfd)
    assert environment.kill() == -signal.SIGKILL


@pytest.mark.parametrize("bit", [wire.ISOLATION_SECCOMP, wire.ISOLATION_LANDLOCK])
def test_a_layer_can_be_left_out_alone(bit: int, code: Code) -> None:
    whole = driver.start_zygote()
    partial = driver.start_zygote(without=bit)
    assert partial.bits == whole.bits & ~bit
    environment = partial.spawn(code(_LOOK))
    environment.init()
    assert environment.invoke("1 + 1").json == 2
    for zygote in (whole, partial):
        zygote.close()


def test_it_can_be_stopped_and_continued(zygote: Zygote, code: Code) -> None:
    environment = zygote.spawn(code(_LOOK))
    environment.init()
    zygote.command(wire.KILL, environment.number, signal.SIGSTOP)
    state = Path(f"/proc/{environment.pid}/stat")
    while state.read_text().rpartition(")")[2].split()[0] != "T":
        os.sched_yield()
    environment.send(wire.EVENT, driver.event_body(b'"1"'))
    zygote.command(wire.KILL, environment.number, signal.SIGCONT)
    assert environment.receive().json == 1
    zygote.command(wire.KILL, environment.number, signal.SIGTERM)  # is none of its signals
    assert environment.invoke("2").json == 2
    zygote.command(wire.KILL, environment.number, signal.SIGSTOP)
    assert environment.kill() == -signal.SIGKILL


def test_who_cannot_come_back_from_where_others_live_ends() -> None:
    with open(os.devnull) as no_namespace:
        child = os.fork()
        if child == 0:
            kernel.come_back(no_namespace.fileno(), kernel.CLONE_NEWNET)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
