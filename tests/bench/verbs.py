"""Benchmarks, as ratios of things measured side by side.

A machine's speed drifts from minute to minute, so no number here stands alone: each is measured
next to its yardstick, in turns, and what counts is the median of the paired ratios.

  sync     hello-world behind an HTTP trigger; beside it the limit prototype, if given
  publish  asynchronous invocations, 202 once on disk; beside it plain XADD on a server of the
           same make that flushes as often
  cold     cold starts by phase, from no environment at all; beside it the interpreter started
           plainly, and a fork that answers
  memory   what an idle warm environment occupies; beside it the interpreter started plainly
  invoke   the Invoke API; beside it another Lambda endpoint, if given
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

from tests.bench import cold, invoke, memory, publish, sync
from tests.bench.figures import Figure, Options, shown

VERBS: dict[str, Callable[[Options], list[Figure]]] = {
    "sync": sync.measured,
    "publish": publish.measured,
    "cold": cold.measured,
    "memory": memory.measured,
    "invoke": invoke.measured,
}
ALL = "all"
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
        environments=given.environments,
        limit=given.limit,
        peer=given.peer,
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
        help="what to measure (default: all, in about three minutes)",
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
        type=_positive,
        default=50,
        help="idle environments of each runtime for memory (default: 50)",
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
        help="another Lambda endpoint: invoke's yardstick (default: $PEER_URL);"
        " it gets a function called bench-hello",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
