"""Benchmarks, as ratios of things measured side by side.

A machine's speed drifts from minute to minute, so no number here stands alone: each is measured
next to its yardstick, in turns, and what counts is the median of the paired ratios.

  sync     hello-world behind an HTTP trigger; beside it the limit prototype, if given
  publish  asynchronous invocations, 202 once on disk; beside it plain XADD on a server of the
           same make that flushes as often
  invoke   the Invoke API; beside it another Lambda endpoint, if given
  cold     cold starts by phase: a miss, a spare hit, a Node cell; beside it the interpreter started
           plainly, a fork that answers, and another Lambda endpoint, if given
  burst    from no environment to --environments at once; beside it a process that forks as many
  isolation  an environment from its zygote, with all layers and without each; beside it a fork
  freeze   freezing and thawing, killing and reaping; beside it a plain process and signals
  idle     what a warm environment that waits occupies; beside it the interpreter started plainly
  neighbours  a function at a steady rate beside one that misbehaves; beside it the same alone
  drain    asynchronous events that wait already; beside it the limit's equal form, ArdiQ, taskiq
           and Celery on the same server
  started  from publishing an event to the start of its handler; beside it the same queues, and
           plain XADD at the same time
  recovery  each part killed under a light load, three times a round: the wait for the next answer
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tests.bench import (
    burst,
    cold,
    drain,
    freeze,
    idle,
    invoke,
    isolation,
    neighbours,
    publish,
    recovery,
    started,
    sync,
)
from tests.bench.figures import Figure, Options, shown
from tests.bench.queues.servers import ALWAYS, POLICIES

VERBS: dict[str, Callable[[Options], list[Figure]]] = {
    "sync": sync.measured,
    "publish": publish.measured,
    "invoke": invoke.measured,
    "cold": cold.measured,
    "burst": burst.measured,
    "isolation": isolation.measured,
    "freeze": freeze.measured,
    "idle": idle.measured,
    "neighbours": neighbours.measured,
    "drain": drain.measured,
    "started": started.measured,
    "recovery": recovery.measured,
}
ALL = "all"
MANY = 100  # environments
AT_WORK = (1, 2)
NEED_WRK = {"sync", "publish", "invoke"}


def main() -> None:
    parser = _parser()
    given = parser.parse_args()
    chosen = list(VERBS) if given.bench == ALL else [given.bench]
    if NEED_WRK.intersection(chosen) and shutil.which("wrk") is None:
        parser.exit(69, "bench: wrk is not installed\nhint: apt-get install wrk\n")
    options = Options(
        rounds=given.rounds,
        seconds=given.seconds,
        environments=(given.environments or (MANY,))[0],
        limit=given.limit,
        peer=given.peer,
        counts=given.environments or AT_WORK,
        events=given.events,
        rate=given.rate,
        flushes=given.fsync,
        installs=given.install,
    )
    figures: list[Figure] = []
    for name in chosen:
        found = VERBS[name](options)
        figures += found
        if not given.json:
            print(shown(found), flush=True)
    if given.json:
        print(json.dumps({"load": os.getloadavg(), "figures": [asdict(f) for f in figures]}))
    elif (busy := os.getloadavg()[0]) > (cores := os.cpu_count() or 1) + 2:
        print(f"load average {busy:.1f} on {cores} cores: trust the ratios only", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "bench",
        nargs="?",
        choices=(*VERBS, ALL),
        default=ALL,
        help="what to measure (default: all, in about six minutes)",
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=3,
        help="turns of everything measured side by side; cold takes twice as many (default: 3)",
    )
    parser.add_argument(
        "--seconds", type=_positive, default=2, help="length of one run under load (default: 2)"
    )
    parser.add_argument(
        "--environments",
        type=_positives,
        help=f"Python environments of idle (of Node a tenth) and of burst (default: {MANY});"
        " of drain, a case for each of several numbers (default: 1,2)",
    )
    parser.add_argument(
        "--events", type=_positive, default=20_000, help="of drain (default: 20000)"
    )
    parser.add_argument(
        "--rate", type=_positive, default=500, help="events a second of started (default: 500)"
    )
    parser.add_argument(
        "--fsync",
        choices=POLICIES,
        default=ALWAYS,
        help="when the server of drain and started flushes (default: always)",
    )
    parser.add_argument(
        "--install",
        action="store_true",
        help="install the queues that stand beside drain and started, outside of this tree,"
        " where they are missing",
    )
    parser.add_argument(
        "--limit",
        type=Path,
        metavar="PATH",
        default=os.environ.get("TRIVET_BENCH_LIMIT"),
        help="proto.py of the limit prototype: sync's yardstick (default: $TRIVET_BENCH_LIMIT)",
    )
    parser.add_argument(
        "--peer",
        metavar="URL",
        default=os.environ.get("PEER_URL", ""),
        help="another Lambda endpoint: a yardstick of invoke and cold (default: $PEER_URL);"
        " it gets functions called bench-*",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def _positives(text: str) -> tuple[int, ...]:
    return tuple(map(_positive, text.split(",")))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
