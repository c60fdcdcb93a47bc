"""Announcements: the banner, the state that other commands read, and the loud lines."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TextIO

from trivet.errors import TrivetError
from trivet.launcher.refusals import exit_code
from trivet.runtimes import Runtime

DEMO_PATH = "/welcome?name=Alice"

_GREEN, _RED, _BOLD, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[1m", "\x1b[0m"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformState:
    """What is known of a platform that is up: the state file, and the ready line."""

    pid: int
    started_at: str  # ISO 8601, UTC
    ready_ms: int  # from the launcher's start
    aws_url: str
    http_url: str
    ports: dict[str, int]  # "aws", "http"
    runtimes: Sequence[Runtime]
    isolation: str  # for people
    isolation_level: str  # "L0" to "L3"
    isolation_bits: int  # wire.ISOLATION_*
    valkey: str  # version of the embedded server; empty when both lanes are external
    lanes: dict[str, str]  # "express" and "durable" -> "embedded" or "external"

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def ready_json(state: PlatformState) -> str:
    """What whoever started us in the background is told: the state, and the banner to show."""
    return json.dumps({**asdict(state), "banner": banner(state)})


def banner(state: PlatformState, *, has_colour: bool = False) -> str:
    """What `trivet up` shows when ready."""
    tick = f"{_GREEN}✓{_PLAIN}" if has_colour else "✓"
    bold, plain = (_BOLD, _PLAIN) if has_colour else ("", "")
    servers = f"valkey {state.valkey} embedded" if state.valkey else "external servers"
    lanes = "   ".join(
        f"{lane} lane ({_LANE_MEANS[lane] if kind == 'embedded' else kind})"
        for lane, kind in state.lanes.items()
    )
    runtimes = "   ".join(f"{runtime.name} {runtime.version}" for runtime in state.runtimes)
    return (
        f"  {tick} {servers}   {lanes}\n"
        f"  {tick} runtimes   {runtimes}\n"
        f"  {tick} isolation  {state.isolation}\n"
        f"  ready in {state.ready_ms / 1000:.1f} s    AWS endpoint {bold}{state.aws_url}{plain}"
        f"    HTTP triggers {bold}{state.http_url}{plain}\n"
        f"  try:  curl '{state.http_url}{DEMO_PATH}'\n"
    )


_LANE_MEANS = {"express": "memory", "durable": "disk before 202"}


def refusal_json(error: TrivetError) -> str:
    return json.dumps({"error": error.message, "hint": error.hint, "exit_code": exit_code(error)})


def one_line(text: str) -> str:
    """`text` as it may be shown on a terminal: one line, nothing that steers it."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def has_colour(stream: TextIO) -> bool:
    return not os.environ.get("NO_COLOR") and stream.isatty()


def say(text: str, *, stream: TextIO | None = None) -> None:
    """Show `text`; a terminal that has gone away is no reason to fail."""
    stream = stream or sys.stderr
    with contextlib.suppress(OSError, ValueError):
        stream.write(text if text.endswith("\n") else f"{text}\n")
        stream.flush()


def say_loudly(text: str) -> None:
    """One line about something that went wrong and was mended, or needs an eye."""
    mark = f"{_RED}!{_PLAIN}" if has_colour(sys.stderr) else "!"
    say(f"{mark} {one_line(text)}")


def say_refusal(error: TrivetError) -> None:
    lines = error.members.get("lines")
    for line in lines if isinstance(lines, list) else ():
        say(f"  | {one_line(str(line))}")
    say(f"error: {one_line(error.message)}")
    if error.hint:
        say(f"hint: {one_line(error.hint)}")
