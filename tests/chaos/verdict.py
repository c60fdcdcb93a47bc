"""Verdict: whether a phase kept every promise, and the figures that say so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from tests.chaos.accepted import Accepted
from tests.chaos.accounts import Accounts
from tests.chaos.load import Answered
from tests.chaos.storm import Strike

# An answer leaves, and its Reading follows within a window of 10 ms; then it is on its way to the
# disk, which takes the rest on a machine that is busy.
UNBILLED_WINDOW_S = 0.010
ON_ITS_WAY_S = 0.250


@dataclass
class Verdict:
    """Lines to print, and what is broken."""

    lines: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def tell(self, what: str, figures: str, problems: Sequence[str] = ()) -> None:
        self.lines.append(f"{'✗' if problems else '✓'} {what:<12} {figures}")
        self.lines += [f"               {problem}" for problem in problems[:5]]
        self.broken += [f"{what}: {problem}" for problem in problems]


def on_ledger(verdict: Verdict, told: Mapping[str, Any]) -> None:
    """`told` by `trivet ledger check --json`."""
    for each in told["invariants"]:
        verdict.tell(each["name"], each["words"], [] if each["holds"] else each["problems"])


def on_events(
    verdict: Verdict, accepted: Sequence[Accepted], doubtful: set[int], accounts: Accounts
) -> None:
    """The client's own file against the entries of the ledger."""
    promised = {event.n for event in accepted}
    lost = [f"{n} is in no ledger" for n in promised if not accounts.ends[n]]
    lost += [f"{e.id} is in no ledger" for e in accepted if e.id and e.id not in accounts.ids]
    states = ", ".join(f"{n:,} {state}" for state, n in sorted(accounts.states.items()))
    verdict.tell("accepted", f"{len(promised):,} by the client's file; ended: {states}")
    verdict.tell("lost", f"{len(lost)}", lost)
    twice = [f"{n} ended {count} times" for n, count in accounts.ends.items() if count > 1]
    verdict.tell("ended twice", f"{len(twice)}", twice)
    unasked = [n for n in accounts.ends if n not in promised and n not in doubtful]
    words = [f"{n} was never asked for" for n in unasked]
    verdict.tell("unasked", f"{len(unasked)}, with {len(doubtful)} in doubt", words)
    more = [
        f"{n} ran {count} times, and {accounts.executions[n]} are known"
        for n, count in accounts.logged.items()
        if count > accounts.executions[n]
    ]
    lines = f"{accounts.logged.total():,} lines of log"
    known = f"{accounts.attempts:,} attempts and {accounts.aborted} aborted"
    verdict.tell("executions", f"{known}; {lines}", more)


def on_duplicates(verdict: Verdict, aborted: int, most: int) -> None:
    problems = [f"{aborted} are more than {most}"] if aborted > most else []
    verdict.tell("duplicates", f"{aborted} aborted deliveries at {most} strikes", problems)


def on_slots(verdict: Verdict, slots: Counter[str]) -> None:
    """A schedule of one second: each slot once, from the first one to the last."""
    twice = [f"{slot} fired {count} times" for slot, count in slots.items() if count > 1]
    times = sorted(datetime.fromisoformat(slot) for slot in slots)
    missed = [
        f"nothing fired between {before:%H:%M:%S} and {after:%H:%M:%S}"
        for before, after in pairwise(times)
        if after - before > timedelta(seconds=1)
    ]
    verdict.tell("schedule", f"{len(slots)} slots", [*twice, *missed])


def on_files(verdict: Verdict, dropped: Sequence[str], found: Counter[str]) -> None:
    problems = [f"{name} ran nothing" for name in dropped if not found[name]]
    problems += [f"{name} ran {count} times" for name, count in found.items() if count > 1]
    verdict.tell("files", f"{len(dropped)} dropped, {len(found)} seen", problems)


def on_calls(
    verdict: Verdict,
    answered: Sequence[Answered],
    *,
    wrong: Sequence[str],
    crashed: int,
    killed_environments: int,
    refusals: Counter[str],
    slowest_s: float,
) -> None:
    """Synchronous calls: right, or an error after which one may try again."""
    problems = list(wrong)
    if crashed > killed_environments:
        problems.append(f"{crashed} crashes were told, {killed_environments} environments killed")
    refused = ", ".join(f"{n} {name}" for name, n in sorted(refusals.items())) or "none"
    words = f"{len(answered):,} answered, {crashed} of them crashes; refused: {refused}"
    verdict.tell("sync calls", f"{words}; slowest {slowest_s:.1f} s", problems)


def on_express_bill(
    verdict: Verdict, answered: Sequence[Answered], metered: set[str], strikes: Sequence[Strike]
) -> None:
    """What was answered and not billed was answered within a window before a kill."""
    unbilled = [call for call in answered if call.request_id not in metered]
    kills = [s for s in strikes if s.fault.part == "supervisor" and s.fault.kind == "kill"]
    # What could not be flushed when a supervisor died was one longer batch.
    outages = [s for s in strikes if s.fault.part == "durable"] if kills else []
    excuses = [(k.at - UNBILLED_WINDOW_S - ON_ITS_WAY_S, k.until + ON_ITS_WAY_S) for k in kills]
    excuses += [(o.at, o.until + ON_ITS_WAY_S) for o in outages]
    problems = [
        f"{call.request_id} was answered far from any kill, and is not billed"
        for call in unbilled
        if not any(since <= call.at <= until for since, until in excuses)
    ]
    words = f"{len(unbilled)} of {len(answered):,} answered, at {len(kills)} kills of a supervisor"
    verdict.tell("unbilled", words, problems)


def on_deaths(verdict: Verdict, said: str, may_die: Sequence[str]) -> None:
    """`said` by the launcher. Nothing ends by itself; we kill with signal 9."""
    told = re.findall(r"^! (.+) (ended \(.+?\)|did not become ready)", said, re.MULTILINE)
    # Zygotes are ended, and end with status 0, when their supervisor was killed.
    own = [
        f"{part} {how}"
        for part, how in told
        if how not in ("ended (signal 9)", "ended (status 0)") and part not in may_die
    ]
    verdict.tell("deaths", f"{len(told)} starts after an end", own)


FEW = 20


def on_recovery(
    verdict: Verdict, recovered_s: Mapping[str, Sequence[float]], goals_s: Mapping[str, float]
) -> None:
    """p50 and p99 of each fault. `goals_s`: at p99; nothing is judged that has none.

    Of a few times p99 is the worst one, which tells of the machine: their median is judged.
    """
    for what, times in sorted(recovered_s.items()):
        ordered = sorted(times)
        p50, p99 = (
            ordered[len(ordered) // 2],
            ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        )
        goal = goals_s.get(what)
        name, judged = ("p99", p99) if len(ordered) >= FEW else ("p50", p50)
        problems = [f"{name} is above {goal:g} s"] if goal is not None and judged > goal else []
        words = f"{what}: p50 {p50:.2f} s, p99 {p99:.2f} s of {len(ordered)}"
        verdict.tell("recovery", words, problems)
