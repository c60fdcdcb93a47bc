"""Crash points: every step of the durable lane fails once in every way, and the books are right.

    python -m tests.chaos.crash_points [--seed N] [--only STEP] [--sample N]

A first run shows which steps there are. Each of them is then armed with each mode in a run of its
own: real processes, which are started again when they die, over a real server.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
from redis import Redis
from tests.chaos import crash_checks
from tests.chaos.crash_processes import PUBLISHER, SUPERVISOR, Plan
from tests.chaos.crash_scenario import EVENTS, JUNK, records
from tests.chaos.servers import Exited, Server, running

from trivet.bus import keys
from trivet.bus.failpoints import LOOKS, MODES, OF_CONNECTIONS, Point

DEATH = "commit=kill-before@6"  # of a supervisor with work in hand
QUIET_WITHIN_S = 20.0
LOOK_EVERY_S = 0.01
MOST_TRIES = 5
SWALLOWED = ("xreadgroup.durable", "duplicate")
DELAY_S = 0.15  # longer than a sweep and all waits for another attempt


@dataclass(frozen=True, slots=True)
class Case:
    """What goes wrong in a run: nothing, if it has no step."""

    who: str = ""
    step: str = ""
    mode: str = ""
    hit: int = 1
    before: str = ""  # what fails first, because only those that clear up after it take the step

    def __str__(self) -> str:
        return f"{self.who} {self.step}={self.mode}@{self.hit}{' later' if self.before else ''}"

    @property
    def failpoints(self) -> str:
        if not self.step:
            return self.before
        wait = f":{DELAY_S}" if self.mode == "delay" else ""
        return f"{self.before} {self.step}={self.mode}{wait}@{self.hit}"

    @property
    def marker(self) -> str:
        return Point(self.step, self.mode, hit=self.hit).marker

    @property
    def most_kills(self) -> int:
        return bool(self.before) + self.mode.startswith("kill")


@dataclass(slots=True)
class Result:
    """How it went."""

    case: Case
    seconds: float = 0.0
    has_struck: bool = False
    kills: Counter[str] = field(default_factory=Counter)
    executions: int = 0
    steps: dict[str, Counter[str]] = field(default_factory=dict)  # by process
    violations: list[str] = field(default_factory=list)


class Forks:
    """Starts processes from one that has imported everything."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.crash_processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __repr__(self) -> str:
        return f"<Forks {self._server.pid}>"

    def start(self, plan: Plan) -> Exited:
        assert self._server.stdin is not None  # both are pipes
        assert self._server.stdout is not None
        self._server.stdin.write(plan.to_json() + "\n")
        self._server.stdin.flush()
        return Exited(int(self._server.stdout.readline()))

    def close(self) -> None:
        self._server.communicate()


class Run:
    """One run of the scenario."""

    def __init__(self, server: Server, forks: Forks, case: Case, commit: str) -> None:
        self._commit = commit
        self._server = server
        self._forks = forks
        self._folder = Path(tempfile.mkdtemp(prefix="crash-"))
        self._processes: dict[str, Exited] = {}
        self._lives: Counter[str] = Counter()
        self._result = Result(case)

    def __repr__(self) -> str:
        return f"<Run {self._result.case}>"

    def go(self) -> Result:
        began = time.monotonic()
        redis = self._server.client()
        try:
            self._prepare(redis)
            for who in (SUPERVISOR, PUBLISHER):
                self._start(who)
            is_quiet = self._see_through(redis, began + QUIET_WITHIN_S)
            self._stop()
            self._judge(redis, is_quiet)
        finally:
            self._stop()
            redis.close()
            if not self._result.violations:
                shutil.rmtree(self._folder)
        self._result.seconds = time.monotonic() - began
        return self._result

    def _prepare(self, redis: Redis) -> None:
        redis.flushall()
        for name in ("accepted", "started", "metered"):
            (self._folder / name).touch()
        together = redis.pipeline(transaction=False)
        for key, record in records().items():
            together.set(key, record)
        for junk in JUNK:
            together.xadd(keys.durable_stream("steady"), {"e": junk})
        together.sadd(keys.LEDGERS, "steady")
        together.sadd(keys.BACKLOG, "steady")
        together.execute()

    def _start(self, who: str) -> None:
        case = self._result.case
        self._lives[who] += 1
        self._processes[who] = self._forks.start(
            Plan(
                who=who,
                socket=self._server.socket,
                folder=str(self._folder),
                epoch=str(self._lives[who]),
                failpoints=case.failpoints if case.who == who else "",
                commit=self._commit,
            )
        )

    def _see_through(self, redis: Redis, deadline: float) -> bool:
        """Start again what dies, until all is accepted and has ended."""
        while time.monotonic() < deadline:
            living = {exited.descriptor: who for who, exited in self._processes.items()}
            for descriptor in select.select([*living], [], [], LOOK_EVERY_S)[0]:
                who = living[descriptor]
                os.close(descriptor)
                del self._processes[who]
                if who == SUPERVISOR or not self._is_all_accepted():
                    self._result.kills[who] += 1
                    self._start(who)
            if PUBLISHER not in self._processes and self._awaits_successor():
                self._kill(SUPERVISOR)
            elif PUBLISHER not in self._processes and crash_checks.is_quiet(redis):
                return True
        return False

    def _awaits_successor(self) -> bool:
        """The answer to a read was swallowed, which no connection does: what it held is pending
        for this epoch until the next one begins."""
        return (
            self._is_swallowed
            and self._has_struck()
            and self._result.kills.total() < 1 + bool(self._result.case.before)
        )

    @property
    def _is_swallowed(self) -> bool:
        return (self._result.case.step, self._result.case.mode) == SWALLOWED

    def _has_struck(self) -> bool:
        return (self._folder / self._result.case.marker).exists()

    def _kill(self, who: str) -> None:
        signal.pidfd_send_signal(self._processes[who].descriptor, signal.SIGKILL)
        self._processes[who].within(5)

    def _is_all_accepted(self) -> bool:
        numbers = {each.number for each in crash_checks.accepted(self._folder)}
        return len(numbers) == len(EVENTS)

    def _stop(self) -> None:
        for who in [*self._processes]:
            self._kill(who)
            os.close(self._processes.pop(who).descriptor)

    def _judge(self, redis: Redis, is_quiet: bool) -> None:
        result, folder = self._result, self._folder
        result.executions = crash_checks.started(folder).total()
        for who in (PUBLISHER, SUPERVISOR):
            result.steps[who] = Counter((folder / f"steps.{who}").read_text().splitlines())
        result.has_struck = self._has_struck()
        if not is_quiet:
            result.violations.append(f"not quiet after {QUIET_WITHIN_S} s, see {folder}")
        kills = result.kills[SUPERVISOR]
        result.violations.extend(crash_checks.violations(redis, folder, kills))
        result.violations.extend(anyio.run(crash_checks.audited, self._server.socket, folder))
        most = result.case.most_kills + self._is_swallowed
        if result.kills.total() > most:
            result.violations.append(f"processes died that were not killed: see {folder}/output")


class Crashes:
    """Runs of the scenario, one after the other."""

    def __init__(self, server: Server, forks: Forks) -> None:
        self._server = server
        self._forks = forks

    def __repr__(self) -> str:
        return f"<Crashes over {self._server}>"

    def run(self, case: Case, *, commit: str = "") -> Result:
        """`commit`: the text of another `commit.lua`."""
        return Run(self._server, self._forks, case, commit).go()

    def cases(self, choice: random.Random) -> tuple[Result, list[Case]]:
        """A run without a fault, and every step that it took, with every mode; then those that
        only a successor takes."""
        calm, deadly = self.run(Case()), self.run(Case(SUPERVISOR, before=DEATH))
        calm.violations.extend(deadly.violations)
        cases = []
        for who, steps in sorted(deadly.steps.items()):
            for step, passes in sorted((steps | calm.steps[who]).items()):
                before = "" if step in calm.steps[who] else DEATH
                for mode in MODES if is_faulted(step) else ():
                    hit = choice.randint(1, max(1, passes // 2))
                    cases.append(Case(who, step, mode, 1 if before else hit, before))
        return calm, cases

    def strike(self, case: Case) -> Result:
        """Run `case`; where a run does not come that often to its step, at the first time. Some
        steps are taken in most runs only."""
        result = self.run(case)
        for _ in range(MOST_TRIES):
            if result.has_struck or result.violations:
                break
            result = self.run(replace(case, hit=1))
        if not result.has_struck:
            result.violations.append("the step was not taken")
        return result


def is_faulted(step: str) -> bool:
    """Commands that greet a server or look at it leave nothing behind that a crash could halve."""
    return step.partition(".")[0] not in LOOKS | OF_CONNECTIONS


@contextmanager
def crashes() -> Iterator[Crashes]:
    with running() as server:
        forks = Forks()
        try:
            yield Crashes(server, forks)
        finally:
            forks.close()


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="which pass through a step is struck")
    parser.add_argument("--only", default="", help="steps that contain this")
    parser.add_argument("--sample", type=int, default=0, help="so many cases, by chance")
    options = parser.parse_args(None if arguments is None else list(arguments))
    choice = random.Random(options.seed)
    began = time.monotonic()
    with crashes() as machine:
        calm, cases = machine.cases(choice)
        print(
            f"calm: {calm.seconds:.2f} s, {calm.executions} executions",
            *calm.violations,
            sep="\n  ",
        )
        cases = [case for case in cases if options.only in f"{case.who} {case.step} {case.mode}"]
        if options.sample:
            cases = choice.sample(cases, min(options.sample, len(cases)))
        results = []
        for case in cases:
            results.append(result := machine.strike(case))
            print(
                f"{'ok  ' if not result.violations else 'FAIL'} {case!s:58} "
                f"{result.seconds:5.2f} s  {result.executions:3} executions  "
                f"{result.kills.total()} killed",
                *result.violations,
                sep="\n       ",
                flush=True,
            )
    failed = [result for result in results if result.violations]
    steps = {(result.case.who, result.case.step) for result in results}
    print(
        f"{len(steps)} steps, {len(MODES)} modes: {len(results) - len(failed)} of {len(results)} "
        f"runs hold, {sum(r.kills.total() for r in results)} kills, "
        f"{sum(r.executions for r in results)} executions, {time.monotonic() - began:.0f} s"
    )
    return 1 if failed or calm.violations else 0


if __name__ == "__main__":
    sys.exit(main())
