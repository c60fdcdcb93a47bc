"""Where no namespace can be had, a zygote says so and does what is left to do."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.workers import driver
from tests.workers.conftest import Code, needs_root
from tests.workers.driver import Environment, Zygote
from tests.workers.test_zygote import DAEMONS, log_ends, log_until

from trivet_worker import wire

pytestmark = needs_root  # to become somebody who can do less


@pytest.fixture(params=["python", "node"])
def bare(request: pytest.FixtureRequest) -> Iterator[Zygote]:
    zygote = driver.start_zygote(kind=request.param, without_namespaces=True)
    yield zygote
    zygote.close()


@pytest.fixture
def bare_python() -> Iterator[Zygote]:
    zygote = driver.start_zygote(without_namespaces=True)
    yield zygote
    zygote.close()


def _start(zygote: Zygote, folder: Path) -> Environment:
    environment = zygote.spawn(folder)
    assert environment.init(task_root=str(folder)).kind == wire.INITIALISED
    return environment


def test_functions_run_from_where_their_code_is(
    bare: Zygote, files: Callable[[dict[str, str]], Path]
) -> None:
    assert bare.bits == wire.ISOLATION_SECCOMP | wire.ISOLATION_LANDLOCK
    folder = files(
        {
            "index.py": "import os\ndef handler(event, context): return os.getcwd()",
            "index.mjs": "export const handler = async () => process.cwd();",
        }
    )
    environment = bare.spawn(None if bare.kind == "node" else folder)
    if bare.kind == "node":
        bare.fill(environment, folder)
    assert environment.init(task_root=str(folder)).kind == wire.INITIALISED
    assert environment.invoke().json == str(folder)
    assert environment.kill() == -signal.SIGKILL


def test_it_has_a_session_and_descriptors_of_its_own(bare_python: Zygote, code: Code) -> None:
    environment = _start(
        bare_python,
        code(
            "import os\n"
            "def handler(event, context):\n"
            "    return os.getpid(), os.getsid(0), os.listdir('/proc/self/fd'), os.getuid()\n"
        ),
    )
    pid, session, descriptors, uid = environment.invoke().json
    assert pid == session == environment.pid
    assert descriptors == ["0", "1", "2", "3", "4"]
    assert uid == driver.NOBODY


@pytest.mark.parametrize("ending", ["kill", "exit", "zygote"])
def test_daemons_end_with_their_environment(bare_python: Zygote, code: Code, ending: str) -> None:
    source = DAEMONS.replace("return 'daemonised'", "os._exit(3)") if ending == "exit" else DAEMONS
    neighbour = _start(bare_python, code(DAEMONS))
    neighbour.invoke()
    log_until(neighbour, "daemon\n", 50)
    environment = _start(bare_python, code(source))
    environment.send(wire.EVENT, driver.event_body(b"{}"))
    if ending == "exit":
        assert environment.exit_status() == 3
    else:
        environment.receive()
        log_until(environment, "daemon\n", 50)
        if ending == "kill":
            assert environment.kill() == -signal.SIGKILL
        else:
            bare_python.process.terminate()
    assert log_ends(environment)
    if ending != "zygote":
        assert neighbour.invoke().json == "daemonised"
        assert os.path.exists(f"/proc/{neighbour.pid}")
