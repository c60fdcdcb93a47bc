"""A zygote's life: what it starts, ends, survives and takes with it."""

from __future__ import annotations

import errno
import os
import random
import select
import signal
import socket
import subprocess

import pytest
from tests.workers import driver
from tests.workers.conftest import Code, Run, needs_root
from tests.workers.driver import DEADLINE_S, Zygote, has_ended

from trivet_worker import wire
from trivet_worker.heritage import Options

_HELLO = "def handler(event, context): return 'hello'"

_LOOP = """
import os
def handler(event, context):
    print('looping')
    while True:
        pass
"""

# Each daemon holds the write end of a pipe until it is gone.
DAEMONS = """
import os, signal, time
def handler(event, context):
    for _ in range(50):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)
                os.write(1, b'daemon\\n')
                while True:
                    time.sleep(1)
            os._exit(0)
        os.wait()
    return 'daemonised'
"""


def log_until(environment: driver.Environment, text: str, count: int = 1) -> None:
    seen = ""
    while seen.count(text) < count:
        assert select.select([environment.log_fd], [], [], DEADLINE_S)[0], seen
        seen += os.read(environment.log_fd, 65_536).decode()


def log_ends(environment: driver.Environment) -> bool:
    """Whether every process that could write to the log is gone."""
    while select.select([environment.log_fd], [], [], DEADLINE_S)[0]:
        if not os.read(environment.log_fd, 65_536):
            return True
    return False


def test_an_endless_loop_is_killed(run: Run) -> None:
    environment = run(_LOOP)
    environment.send(wire.EVENT, driver.event_body(b"{}"))
    log_until(environment, "looping")
    assert environment.kill() == -signal.SIGKILL
    assert has_ended(environment.pidfd)


def test_a_kill_takes_fifty_daemons_along(run: Run) -> None:
    environment = run(DAEMONS)
    assert environment.invoke().json == "daemonised"
    log_until(environment, "daemon\n", 50)
    assert environment.kill() == -signal.SIGKILL
    assert log_ends(environment)


def test_daemons_end_with_an_environment_that_exits(run: Run) -> None:
    environment = run(
        f"{DAEMONS}\nstart = handler\ndef handler(e, c):\n    start(e, c)\n    os._exit(3)"
    )
    environment.send(wire.EVENT, driver.event_body(b"{}"))
    assert environment.exit_status() == 3
    assert log_ends(environment)


def test_many_environments_start_at_once(zygote: Zygote, code: Code) -> None:
    folder = code(_HELLO)
    environments = [zygote.send_spawn(folder) for _ in range(16)]
    for environment in environments:
        zygote.started(environment)
    assert len({environment.pidfd for environment in environments}) == 16
    for environment in environments:
        environment.init()
        assert environment.invoke().json == "hello"
    for environment in environments:
        assert environment.kill() == -signal.SIGKILL


def test_environments_outlive_a_killed_zygote_and_can_be_adopted(
    own_zygote: Zygote, code: Code
) -> None:
    environment = own_zygote.spawn(code(_HELLO))
    environment.init()
    own_zygote.process.kill()
    own_zygote.process.wait(DEADLINE_S)
    assert environment.invoke().json == "hello"
    successor = driver.start_zygote(as_user=os.geteuid() == 0 and next(own_zygote.uids) == 0)
    successor.adopt(environment)
    successor.command(wire.KILL, environment.number)
    assert has_ended(environment.pidfd)
    successor.close()


def test_an_adopted_environment_ends_with_its_new_zygote(own_zygote: Zygote, code: Code) -> None:
    environment = own_zygote.spawn(code(_LOOP))
    environment.init()
    environment.send(wire.EVENT, driver.event_body(b"{}"))
    own_zygote.process.kill()
    own_zygote.process.wait(DEADLINE_S)
    successor = driver.start_zygote(as_user=os.geteuid() == 0 and next(own_zygote.uids) == 0)
    successor.adopt(environment)
    successor.close()
    assert has_ended(environment.pidfd)


@needs_root
def test_a_process_of_somebody_else_is_not_adopted(code: Code) -> None:
    zygote = driver.start_zygote()
    with subprocess.Popen(["sleep", "60"], user=1_000, group=1_000, extra_groups=[]) as stranger:
        pidfd = os.pidfd_open(stranger.pid)
        zygote.command(wire.ADOPT, 1_000, 1_000, (pidfd,))
        zygote.command(wire.KILL, 1_000)
        zygote.spawn(code(_HELLO)).init()  # by now it has read both
        zygote.close()
        assert not has_ended(pidfd, within_s=0)
        os.close(pidfd)
        stranger.kill()


@pytest.mark.parametrize("ending", ["commands", "parent", "sigterm", "template"])
def test_everything_ends_with_the_zygote(own_zygote: Zygote, code: Code, ending: str) -> None:
    folder = code(DAEMONS + _LOOP.replace("handler", "loop"))
    environments = [own_zygote.spawn(folder) for _ in range(3)]
    environments[0].init("index.loop")
    environments[0].send(wire.EVENT, driver.event_body(b"{}"))
    environments[1].init()
    environments[1].invoke()
    if ending == "sigterm":
        own_zygote.process.terminate()
    elif ending == "template":
        os.kill(own_zygote.template, signal.SIGKILL)
    else:
        getattr(own_zygote, ending).close()
    assert own_zygote.process.wait(DEADLINE_S) == 0
    for environment in environments:
        assert has_ended(environment.pidfd, within_s=0)
        assert log_ends(environment)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_template_ends_with_its_zygote(own_zygote: Zygote, code: Code, is_stopped: bool) -> None:
    own_zygote.spawn(code(_HELLO))
    template = os.pidfd_open(own_zygote.template)
    if is_stopped:
        os.kill(own_zygote.template, signal.SIGSTOP)
    own_zygote.process.kill()
    assert has_ended(template)
    os.close(template)


def test_a_zygote_obeys_while_its_template_does_not(own_zygote: Zygote, code: Code) -> None:
    running = own_zygote.spawn(code(_LOOP))
    running.init()
    running.send(wire.EVENT, driver.event_body(b"{}"))
    numbers = range(1_000, 1_400)  # more than the socket between them holds
    os.kill(own_zygote.template, signal.SIGSTOP)
    with open(os.devnull) as null:
        for number in numbers:
            beside = (null.fileno(),) * 2
            own_zygote.command(wire.SPAWN, number, next(own_zygote.uids), beside, wire.AS_CUSTOM)
    for number in numbers:
        own_zygote.command(wire.KILL, number)
    assert running.kill() == -signal.SIGKILL
    os.kill(own_zygote.template, signal.SIGCONT)
    refused = [own_zygote.receive() for _ in numbers]
    assert {message.number for message in refused} == set(numbers)
    assert {(message.kind, message.first) for message in refused} == {
        (wire.REFUSED, errno.ECANCELED)
    }
    driver.until(lambda: not own_zygote.children())


def test_garbage_is_ignored(zygote: Zygote, code: Code) -> None:
    dice = random.Random(20)
    null = os.open(os.devnull, os.O_RDWR)
    for _ in range(2_000):
        message = dice.randbytes(dice.choice([0, 1, 3, 19, 21, 60, wire.COMMAND.size]))
        if len(message) == wire.COMMAND.size and dice.random() < 0.7:
            kind = dice.choice([wire.FILL, wire.KILL, wire.ADOPT, wire.SPAWN, wire.READY, 200])
            message = bytes([kind]) + message[1:]
        # Never the three of a SPAWN here: those are answered, see below.
        descriptors = [null] * dice.choice([0, 1, 2, 5])
        socket.send_fds(zygote.commands, [message], descriptors)
    os.close(null)
    environment = zygote.spawn(code(_HELLO))
    environment.init()
    assert environment.invoke().json == "hello"
    assert environment.kill() == -signal.SIGKILL
    # Nothing was kept: its own descriptors and those of the interpreter.
    assert len(os.listdir(f"/proc/{zygote.process.pid}/fd")) < 24


def test_a_spawn_without_a_folder_is_refused(zygote: Zygote) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(5_000, 5_010):
        zygote.command(wire.SPAWN, number, next(zygote.uids), (null, null, null), wire.WITH_CODE)
        message = zygote.refused(number)
        assert message.first > 0
    os.close(null)


def test_a_supervisor_that_does_not_read_holds_nothing_up(zygote: Zygote, code: Code) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    environment = zygote.spawn(code(_LOOP))
    environment.init()
    environment.send(wire.EVENT, driver.event_body(b"{}"))
    count = 3_000  # more answers than the socket holds
    for number in range(6_000, 6_000 + count):
        zygote.command(wire.SPAWN, number, -1, (null, null, null), wire.WITH_CODE)
    zygote.command(wire.KILL, environment.number)
    os.close(null)
    assert has_ended(environment.pidfd)
    refused = [zygote.refused(number) for number in range(6_000, 6_000 + count)]
    assert {message.first for message in refused} == {errno.EPERM}
    assert environment.exit_status() == -signal.SIGKILL


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--kind", "python"],
        ["--commands", "0", "--parent", "0", "--kind", "perl"],
        ["--commands", "0", "--parent", "0", "--kind", "node"],
        ["--commands", "zero", "--parent", "0", "--kind", "python"],
        ["--commands", "0", "--parent", "0", "--kind", "python", "--more"],
    ],
)
def test_a_wrong_command_line_is_one_clear_line(options: list[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        Options.parse(options)
    assert str(refusal.value).startswith("zygote: ")
    assert "\n" not in str(refusal.value)
