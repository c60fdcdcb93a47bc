"""Isolation: an environment from its zygote, from the command to its first answer, beside a fork.

The zygote is alone here, without supervisor and gateway: what is measured is the walls, with all
layers and with each one left out. started_ms: until the environment is walled in. The plain fork
is of a process of the same size.
"""

from __future__ import annotations

import inspect
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.endpoints import EVENT, HELLO, PYTHON
from tests.bench.figures import Figure, Measurement, Options, compared
from tests.bench.forks import Forks, forking
from tests.workers import driver
from tests.workers.driver import Zygote

from trivet_worker import wire

SAMPLES_PER_ROUND = 10
LAYERS = {
    name.removeprefix("ISOLATION_").lower(): bit
    for name, bit in vars(wire).items()
    if name.startswith("ISOLATION_")
}


def measured(options: Options) -> list[Figure]:
    with ExitStack() as stack:
        code = driver.write_code({"hello.py": HELLO[PYTHON][1]})
        stack.callback(driver.remove_code, code)
        full = stack.enter_context(zygote())
        subjects: dict[str, Callable[[], Measurement]] = {
            "all layers": partial(_starts, full, code)
        }
        if can_leave_out():
            for name, bit in LAYERS.items():
                if full.bits & bit:
                    less = stack.enter_context(zygote(without=bit))
                    subjects[f"without {name}"] = partial(_starts, less, code)
            bare = stack.enter_context(zygote(without=full.bits))
            subjects["no layers"] = partial(_starts, bare, code)
        subjects["plain fork"] = partial(_forks, stack.enter_context(forking()))
        case = f"{PYTHON}, layers {full.bits}"
        return [compared("isolation", case, subjects, of="total_ms", rounds=options.rounds)]


def can_leave_out() -> bool:
    return "without" in inspect.signature(driver.start_zygote).parameters


@contextmanager
def zygote(*, without: int = 0) -> Iterator[Zygote]:
    options: dict[str, Any] = {"without": without} if without else {}
    running = driver.start_zygote(**options)
    try:
        yield running
    finally:
        running.close()


def ready(running: Zygote, code: Path) -> driver.Environment:
    """A new environment, initialised."""
    environment = _spawned(running, code)
    _initialise(environment, code)
    return environment


def dismissed(environment: driver.Environment, *, is_over: bool = False) -> None:
    """Let go of it; kill it unless it has been reaped already."""
    if not is_over:
        environment.kill()
    environment.close()
    environment.zygote.environments.remove(environment)


def _spawned(running: Zygote, code: Path) -> driver.Environment:
    # A zygote that gives no uids is told none.
    has_uids = bool(running.bits & wire.ISOLATION_UID)
    environment = running.send_spawn(code, uid=None if has_uids else 0)
    started = running.expect(wire.STARTED, environment.number)
    environment.pid = started.first
    environment.pidfd, *doors = started.descriptors
    for door in doors:
        os.close(door)
    return environment


def _initialise(environment: driver.Environment, code: Path) -> None:
    has_mounts = environment.zygote.bits & wire.ISOLATION_MOUNT
    root = "/var/task" if has_mounts else str(code)
    answer = environment.init("hello.handler", task_root=root)
    assert answer.kind == wire.INITIALISED, answer.body


def _starts(running: Zygote, code: Path) -> Measurement:
    taken = [_start(running, code) for _ in range(SAMPLES_PER_ROUND)]
    return {key: statistics.median(each[key] for each in taken) for key in taken[0]}


def _start(running: Zygote, code: Path) -> Measurement:
    marks = [time.perf_counter()]
    environment = _spawned(running, code)
    marks.append(time.perf_counter())
    _initialise(environment, code)
    marks.append(time.perf_counter())
    answer = environment.invoke_raw(EVENT.encode())
    marks.append(time.perf_counter())
    assert answer.kind == wire.RESULT, answer.body
    dismissed(environment)
    started_ms, init_ms, answer_ms = (
        (after - before) * 1000 for before, after in itertools.pairwise(marks)
    )
    total_ms = started_ms + init_ms + answer_ms
    return {
        "started_ms": started_ms,
        "init_ms": init_ms,
        "answer_ms": answer_ms,
        "total_ms": total_ms,
    }


def _forks(forks: Forks) -> Measurement:
    took_ms = [forks.fork_ms() for _ in range(SAMPLES_PER_ROUND)]
    return {"total_ms": statistics.median(took_ms)}
