"""Counters: what this supervisor did, in plain numbers that it reports once a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import anyio
import hiredis
import msgpack
import structlog

from trivet.bus.reports import REPORT_EVERY_S, report
from trivet.bus.resp import RECONNECT_S, Address, connected
from trivet.core.measures import (
    Family,
    Histogram,
    Tally,
    counter,
    family_to_record,
    gauge,
)

log = structlog.get_logger()

EXPRESS, DURABLE = "express", "durable"


class Committing(Protocol):
    """The consuming half of a lane."""

    malformed: int

    @property
    def batches(self) -> int: ...


class Counters:
    """Called from the hot path: each method is a dictionary look-up and an addition."""

    def __init__(self) -> None:
        self._invocations = Tally(
            "trivet_invocations_total",
            "counter",
            "Attempts that ran, those that ended in an error included.",
            "lane",
            "function",
        )
        self._errors = Tally(
            "trivet_errors_total",
            "counter",
            "Attempts that ended in an error of the function, a timeout or a crash.",
            "lane",
            "function",
        )
        self._durations = Histogram(
            "trivet_duration_seconds", "How long attempts ran, without initialisation.", "lane"
        )
        self._starts = Histogram(
            "trivet_cold_start_seconds",
            "How long environments took to start, by phase: fork, and init of the handler.",
            "phase",
        )

    def attempt_ended(self, lane: str, function: str, run_ns: int, *, is_error: bool) -> None:
        self._invocations.add(1, lane, function)
        if is_error:
            self._errors.add(1, lane, function)
        self._durations.observe(run_ns / 1e9, lane)

    def environment_started(self, fork_ns: int, init_ns: int) -> None:
        """A cold start that ended well: until its process ran, and until its handler was there."""
        self._starts.observe(fork_ns / 1e9, "fork")
        self._starts.observe(init_ns / 1e9, "init")

    def families(self) -> list[Family]:
        kept = (self._invocations, self._errors, self._durations, self._starts)
        return [each.family() for each in kept]


def observed(
    environments: Mapping[str, int],
    *,
    committing: Mapping[str, Committing],
    dropped_log_bytes: int,
    isolation: int,
) -> list[Family]:
    """What is looked up when a report is due: `environments` by their state, the rest by lane."""
    batches = (((("lane", name),), lane.batches) for name, lane in committing.items())
    junk = (((("lane", name),), lane.malformed) for name, lane in committing.items())
    return [
        counter("trivet_commit_batches_total", "Writes that took events off a lane.", *batches),
        counter("trivet_malformed_total", "Entries that no publisher of ours wrote.", *junk),
        gauge(
            "trivet_environments",
            "Execution environments, by state.",
            *(((("state", state),), count) for state, count in environments.items()),
        ),
        counter(
            "trivet_log_dropped_bytes_total",
            "Log text that was not kept: beyond its rate, or on a full disk.",
            ((), dropped_log_bytes),
        ),
        gauge("trivet_isolation", "Bits of the isolation of all environments.", ((), isolation)),
    ]


async def keep_reporting(address: Address, node: str, families: Callable[[], list[Family]]) -> None:
    """Report what `families` gives once a second, for as long as the supervisor lives."""
    while True:
        try:
            async with connected(address) as connection:
                while True:
                    packed = msgpack.packb([family_to_record(each) for each in families()])
                    await report(connection, node, packed)
                    await anyio.sleep(REPORT_EVERY_S)
        except OSError:
            await anyio.sleep(RECONNECT_S)
        except hiredis.HiredisError as error:
            log.warning("report.refused", error=str(error))
            await anyio.sleep(REPORT_EVERY_S)
