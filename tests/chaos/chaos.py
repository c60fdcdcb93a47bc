"""Chaos: a platform under load is struck, again and again, and must keep every promise.

The same seed gives the same faults in the same order. The figures of the invariants are printed
last; the exit code is 1 if one of them does not hold.
"""

from __future__ import annotations

import argparse
import sys
import time

import anyio
from tests.chaos import phases
from tests.chaos.phase import Size
from tests.chaos.verdict import Verdict

# A second of the machine, before anything is started: with more of it used by others, times to
# recover say nothing.
MOST_USED_BY_OTHERS = 0.2

SHORT = {"killed": Size(events=9_000, per_s=75, kills=10)}
SHORT["cut off"] = Size(events=750, per_s=40, kills=5)
SHORT["full disk"] = Size(events=250, per_s=20, kills=4)
FULL = {"killed": Size(events=90_000, per_s=150, kills=50)}
FULL["cut off"] = Size(events=8_000, per_s=75, kills=20)
FULL["full disk"] = Size(events=2_000, per_s=40, kills=10)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="./run chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--short", action="store_true", help="10,000 events and ten kills of each part"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the order of faults (default: 1)")
    parser.add_argument("--phase", choices=tuple(FULL), help="only this one")
    given = parser.parse_args()
    sizes = SHORT if given.short else FULL
    chosen = [given.phase] if given.phase else list(sizes)
    used = _used_by_others()
    found = {}
    for name in chosen:
        begun = time.monotonic()
        found[name] = anyio.run(_run, name, given.seed, sizes[name], used < MOST_USED_BY_OTHERS)
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    if used >= MOST_USED_BY_OTHERS:
        print(f"others used {used:.0%} of the machine: times to recover are not judged")
    for name, verdict in found.items():
        print(f"{name}, seed {given.seed}")
        print("\n".join(f"  {line}" for line in verdict.lines))
    broken = [f"{name}: {words}" for name, verdict in found.items() for words in verdict.broken]
    print(f"{len(broken)} broken" if broken else "every invariant holds")
    raise SystemExit(1 if broken else 0)


async def _run(name: str, seed: int, size: Size, is_quiet: bool) -> Verdict:
    if name == "killed":
        return await phases.killed(seed, size, is_quiet=is_quiet)
    if name == "cut off":
        return await phases.cut_off(seed, size)
    return await phases.full_disk(seed, size)


def _used_by_others() -> float:
    """The share of the machine that is busy, as yet without us."""

    def times() -> tuple[int, int]:
        with open("/proc/stat") as stat:
            fields = [int(word) for word in stat.readline().split()[1:]]
        return sum(fields), fields[3] + fields[4]

    total, idle = times()
    time.sleep(1)
    total_after, idle_after = times()
    return 1 - (idle_after - idle) / max(1, total_after - total)
