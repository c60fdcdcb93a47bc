"""Freeze: what pausing an environment costs, and ending one, beside doing so to a plain process.

As the supervisor does it: through a cgroup where there can be any, else by signal. freeze_us is
the order, frozen_us until it is carried out, thaw_us the order to go on; both_us the two orders.
call_us is an event to a running environment, frozen_call_us one to a frozen one, thawing included.
kill_ms is from the command until it is reaped, frozen_kill_ms the same of a frozen one.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from tests.bench.endpoints import EVENT, HELLO, PYTHON
from tests.bench.figures import Figure, Measurement, Options, compared
from tests.bench.isolation import dismissed, ready, zygote
from tests.workers import driver
from tests.workers.driver import Environment, Zygote

from trivet.launcher.hierarchies import survey
from trivet.supervisor.cgroups import Cgroup, CgroupTree
from trivet_worker import wire

SAMPLES_PER_ROUND = 20
_PLAIN = [sys.executable, "-c", "import sys; print(1, flush=True); sys.stdin.read()"]


class Frost(Protocol):
    """What can pause, and let go on."""

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...

    @property
    def is_complete(self) -> bool:
        """Whether what was frozen runs no more. Freezing asks for it and does not wait."""
        ...


class _Signals:
    """Frost by signal. Implements `Frost`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def freeze(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    @property
    def is_complete(self) -> bool:
        stat = Path(f"/proc/{self._pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"


class _Cgroup:
    """Frost by cgroup. Implements `Frost`."""

    def __init__(self, cgroup: Cgroup, folder: Path) -> None:
        self.freeze = cgroup.freeze
        self.thaw = cgroup.thaw
        self._folder = folder

    @property
    def is_complete(self) -> bool:
        state = self._folder / "freezer.state"
        if state.exists():
            return state.read_text() == "FROZEN\n"
        return "frozen 1" in (self._folder / "cgroup.events").read_text()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where environments come from and what pauses them."""

    zygote: Zygote
    code: Path
    bases: dict[str, str]  # of cgroups, by controller; none where we may not make any
    version: int

    @contextmanager
    def environment(self) -> Iterator[tuple[Environment, Frost]]:
        """A warm one. It must have ended when this does."""
        environment = ready(self.zygote, self.code)
        if not self.bases:
            yield environment, _Signals(environment.pid)
            return
        cgroup = CgroupTree(self.version, self.bases).make(str(environment.pid))
        for base in set(self.bases.values()):
            Path(base, cgroup.name, "cgroup.procs").write_text(str(environment.pid))
        yield environment, _Cgroup(cgroup, Path(self.bases["freezer"], cgroup.name))
        while not cgroup.remove():
            time.sleep(0.001)


def measured(options: Options) -> list[Figure]:
    with ExitStack() as stack:
        code = driver.write_code({"hello.py": HELLO[PYTHON][1]})
        stack.callback(driver.remove_code, code)
        running = stack.enter_context(zygote())
        bases, version = stack.enter_context(_bases())
        place = _Place(running, code, bases, version)
        how = "by cgroup" if bases else "by signal"
        pauses: dict[str, Callable[[], Measurement]] = {
            "trivet": partial(_pauses, place),
            "plain process": _plain_pauses,
        }
        kills: dict[str, Callable[[], Measurement]] = {
            "trivet": partial(_kills, place),
            "plain process": _plain_kills,
        }
        return [
            compared("freeze", how, pauses, of="both_us", rounds=options.rounds),
            compared("freeze", f"{how}, the end", kills, of="kill_ms", rounds=options.rounds),
        ]


@contextmanager
def _bases() -> Iterator[tuple[dict[str, str], int]]:
    """Folders of our own for cgroups by controller, and their version."""
    found = survey()
    if os.geteuid() != 0 or found.reason:
        yield {}, 0
        return
    bases = {name: f"{top}/trivet-bench-{os.getpid()}" for name, top in found.tops.items()}
    for base in set(bases.values()):
        Path(base).mkdir()
    try:
        yield bases, found.version
    finally:
        for base in set(bases.values()):
            Path(base).rmdir()


def _pauses(place: _Place) -> Measurement:
    with place.environment() as (environment, frost):

        def frozen_call() -> None:
            frost.thaw()
            _call(environment)

        found: list[dict[str, float]] = []
        for _ in range(SAMPLES_PER_ROUND):
            sample = {**_paused(frost), "call_us": _timed_us(partial(_call, environment))}
            _freeze(frost)
            found.append({**sample, "frozen_call_us": _timed_us(frozen_call)})
        dismissed(environment)
    return _medians(found)


def _plain_pauses() -> Measurement:
    with _plain_process() as process:
        frost = _Signals(process.pid)
        found = [_paused(frost) for _ in range(SAMPLES_PER_ROUND)]
        process.kill()
        return _medians(found)


def _paused(frost: Frost) -> dict[str, float]:
    freeze_us, frozen_us = _timed_us(frost.freeze), _timed_us(partial(_await, frost))
    thaw_us = _timed_us(frost.thaw)
    return {
        "freeze_us": freeze_us,
        "frozen_us": freeze_us + frozen_us,
        "thaw_us": thaw_us,
        "both_us": freeze_us + thaw_us,
    }


def _freeze(frost: Frost) -> None:
    frost.freeze()
    _await(frost)


def _await(frost: Frost) -> None:
    while not frost.is_complete:
        pass  # it takes microseconds


def _kills(place: _Place) -> Measurement:
    return _medians(
        [
            {"kill_ms": _kill_ms(place), "frozen_kill_ms": _kill_ms(place, is_frozen=True)}
            for _ in range(SAMPLES_PER_ROUND)
        ]
    )


def _kill_ms(place: _Place, *, is_frozen: bool = False) -> float:
    with place.environment() as (environment, frost):
        _call(environment)
        if is_frozen:
            _freeze(frost)
        began = time.perf_counter()
        environment.zygote.command(wire.KILL, environment.number)
        if is_frozen:
            frost.thaw()  # in cgroups of version 1 the frozen die when they are thawed
        environment.exit_status()
        took_ms = (time.perf_counter() - began) * 1000
        dismissed(environment, is_over=True)
        return took_ms


def _plain_kills() -> Measurement:
    found: list[dict[str, float]] = []
    for _ in range(SAMPLES_PER_ROUND):
        with _plain_process() as process:
            began = time.perf_counter()
            process.kill()
            process.wait()
            found.append({"kill_ms": (time.perf_counter() - began) * 1000})
    return _medians(found)


@contextmanager
def _plain_process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(_PLAIN, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process


def _call(environment: Environment) -> None:
    assert environment.invoke_raw(EVENT.encode()).kind == wire.RESULT


def _timed_us(act: Callable[[], None]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1e6


def _medians(found: list[dict[str, float]]) -> Measurement:
    return {key: statistics.median(each[key] for each in found) for key in found[0]}
