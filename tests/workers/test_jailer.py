"""What goes wrong while an environment is made, and what is on no machine of ours."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.jail import seccomp
from tests.workers import driver
from tests.workers.conftest import Code, needs_root
from tests.workers.driver import DEADLINE_S, FIRST_UID, Zygote, made_elsewhere

from trivet_worker import filters, kernel, wire

_HELLO = "def handler(event, context): return 'hello'"

AARCH64 = 0xC000_00B7
_FAIL = seccomp.ERRNO


_FREEZER = Path("/sys/fs/cgroup/freezer")
needs_freezer = pytest.mark.skipif(
    os.geteuid() != 0 or not (_FREEZER / "cgroup.procs").exists(),
    reason="needs root and cgroups v1",
)


@pytest.fixture
def frozen() -> Iterator[Path]:
    """A frozen cgroup for the uid that it is named after, in a folder for such cgroups."""
    base = Path(tempfile.mkdtemp(prefix="trivet-test-", dir=_FREEZER))
    folder = base / str(FIRST_UID + 10)
    folder.mkdir()
    (folder / "freezer.state").write_text("FROZEN")
    yield folder
    folder.rmdir()
    base.rmdir()


# ------------------------------------------------------------------------------ filters


def test_calls_have_other_numbers_on_another_architecture() -> None:
    programs = [
        list(struct.iter_unpack("=HBBI", program)) for program in filters.programs("aarch64")
    ]

    def verdict(number: int, *arguments: int, machine: int = AARCH64) -> int:
        return seccomp.verdict(programs, number, arguments, machine)

    mount, ptrace, clone3, clone, socket_, write = 40, 117, 435, 220, 198, 64
    assert verdict(mount) == verdict(ptrace) == _FAIL | errno.EPERM
    assert verdict(clone3) == _FAIL | errno.ENOSYS
    assert verdict(clone, kernel.CLONE_NEWUSER) == _FAIL | errno.EPERM
    assert verdict(clone, signal.SIGCHLD) == seccomp.ALLOW
    assert verdict(socket_, socket.AF_INET, 1, 0) == seccomp.ALLOW
    assert verdict(socket_, socket.AF_PACKET, 3, 0) == _FAIL | errno.EAFNOSUPPORT
    assert verdict(write) == seccomp.ALLOW
    assert verdict(write, machine=seccomp.X86_64) == seccomp.KILL_PROCESS


def test_where_numbers_are_not_known_there_is_no_filter() -> None:
    with pytest.raises(OSError, match="riscv64") as refusal:
        filters.programs("riscv64")
    assert refusal.value.errno == errno.ENOSYS


# -------------------------------------------------------------------------- descriptors


def _descriptors(zygote: Zygote) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{zygote.process.pid}/fd")}


@contextmanager
def _room_for(zygote: Zygote, count: int) -> Iterator[None]:
    """Let a zygote open only so many more descriptors."""
    pid, taken = zygote.process.pid, _descriptors(zygote)
    free = (number for number in itertools.count() if number not in taken)
    _limit(pid, next(itertools.islice(free, count, None)))
    yield
    _limit(pid, -1)


def _limit(pid: int, descriptors: int) -> None:
    """-1: as many as it may have. Done by its own user, for want of power over other users'."""
    child = os.fork()
    if child == 0:
        try:
            uid = os.stat(f"/proc/{pid}/fd").st_uid if os.geteuid() == 0 else os.geteuid()
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            soft = most if descriptors < 0 else descriptors
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, most))
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def _refuse(zygote: Zygote, number: int) -> None:
    """Have it say no, which needs two descriptors for a moment."""
    with open(os.devnull) as null:
        zygote.command(wire.SPAWN, number, -1, (null.fileno(),) * 2, wire.AS_CUSTOM)


def _is_as_before(zygote: Zygote, descriptors: set[int], folder: Path) -> None:
    """It has let go of everything, and does its work."""
    driver.until(lambda: not zygote.children())
    environment = zygote.spawn(folder)
    environment.init(task_root=None if zygote.bits & wire.ISOLATION_MOUNT else str(folder))
    assert environment.invoke().json == "hello"
    assert environment.kill() == -signal.SIGKILL
    driver.until(lambda: _descriptors(zygote) == descriptors)


@needs_root
@pytest.mark.parametrize("is_bare", [False, True], ids=["root", "bare"])
def test_without_room_for_its_descriptors_an_environment_is_refused(
    code: Code, is_bare: bool
) -> None:
    """Whichever of them it is that there is no room for. Three come with the command."""
    zygote = driver.start_zygote(without_namespaces=is_bare)
    folder, before = code(_HELLO), _descriptors(zygote)
    kinds = [wire.REFUSED]
    for room in itertools.count(3):
        with _room_for(zygote, room):
            environment = zygote.send_spawn(folder)
            message = zygote.receive()
        kinds.append(message.kind)
        if message.kind == wire.STARTED:
            break
        assert (message.kind, message.number) == (wire.REFUSED, environment.number)
        assert message.first == errno.EMFILE
        _is_as_before(zygote, before, folder)
    assert len(kinds) > 5
    zygote.close()
    for each in message.descriptors:
        os.close(each)


def test_without_room_for_what_comes_beside_it_a_command_is_ignored(
    own_zygote: Zygote, code: Code
) -> None:
    folder, before = code(_HELLO), _descriptors(own_zygote)
    with _room_for(own_zygote, 2):
        own_zygote.send_spawn(folder)
        _refuse(own_zygote, 1_000)
        assert own_zygote.receive().number == 1_000
    _is_as_before(own_zygote, before, folder)


def test_more_descriptors_than_any_command_has_are_not_kept(own_zygote: Zygote, code: Code) -> None:
    folder, before = code(_HELLO), _descriptors(own_zygote)
    with open(os.devnull) as null:
        message = wire.COMMAND.pack(wire.KILL, 1, 0, 0)
        for count in (wire.MOST_DESCRIPTORS + 1, 100):
            socket.send_fds(own_zygote.commands, [message], [null.fileno()] * count)
    _is_as_before(own_zygote, before, folder)


@needs_freezer
@pytest.mark.parametrize("room", [0, 1])
def test_without_room_for_what_tells_of_its_end_it_is_refused_and_ended(
    code: Code, frozen: Path, room: int
) -> None:
    """Its doors it had before; now what tells of its end, and that once more, to be sent."""
    zygote = driver.start_zygote(cgroups=[str(frozen.parent)])
    folder, before = code(_HELLO), _descriptors(zygote)
    environment = zygote.send_spawn(folder, int(frozen.name), joins_cgroup=True)
    driver.until((frozen / "cgroup.procs").read_text)  # there it stops in the making
    driver.until(lambda: len(_descriptors(zygote)) == len(before) + 3)
    with _room_for(zygote, room):
        (frozen / "freezer.state").write_text("THAWED")
        assert zygote.refused(environment.number).first == errno.EMFILE
        driver.until(lambda: not (frozen / "cgroup.procs").read_text())
    _is_as_before(zygote, before, folder)
    zygote.close()


@needs_freezer
def test_what_ends_in_the_making_is_refused(code: Code, frozen: Path) -> None:
    zygote = driver.start_zygote(cgroups=[str(frozen.parent)])
    folder, before = code(_HELLO), _descriptors(zygote)
    environment = zygote.send_spawn(folder, int(frozen.name), joins_cgroup=True)
    driver.until((frozen / "cgroup.procs").read_text)
    os.kill(int((frozen / "cgroup.procs").read_text()), signal.SIGKILL)
    (frozen / "freezer.state").write_text("THAWED")
    assert zygote.refused(environment.number).first == errno.EPROTO
    _is_as_before(zygote, before, folder)
    zygote.close()


# ------------------------------------------------------------------------------ the end


@needs_freezer
@pytest.mark.slow
def test_a_zygote_ends_beside_an_environment_that_cannot(code: Code, frozen: Path) -> None:
    """It thaws what belongs to the environment, but here all above it is frozen too."""
    zygote = driver.start_zygote(cgroups=[str(frozen.parent)])
    (frozen / "freezer.state").write_text("THAWED")
    environment = zygote.started(
        zygote.send_spawn(code(_HELLO), int(frozen.name), joins_cgroup=True)
    )
    (frozen.parent / "freezer.state").write_text("FROZEN")
    zygote.parent.close()
    assert zygote.process.wait(DEADLINE_S) == 0
    assert not driver.has_ended(environment.pidfd, within_s=0)
    (frozen.parent / "freezer.state").write_text("THAWED")
    assert driver.has_ended(environment.pidfd)
    zygote.close()


def test_a_zygote_ends_with_orders_that_nobody_took(own_zygote: Zygote, code: Code) -> None:
    own_zygote.spawn(code(_HELLO))
    template = os.pidfd_open(own_zygote.template)
    os.kill(own_zygote.template, signal.SIGSTOP)
    own_zygote.send_spawn(code(_HELLO))
    _refuse(own_zygote, 1_000)
    assert own_zygote.receive().number == 1_000
    own_zygote.parent.close()
    assert own_zygote.process.wait(DEADLINE_S) == 0
    assert driver.has_ended(template, within_s=0)
    os.close(template)


def _stopped(zygote: Zygote) -> None:
    zygote.process.send_signal(signal.SIGSTOP)
    state = Path(f"/proc/{zygote.process.pid}/stat")
    driver.until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")


def test_a_zygote_with_answers_left_ends_with_its_supervisor(own_zygote: Zygote) -> None:
    _stopped(own_zygote)
    with open(os.devnull) as null:
        command = wire.COMMAND.pack(wire.SPAWN, 1_000, -1, wire.AS_CUSTOM)
        own_zygote.commands.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:  # as many as the socket holds
                socket.send_fds(own_zygote.commands, [command], [null.fileno()] * 2)
    own_zygote.commands.close()
    own_zygote.process.send_signal(signal.SIGCONT)
    assert own_zygote.process.wait(DEADLINE_S) == 0


def test_the_last_adopt_counts_even_if_answers_were_not_read(
    own_zygote: Zygote, code: Code
) -> None:
    environment = own_zygote.spawn(code(_HELLO))
    own_zygote.process.kill()
    own_zygote.process.wait(DEADLINE_S)
    successor = driver.start_zygote(as_user=os.geteuid() == 0 and environment.uid == 0)
    _refuse(successor, 1_000)
    assert select.select([successor.commands], [], [], DEADLINE_S)[0]  # and left there
    _stopped(successor)
    successor.adopt(environment)
    successor.commands.close()
    successor.process.send_signal(signal.SIGCONT)
    assert successor.process.wait(DEADLINE_S) == 0
    assert driver.has_ended(environment.pidfd)
    successor.close()


def test_many_are_refused_at_once(own_zygote: Zygote, code: Code) -> None:
    folder, before = code(_HELLO), _descriptors(own_zygote)
    with open(os.devnull) as null:
        for number in range(1_000, 1_032):
            beside = (null.fileno(),) * 3
            own_zygote.command(wire.SPAWN, number, next(own_zygote.uids), beside, wire.WITH_CODE)
    refused = {own_zygote.receive().number for _ in range(32)}
    assert refused == set(range(1_000, 1_032))
    _is_as_before(own_zygote, before, folder)


# -------------------------------------------------------------------------------- cells


def _fill(zygote: Zygote, number: int, *folders: Path) -> None:
    """With all that a command may name: code, then layers."""
    descriptors = [os.open(folder, os.O_PATH | os.O_DIRECTORY) for folder in folders]
    given = wire.WITH_CODE | wire.WITH_LAYERS
    zygote.command(wire.FILL, number, 0, tuple(descriptors), given)
    for descriptor in descriptors:
        os.close(descriptor)


def test_only_a_cell_that_is_there_is_filled(node_zygote: Zygote, code: Code) -> None:
    folder = code(_HELLO)
    _fill(node_zygote, 5_000, folder)  # one folder is missing: it is ignored
    _fill(node_zygote, 5_001, folder, folder)
    message = node_zygote.receive()
    assert (message.kind, message.number) == (wire.REFUSED, 5_001)
    assert message.first == errno.ESRCH


# A zygote that has a mount namespace of its own, so that a failing test harms no other.
_APART = """
import sys; sys.path.insert(0, {root!r})
from trivet_worker import kernel, zygote
kernel.unshare(kernel.CLONE_NEWNS)
kernel.make_private("/")
zygote.main(sys.argv[1:])
"""

_NEIGHBOUR = """
import os, signal, sys; sys.path.insert(0, {root!r})
from trivet_worker import kernel
kernel.join_namespaces(os.open("/proc/{pid}/ns/mnt", os.O_RDONLY), kernel.CLONE_NEWNS)
os.setresgid({uid}, {uid}, {uid})
os.setresuid({uid}, {uid}, {uid})
print("there", flush=True)
signal.pause()
"""


@needs_root
def test_nothing_is_mounted_where_the_zygote_itself_lives(code: Code) -> None:
    """Not through a process that has no root of its own, whoever asks for it."""
    root = str(driver.WORKERS)
    zygote = driver.start_zygote(kind="node", entry=_APART.format(root=root))
    mounts = Path(f"/proc/{zygote.process.pid}/mountinfo")
    before = mounts.read_text()
    program = _NEIGHBOUR.format(root=root, pid=zygote.process.pid, uid=FIRST_UID)
    arguments = [sys.executable, "-I", "-c", program]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as neighbour:
        assert neighbour.stdout is not None
        assert neighbour.stdout.readline() == b"there\n"
        pidfd = os.pidfd_open(neighbour.pid)
        zygote.command(wire.ADOPT, 1_000, FIRST_UID, (pidfd,))
        folder = code(_HELLO)
        _fill(zygote, 1_000, folder, folder)
        assert zygote.refused(1_000).first == errno.EPERM
        assert mounts.read_text() == before
        zygote.command(wire.KILL, 1_000)
    os.close(pidfd)
    zygote.close()


@needs_root
def test_only_a_process_can_be_adopted(zygote: Zygote, code: Code) -> None:
    before = _descriptors(zygote)
    with open(os.devnull) as null, subprocess.Popen(["true"]) as gone:
        pidfd = os.pidfd_open(gone.pid)
        gone.wait()
        for descriptor in (null.fileno(), pidfd):
            zygote.command(wire.ADOPT, 1_000, FIRST_UID, (descriptor,))
        os.close(pidfd)
    if zygote.bits & wire.ISOLATION_UID:
        _is_as_before(zygote, before, code(_HELLO))


# ------------------------------------------------------------------------------- levels


@needs_root
def test_a_user_without_a_root_of_its_own_has_processes_of_its_own(code: Code) -> None:
    without = wire.ISOLATION_MOUNT | wire.ISOLATION_NETWORK
    zygote = driver.start_zygote(as_user=True, without=without)
    extras = wire.ISOLATION_SECCOMP | wire.ISOLATION_LANDLOCK
    assert zygote.bits == wire.ISOLATION_USER | wire.ISOLATION_PID | extras
    folder = code("import os\ndef handler(event, context): return os.getpid(), os.getcwd()")
    environment = zygote.spawn(folder)
    environment.init(task_root=str(folder))
    assert environment.invoke().json == [1, str(folder)]
    zygote.close()


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/sys/fs/cgroup/cpuset/cgroup.procs").exists(),
    reason="needs root and cgroups v1",
)
def test_cgroups_that_no_process_can_join_are_no_limits(
    code: Code, capfd: pytest.CaptureFixture[str]
) -> None:
    base = Path(tempfile.mkdtemp(prefix="trivet-test-", dir="/sys/fs/cgroup/cpuset"))
    zygote = driver.start_zygote(cgroups=[str(base)])  # where no processor was given yet
    assert not zygote.bits & wire.ISOLATION_CGROUP
    assert zygote.bits & wire.ISOLATION_MOUNT
    assert os.strerror(errno.ENOSPC) in capfd.readouterr().err
    assert [each for each in base.iterdir() if each.is_dir()] == []
    zygote.close()
    base.rmdir()


# ------------------------------------------------------------------------------ folders


def test_what_an_environment_needs_from_below_tmp_stays_visible(code: Code) -> None:
    folder = Path(tempfile.mkdtemp(prefix="trivet-clone-", dir="/tmp"))
    folder.chmod(0o755)
    shutil.copytree(driver.BOOTSTRAP.parent, folder, dirs_exist_ok=True)
    zygote = driver.start_zygote(kind="node", bootstrap=folder / driver.BOOTSTRAP.name)
    cell = zygote.spawn(None)
    source = "import fs from 'node:fs';export const handler = async () => fs.readdirSync('/tmp');"
    filling = driver.write_code({"index.mjs": source})
    zygote.fill(cell, filling)
    cell.init()
    assert cell.invoke().json == sorted({folder.name, *driver.CLONE_IN_TMP})
    zygote.close()
    driver.remove_code(filling)
    shutil.rmtree(folder)


def _opened_among_other_mounts(folder: Path, *, is_covered: bool) -> int:
    def opened() -> int:
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.make_private("/")
        if is_covered:
            kernel.mount("tmpfs", str(folder), 0, "size=1m")
        return os.open(folder, os.O_PATH | os.O_DIRECTORY)

    return made_elsewhere(opened)


@needs_root
@pytest.mark.parametrize("is_covered", [False, True])
def test_a_folder_is_the_one_that_was_meant_or_refused(
    code: Code, own_zygote: Zygote, is_covered: bool
) -> None:
    """Whoever opens it may live among other mounts, where another folder may be at its place."""
    folder = code(_HELLO)
    given = _opened_among_other_mounts(folder, is_covered=is_covered)
    environment = own_zygote.send_spawn(Path(f"/proc/self/fd/{given}"))
    os.close(given)
    if is_covered:
        assert own_zygote.refused(environment.number).first == errno.ESTALE
    else:
        own_zygote.started(environment).init()
        assert environment.invoke().json == "hello"
