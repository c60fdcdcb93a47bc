"""Audit: whether everything that is kept of asynchronous events adds up.

Pure. An Audit is fed with all that is kept of one function and finds of each invariant whether it
holds; `report` adds the findings of all functions up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from trivet.core.billing import Reading, Usage
from trivet.core.ledger import DELAYED, Counts, Record, Standing, illegal, undeclared
from trivet.core.retries import AttemptStatus, Progress

_STATUSES = frozenset(get_args(AttemptStatus))

# -------------------------------------------------------------------------- findings

INVARIANTS = ("I1", "I2", "I3", "I4", "I5", "I6", "I7")

_FIGURES = {
    "I1": "{accepted:,} accepted; {ended:,} ended, {in_flight:,} in flight; "
    "of the ended {kept:,} kept, {forgotten:,} forgotten",
    "I2": "{ended:,} ends read, {twice:,} of them second ones; {back:,} in flight had ended",
    "I3": "{billed:,} requests billed; {attempts:,} attempts ran, {aborted:,} were aborted",
    "I4": "{billed_mb_ms:,} MB ms billed, {mb_ms:,} MB ms ran; {readings:,} Readings, "
    "{unread:,} attempts without one",
    "I5": "{owed:,} to be told; {delivered:,} delivered, {undelivered:,} undeliverable, "
    "{outbox:,} in the outbox",
    "I6": "{executions:,} executions of {events:,} events; {retries:,} retries, "
    "{aborted:,} aborted",
    "I7": "{accepted:,} seen accepted by the client; {missing:,} missing, {untold:,} forgotten",
}

_ADVICE = {
    "I1": "an accepted event is in no place, or in two: copy the data folder before all else, "
    "then look for it in the quarantine of its function and in its logs",
    "I2": "an event ended twice, or in a way that cannot be: look at it with `events ID`, and at "
    "who was told of it",
    "I3": "the counter of billed requests is not the attempts': do not bill by it before it is "
    "found out which attempts it counts",
    "I4": "bill by the Readings that are kept (`bill --check` shows which functions differ)",
    "I5": "a destination was not told, or nobody knows: see `events --state destination`, and "
    "send what is missing again with `replay`",
    "I6": "something ran more often than its retries and the aborted deliveries explain: see "
    "`events`, which shows attempts, for the function named",
    "I7": "what the client was promised is gone: copy the data folder before all else, then send "
    "it again from the client",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One invariant: its figures, and in words what breaks it."""

    invariant: str
    figures: Mapping[str, int]
    problems: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.problems

    @property
    def words(self) -> str:
        return _FIGURES[self.invariant].format_map(self.figures)

    @property
    def advice(self) -> str:
        """What to do; nothing while it holds."""
        return "" if self.holds else _ADVICE[self.invariant]


# -------------------------------------------------------------------------- one function

_Key = tuple[str, int, int, int]  # request id, when the attempt ended, memory, billed time

# Readings are forgotten by the server's clock, and attempts are dated by the supervisor's.
_CLOCKS_DIFFER_MS = 60_000


@dataclass(slots=True)
class _Sum:
    """Of attempts."""

    attempts: int = 0
    mb_ms: int = 0
    aborted: int = 0
    retries: int = 0
    events: int = 0  # that ran at all

    def add(self, progress: Progress) -> None:
        count = len(progress.attempts)
        self.attempts += count
        self.mb_ms += sum(a.memory_mb * a.billed_ms for a in progress.attempts)
        self.aborted += progress.aborted
        if count:
            self.events += 1
            self.retries += count - 1


class Audit:
    """The check of one function, while it may be at work.

    Events only move from stream and parking place to the ledger, so what is fed in this order is
    missed by none: `outgoing` of the outbox; `ended` of the ledger; `in_flight` of what is parked,
    on the stream, and parked once more; `ended` of what the ledger got since; `events_read`; then
    `metered` of the Readings, and `findings`. The figures are bounded by the Counts before and
    after all of it, which are the same when nothing moved: then everything is exact.
    """

    def __init__(self, function: str, before: Counts, unseen: set[str]) -> None:
        """`unseen`: request ids that a client saw accepted; those met here are taken out of it."""
        self._function = function
        self._before = before
        self._unseen = unseen
        self._problems: dict[str, list[str]] = {name: [] for name in INVARIANTS}
        self._outgoing: list[str] = []  # origins
        self._ended: set[str] = set()
        self._twice = self._back = self._unreadable = 0
        self._parked: set[str] = set()
        self._on_stream: set[str] = set()  # those that were parked before
        self._doubled = 0
        self._moving: dict[str, Record] = {}  # in flight, with something behind them
        self._sum = _Sum()
        self._unmetered: Counter[_Key] = Counter()
        self._ids: set[str] = set()
        self._folds: dict[str, Usage] = {}
        self._readings = self._surplus = 0

    # ---------------------------------------------------------------------- feeding

    def outgoing(self, origin: str) -> None:
        """An entry of the outbox."""
        self._outgoing.append(origin)

    def ended(self, record: Record) -> None:
        """An entry of the ledger."""
        origin = record.progress.origin
        self._unseen.discard(record.request_id)
        self._moving.pop(origin, None)
        if origin in self._ended:
            self._twice += 1
            self._problem("I2", f"{record.request_id} ended twice")
        self._ended.add(origin)
        if words := illegal(record):
            self._problem("I2", f"{record.request_id} {words}")
        self._count(record)

    def in_flight(self, record: Record) -> None:
        """A parked event, or one on the stream. It may be met several times."""
        origin, progress = record.progress.origin, record.progress
        self._unseen.discard(record.request_id)
        if origin in self._ended:
            self._back += 1
            self._problem("I2", f"{record.request_id} is {record.standing}, and has ended")
            return
        if record.standing == DELAYED:
            self._parked.add(origin)
        elif progress.attempts or progress.aborted or progress.backoffs:
            self._doubled += origin in self._on_stream
            self._on_stream.add(origin)
        else:
            return  # nothing is behind it
        known = self._moving.get(origin)
        if known is None or _age(known.progress) <= _age(progress):
            self._moving[origin] = replace(record, packed=b"")

    def unreadable(self, standing: Standing | None = None) -> None:
        """An entry that nobody of ours wrote: in flight, or (None) of the ledger."""
        if standing is None:
            self._problem("I2", "an entry of the ledger cannot be read")
        else:
            self._unreadable += 1

    def events_read(self) -> None:
        for record in self._moving.values():
            self._count(record)

    def metered(self, readings: Iterable[Reading]) -> None:
        """Readings of the function, of both lanes."""
        for reading in readings:
            self._readings += 1
            usage = Usage(1, reading.memory_mb * reading.billed_ms)
            self._folds[reading.month] = self._folds.get(reading.month, Usage()) + usage
            key = (reading.request_id, reading.ended_ms, reading.memory_mb, reading.billed_ms)
            left = self._unmetered.get(key, 0)
            if left > 1:
                self._unmetered[key] = left - 1
            elif left:
                del self._unmetered[key]
            elif reading.request_id in self._ids:
                self._surplus += 1

    def _count(self, record: Record) -> None:
        progress = record.progress
        self._sum.add(progress)
        if words := undeclared(progress):
            self._problem("I6", f"{record.request_id} {words}")
        if progress.attempts:
            self._ids.add(record.request_id)
        for a in progress.attempts:
            if a.status not in _STATUSES:
                self._problem("I3", f"{record.request_id} has an attempt that ended {a.status!r}")
            self._unmetered[record.request_id, a.ended_ms, a.memory_mb, a.billed_ms] += 1

    def _problem(self, invariant: str, words: str) -> None:
        self._problems[invariant].append(f"{self._function}: {words}")

    # ---------------------------------------------------------------------- finding

    def findings(
        self,
        after: Counts,
        bills: Mapping[str, tuple[Usage, Usage]],
        readings_since_ms: int | None = None,
    ) -> list[Finding]:
        """I1 to I6. `bills`: what each month's bill said before and after.

        `readings_since_ms`: older Readings were forgotten (None: none were).
        """
        is_still = after == self._before
        return [
            self._accounted(after, is_still=is_still),
            Finding(
                "I2",
                {"ended": len(self._ended) + self._twice, "twice": self._twice, "back": self._back},
                tuple(self._problems["I2"]),
            ),
            self._requests(after),
            self._amounts(after, bills, readings_since_ms, is_still=is_still),
            self._told(after),
            self._executions(after),
        ]

    def _accounted(self, after: Counts, *, is_still: bool) -> Finding:
        accepted, ended, forgotten = after.total("accepted"), after.ended, after.total("forgotten")
        if lost := accepted - ended - after.in_flight:
            words = f"{lost} are nowhere" if lost > 0 else f"{-lost} more than were accepted"
            self._problem("I1", f"of {accepted} accepted events {words}")
        if ended != after.kept + forgotten:
            words = f"{after.kept} are kept and {forgotten} forgotten"
            self._problem("I1", f"{ended} events ended, of which {words}")
        if after.parked != after.delayed:
            words = f"{after.parked} are parked, and {after.delayed} have a time when they are due"
            self._problem("I1", words)
        if self._unreadable and is_still:
            self._problem("I1", f"{self._unreadable} in flight cannot be read")
        doubled = self._doubled + len(self._parked & self._on_stream)
        if doubled and is_still:
            self._problem("I1", f"{doubled} are in flight twice")
        figures = {
            "accepted": accepted,
            "ended": ended,
            "in_flight": after.in_flight,
            "kept": after.kept,
            "forgotten": forgotten,
        }
        return Finding("I1", figures, tuple(self._problems["I1"]))

    def _requests(self, after: Counts) -> Finding:
        billed, ran = after.total("requests"), self._sum.attempts
        if words := self._apart("requests", ran, after):
            self._problem("I3", f"{words} requests are billed, and {ran} attempts ran")
        figures = {"billed": billed, "attempts": ran, "aborted": self._sum.aborted}
        return Finding("I3", figures, tuple(self._problems["I3"]))

    def _amounts(
        self,
        after: Counts,
        bills: Mapping[str, tuple[Usage, Usage]],
        readings_since_ms: int | None,
        *,
        is_still: bool,
    ) -> Finding:
        if words := self._apart("mb_ms", self._sum.mb_ms, after):
            self._problem("I4", f"{words} MB ms are billed, and {self._sum.mb_ms} MB ms ran")
        since_ms = None if readings_since_ms is None else readings_since_ms + _CLOCKS_DIFFER_MS
        unread = [key for key in self._unmetered if since_ms is None or key[1] >= since_ms]
        if unread:
            words = f"{len(unread)} attempts have no Reading that says the same"
            self._problem("I4", f"{words}, one of {unread[0][0]}")
        if self._surplus and is_still:
            self._problem("I4", f"{self._surplus} Readings are of no attempt of their event")
        for month, (least, most) in bills.items():
            fold = self._folds.get(month, Usage())
            is_covered = _is_within(fold, least, most)
            if since_ms is not None:  # some of what it was the sum of is gone
                is_covered = _is_within(fold, Usage(), most)
            if not is_covered:
                kept = f"{fold.requests} requests and {fold.mb_ms} MB ms"
                billed = f"{most.requests} and {most.mb_ms}"
                self._problem("I4", f"the Readings of {month} make {kept}, its bill {billed}")
        figures = {
            "billed_mb_ms": after.total("mb_ms"),
            "mb_ms": self._sum.mb_ms,
            "readings": self._readings,
            "unread": len(unread),
        }
        return Finding("I4", figures, tuple(self._problems["I4"]))

    def _told(self, after: Counts) -> Finding:
        owed, delivered = after.total("outbox"), after.total("delivered")
        undelivered = after.total("undelivered")
        if owed != delivered + undelivered + after.outbox:
            words = f"{delivered} were delivered, {undelivered} cannot be, {after.outbox} wait"
            self._problem("I5", f"of {owed} to be told {words}")
        failed, succeeded = after.total("destination"), after.total("success")
        if not failed <= owed <= failed + succeeded:
            words = f"{failed} ended with a destination, and {owed} were to be told"
            self._problem("I5", f"{words}, with {succeeded} successes")
        strangers = len({*self._outgoing} - self._ended)
        if strangers and not after.total("forgotten"):
            self._problem("I5", f"{strangers} in the outbox are of no event that ended")
        if doubled := len(self._outgoing) - len({*self._outgoing}):
            self._problem("I5", f"{doubled} are in the outbox twice")
        figures = {
            "owed": owed,
            "delivered": delivered,
            "undelivered": undelivered,
            "outbox": after.outbox,
        }
        return Finding("I5", figures, tuple(self._problems["I5"]))

    def _executions(self, after: Counts) -> Finding:
        aborted = self._sum.aborted
        if words := self._apart("aborted", aborted, after):
            self._problem("I6", f"{words} aborted deliveries are counted; events had {aborted}")
        figures = {
            "executions": self._sum.attempts + aborted,
            "events": self._sum.events,
            "retries": self._sum.retries,
            "aborted": after.total("aborted"),
        }
        return Finding("I6", figures, tuple(self._problems["I6"]))

    def _apart(self, name: str, seen: int, after: Counts) -> str:
        """What the counter of this name said, if that cannot be what was seen."""
        least = self._before.total(name) - after.total(f"forgotten_{name}")
        most = after.total(name) - self._before.total(f"forgotten_{name}")
        if least <= seen <= most:
            return ""
        return str(most) if self._before.total(name) == most else f"{least} to {most}"


def _age(progress: Progress) -> tuple[int, int, int]:
    return len(progress.attempts), progress.aborted, progress.backoffs


def _is_within(usage: Usage, least: Usage, most: Usage) -> bool:
    return (
        least.requests <= usage.requests <= most.requests
        and least.mb_ms <= usage.mb_ms <= most.mb_ms
    )


# -------------------------------------------------------------------------- all functions


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What is asked beyond the invariants themselves."""

    is_quiesced: bool = False  # nothing may be in flight, nor wait to be told to a destination
    most_aborted: int | None = None  # deliveries, each of which may have run twice


def in_all(passes: Sequence[Sequence[Finding]]) -> list[Finding]:
    """The findings of the last of several passes over one function that was at work: only what
    failed in every one of them has failed."""
    found = []
    for place, last in enumerate(passes[-1]):
        fails = all(not findings[place].holds for findings in passes)
        found.append(last if fails else replace(last, problems=()))
    return found


def report(
    functions: Sequence[Sequence[Finding]],
    demands: Demands,
    accepted: int | None = None,
    unseen: Iterable[str] = (),
) -> list[Finding]:
    """One Finding for each invariant, over all functions.

    `accepted`: how many events a client saw accepted, if it told; `unseen`: those of them that are
    nowhere.
    """
    figures = {name: dict.fromkeys(_names(name), 0) for name in INVARIANTS}
    problems: dict[str, list[str]] = {name: [] for name in INVARIANTS}
    for findings in functions:
        for finding in findings:
            for name, value in finding.figures.items():
                figures[finding.invariant][name] += value
            problems[finding.invariant] += finding.problems
    in_flight = figures["I1"]["in_flight"]
    if demands.is_quiesced and in_flight:
        problems["I1"].append(f"{in_flight} events are still in flight")
    outbox = figures["I5"]["outbox"]
    if demands.is_quiesced and outbox:
        problems["I5"].append(f"{outbox} are still to be told")
    aborted = figures["I6"]["aborted"]
    if demands.most_aborted is not None and aborted > demands.most_aborted:
        words = f"{aborted} deliveries were aborted"
        problems["I6"].append(f"{words}, which is more than {demands.most_aborted}")
    if accepted is not None:
        missing = sorted(unseen)
        untold = min(len(missing), figures["I1"]["forgotten"])
        figures["I7"].update(accepted=accepted, missing=len(missing) - untold, untold=untold)
        if len(missing) > untold:
            words = f"{len(missing)} are in no ledger, on no stream and not parked"
            problems["I7"].append(f"{words}, {missing[0]} among them")
    names = INVARIANTS if accepted is not None else INVARIANTS[:-1]
    return [Finding(name, figures[name], tuple(problems[name])) for name in names]


def _names(invariant: str) -> Sequence[str]:
    return [part.partition(":")[0] for part in _FIGURES[invariant].split("{")[1:]]
