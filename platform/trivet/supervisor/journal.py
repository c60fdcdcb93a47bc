"""Journal: what one environment writes, and what the platform writes about its invocations.

The handler's bytes come through a pipe that anyone inside may write to at any time, so they are
bounded in rate, cut into lines, and stored as the handler's: a line cannot pass for another.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import NamedTuple

from trivet.core.functions import FunctionVersion
from trivet.core.outcomes import Outcome
from trivet.store.logs import LogWriter

READ_BYTES = 65_536
# As long as the handler runs, so much at a time: between two of these the loop serves others. What
# is dropped costs little, so a flood is read in large pieces, and seldom.
TURN_BYTES = 4_096
# At an answer the pipe is emptied, so that END comes after the handler's lines. A thread that
# keeps writing must not keep us: a pipe holds 64 KB, so this is several times all that was there.
# To read what is dropped costs everybody; a full pipe costs only the one who floods it.
FLOODED_S = 0.02
# What a line costs beside its bytes: empty ones would otherwise be the dearest flood.
LINE_COST = 100
MOST_READS = 8
LINE_BYTES = 262_144  # AWS cuts a log event here
TAIL_BYTES = 4_096


class Ended(NamedTuple):
    """An invocation that has ended, as its REPORT tells."""

    outcome: Outcome
    run_ns: int
    billed_ms: int
    init_ns: int | None  # None: the environment was warm
    peak_mb: Callable[[], int]  # asked when the line is written


class Journal:
    """The log stream of one environment."""

    def __init__(
        self, writer: LogWriter, version: FunctionVersion, stream: str, pipe: int, rate: int
    ) -> None:
        self._writer = writer
        self._version = version
        self._stream = stream
        self._pipe = pipe
        self._bytes_per_s = rate
        self._allowance = float(rate)
        self._refilled_at = time.monotonic()
        self._partial = b""
        self._request_id = ""
        self._tail: bytearray | None = None
        self._owed: Ended | None = None  # END and REPORT are not written yet
        self._is_closed = False
        self.dropped_bytes = 0
        self._is_flooded = False  # some of what was read last was dropped
        self._reported_drops = 0

    # ------------------------------------------------------------------ the handler's lines

    def read(self) -> float | None:
        """Take what the pipe holds. Returns for how long, in s, it may be left alone.

        None at its end: everyone who could write is gone.
        """
        dropped_before = self.dropped_bytes
        try:
            data = os.read(self._pipe, READ_BYTES if self._is_flooded else TURN_BYTES)
        except BlockingIOError:
            return 0.0
        if not data:
            return None
        self._take(data)
        self._is_flooded = self.dropped_bytes > dropped_before
        return FLOODED_S if self._is_flooded else 0.0

    def _read_all(self) -> None:
        """Take what was written until now."""
        for _ in range(MOST_READS):
            try:
                data = os.read(self._pipe, READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        now = time.monotonic()
        gained = (now - self._refilled_at) * self._bytes_per_s
        self._allowance = min(self._allowance + gained, float(self._bytes_per_s))
        self._refilled_at = now
        cost = len(data) + LINE_COST * data.count(b"\n")
        if cost > self._allowance:
            # Cut at a line, so that what is kept is whole.
            share = max(0.0, self._allowance) / cost
            kept = data.rfind(b"\n", 0, int(len(data) * share)) + 1
            self.dropped_bytes += len(data) - kept
            data = data[:kept]
            cost = kept + LINE_COST * data.count(b"\n")
        self._allowance -= cost
        self._partial += data
        *lines, self._partial = self._partial.split(b"\n")
        if len(self._partial) > LINE_BYTES:
            lines.append(self._partial[:LINE_BYTES])
            self._partial = b""
        for line in lines:
            self._add("function", line[:LINE_BYTES].decode("utf-8", "replace"))

    def _flush_partial(self) -> None:
        if self._partial:
            line, self._partial = self._partial, b""
            self._add("function", line.decode("utf-8", "replace"))
        if self.dropped_bytes != self._reported_drops:
            dropped = self.dropped_bytes - self._reported_drops
            self._reported_drops = self.dropped_bytes
            self._writer.dropped_bytes += dropped
            self._add("platform", f"LOGS_DROPPED RequestId: {self._request_id}\tBytes: {dropped}")

    def _add(self, kind: str, text: str) -> None:
        at_ms = int(time.time() * 1000)
        request_id = self._request_id
        self._writer.add(self._version.function, at_ms, self._stream, kind, request_id, text)
        tail = self._tail
        if tail is not None:
            tail += text.encode("utf-8", "replace") + b"\n"
            if len(tail) > 64 * TAIL_BYTES:
                del tail[:-TAIL_BYTES]

    # ------------------------------------------------------------------ the platform's lines

    def begin(self, request_id: str, *, keep_tail: bool) -> None:
        self._settle()
        if self._partial:
            self._flush_partial()
        self._request_id = request_id
        self._tail = bytearray() if keep_tail else None
        self._add("platform", f"START RequestId: {request_id} Version: {self._version.version}")

    def end(self, ended: Ended) -> bytes:
        """END and REPORT. Returns the last 4 KB of this invocation's log, if they were kept.

        Where they were not, nobody waits for these lines: they are written once what this turn of
        the loop answers has left.
        """
        self._owed = ended
        if self._tail is None and not self._is_closed:
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._settle)  # answers leave with the next turn
            return b""
        self._settle()
        tail, self._tail = self._tail, None
        return bytes(tail[-TAIL_BYTES:]) if tail is not None else b""

    def _settle(self) -> None:
        ended, self._owed = self._owed, None
        if ended is not None:
            self._write_end(ended)

    def _write_end(self, ended: Ended) -> None:
        self._read_all()
        self._flush_partial()
        outcome, request_id = ended.outcome, self._request_id
        if outcome.log_line:
            self._add("platform", outcome.log_line)
        self._add("platform", f"END RequestId: {request_id}")
        parts = [
            f"REPORT RequestId: {request_id}\tDuration: {ended.run_ns / 1e6:.2f} ms\t"
            f"Billed Duration: {ended.billed_ms} ms\tMemory Size: {self._version.memory_mb} MB\t"
            f"Max Memory Used: {ended.peak_mb()} MB\t"
        ]
        if ended.init_ns is not None:
            parts.append(f"Init Duration: {ended.init_ns / 1e6:.2f} ms\t")
        if outcome.status:
            parts.append(f"Status: {outcome.status}")
            if outcome.error_type:
                parts.append(f"\tError Type: {outcome.error_type}")
        self._add("platform", "".join(parts))

    def init_report(self, status: str, init_ns: int) -> None:
        """The line for an initialisation that did not end well."""
        self._read_all()
        self._flush_partial()
        text = f"INIT_REPORT Init Duration: {init_ns / 1e6:.2f} ms\tPhase: init\tStatus: {status}"
        self._add("platform", text)

    def close(self) -> None:
        """Keep what is left in the pipe; its owner closes it."""
        self._settle()
        self._is_closed = True
        self._read_all()
        self._flush_partial()
