"""How an environment is kept apart, seen from inside and from outside."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from tests.workers import driver
from tests.workers.conftest import Code, Run, needs_root
from tests.workers.driver import PYTHON_IN_TMP, Zygote

from trivet_worker import wire

_LOOK = """
import ctypes, os, resource, signal

def status():
    return dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines()
                if ":\\t" in line)

def attempt(action, *arguments):
    try:
        return action(*arguments) and None
    except OSError as error:
        return error.errno

def handler(event, context):
    return eval(event)
"""


def test_the_level_is_told(zygote: Zygote) -> None:
    apart = wire.ISOLATION_PID | wire.ISOLATION_MOUNT | wire.ISOLATION_NETWORK
    apart |= wire.ISOLATION_SECCOMP | wire.ISOLATION_LANDLOCK
    is_root = next(zygote.uids) != 0
    own = wire.ISOLATION_UID if is_root else wire.ISOLATION_USER
    assert zygote.bits == apart | own


def test_an_environment_is_process_one_of_its_own_world(run: Run) -> None:
    environment = run(_LOOK)
    assert environment.invoke("[os.getpid(), os.getsid(0), os.getpgrp()]").json == [1, 1, 1]
    assert environment.invoke("sorted(p for p in os.listdir('/proc') if p.isdigit())").json == ["1"]
    assert os.getpgid(environment.pid) == environment.pid


def test_it_has_no_power(run: Run) -> None:
    environment = run(_LOOK)
    status = environment.invoke("status()").json
    for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[field], 16) == 0, field
    assert status["NoNewPrivs"] == "1"
    assert int(status["SigBlk"], 16) == 0
    assert int(status["SigIgn"], 16) == 1 << (signal.SIGPIPE - 1)
    assert int(status["SigCgt"], 16) == 1 << (signal.SIGINT - 1)
    assert status["Umask"] == "0022"
    # In a user namespace, root does not even exist.
    assert environment.invoke("attempt(os.setuid, 0)").json in (errno.EPERM, errno.EINVAL)
    assert environment.invoke("resource.getrlimit(resource.RLIMIT_NOFILE)").json == [1024, 1024]
    assert environment.invoke("resource.getrlimit(resource.RLIMIT_CORE)").json == [0, 0]


@needs_root
def test_every_environment_of_root_has_a_uid_of_its_own(code: Code) -> None:
    zygote = driver.start_zygote()
    folder = code(_LOOK)
    seen = []
    for _ in range(2):
        environment = zygote.spawn(folder)
        environment.init()
        ids = environment.invoke("[*os.getresuid(), *os.getresgid(), *os.getgroups()]").json
        seen.append(set(ids))
    assert seen == [{driver.FIRST_UID}, {driver.FIRST_UID + 1}]
    zygote.close()


_PAST_ALL = driver.FIRST_UID + wire.MOST_UIDS


@needs_root
@pytest.mark.parametrize("uid", [0, -1, -(2**31), 1_000, driver.FIRST_UID - 1, _PAST_ALL])
def test_nothing_runs_as_root_or_as_a_user_of_this_machine(
    zygote: Zygote, code: Code, uid: int
) -> None:
    if next(zygote.uids) == 0:
        pytest.skip("this zygote has no root to lend")
    environment = zygote.send_spawn(code(_LOOK), uid=uid)
    message = zygote.receive()
    assert (message.kind, message.number) == (wire.REFUSED, environment.number)
    assert message.first == errno.EPERM


@needs_root
def test_root_gives_away_no_file(code: Code, tmp_path: Path) -> None:
    """The log pipe becomes the environment's own; whatever comes in its place does not."""
    before = os.stat(os.devnull).st_uid
    zygote = driver.start_zygote()  # its trials log to /dev/null
    precious = tmp_path / "precious"
    precious.touch()
    channel, theirs = socket.socketpair()
    given = [os.open(precious, os.O_RDONLY), os.open(code(_LOOK), os.O_PATH | os.O_DIRECTORY)]
    beside = (theirs.fileno(), *given)
    zygote.command(wire.SPAWN, 1_000, driver.FIRST_UID, beside, wire.WITH_CODE)
    started = zygote.expect(wire.STARTED, 1_000)
    assert precious.stat().st_uid == os.stat(os.devnull).st_uid == before == 0
    zygote.close()
    for each in (*given, *started.descriptors):
        os.close(each)
    channel.close()
    theirs.close()


def test_it_has_four_descriptors(run: Run) -> None:
    environment = run(_LOOK)
    # The fifth is the listing's own.
    seen = "{n: os.readlink(f'/proc/self/fd/{n}').split(':')[0] for n in range(4)}"
    assert environment.invoke("os.listdir('/proc/self/fd')").json == ["0", "1", "2", "3", "4"]
    assert environment.invoke(seen).json == {
        "0": "/dev/null",
        "1": "pipe",
        "2": "pipe",
        "3": "socket",
    }


def test_the_code_cannot_be_written(zygote: Zygote, code: Code) -> None:
    folder = code(_LOOK)
    folder.chmod(0o777)
    (folder / "index.py").chmod(0o666)
    environment = zygote.spawn(folder)
    environment.init()
    assert environment.invoke("[os.getcwd(), os.listdir()]").json == ["/var/task", ["index.py"]]
    for path in ("/var/task/new", "/var/task/index.py", "/var/new", "/dev/new", "/new"):
        assert environment.invoke(f"attempt(open, {path!r}, 'a')").json == errno.EROFS, path


def test_tmp_is_private_and_stays_between_invocations(run: Run) -> None:
    first, second = run(_LOOK), run(_LOOK)
    assert first.invoke("[os.listdir('/tmp'), oct(os.stat('/tmp').st_mode)]").json == [
        PYTHON_IN_TMP,
        "0o41777",
    ]
    first.invoke("open('/tmp/note', 'w').write('mine')")
    assert first.invoke("open('/tmp/note').read()").json == "mine"
    assert second.invoke("os.listdir('/tmp')").json == PYTHON_IN_TMP
    assert not Path("/tmp/note").exists()
    size = "os.statvfs('/tmp').f_blocks * os.statvfs('/tmp').f_frsize"
    assert first.invoke(size).json == 512 * 1024 * 1024


def test_what_others_keep_on_this_machine_is_not_there(run: Run) -> None:
    environment = run(_LOOK)
    assert set(environment.invoke("os.listdir('/var')").json) <= {
        *("empty", "lib", "runtime", "task", "tmp")
    }
    system = {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "opt", "proc", "sbin", "tmp"}
    # And the way to an interpreter, which names no more than it must.
    places = (sys.prefix, sys.base_prefix, os.path.realpath(sys.prefix), str(driver.WORKERS))
    ways = {place.split("/")[1] for place in places}
    found = set(environment.invoke("os.listdir('/')").json)
    assert found <= system | {"usr", "var"} | ways
    for folder in (ways & found) - system - {"usr", "var"}:
        assert len(environment.invoke(f"os.listdir('/{folder}')").json) <= 2, folder
    assert environment.invoke("os.listdir('/opt')").json == []
    assert "shadow" not in environment.invoke("os.listdir('/etc')").json


def test_the_zygote_cannot_be_seen_from_a_stack_frame(run: Run) -> None:
    environment = run(
        "import sys\n"
        "def handler(event, context):\n"
        "    frame, names = sys._getframe(), []\n"
        "    while frame:\n"
        "        names += [type(value).__name__ for value in frame.f_locals.values()]\n"
        "        frame = frame.f_back\n"
        "    return names\n"
    )
    assert not {"Zygote", "Isolation", "socket"} & set(environment.invoke().json)


def test_no_limit_of_another_process_is_set(run: Run) -> None:
    environment = run(_LOOK)
    wish = "resource.prlimit({}, resource.RLIMIT_NOFILE, (512, 1024))"
    assert environment.invoke(wish.format(0)).json == [1024, 1024]
    assert environment.invoke(f"attempt(lambda: {wish.format(1)})").json == errno.EPERM


def test_a_signal_cannot_reach_another_environment(run: Run) -> None:
    first, second = run(_LOOK), run(_LOOK)
    first.invoke("attempt(os.kill, -1, 9)")
    assert first.invoke(f"attempt(os.kill, {second.pid}, 9)").json == errno.ESRCH
    assert second.invoke("1").json == 1
