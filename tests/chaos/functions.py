"""Functions: what runs on the platform that is harmed, and how it is asked to behave."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.conftest import ROLE, Running, zipped

WORK = "work"  # asynchronous events of every kind, without a destination
TOLD = "told"  # the same with destinations
SINK = "sink"  # is those destinations
ECHO = "echo"  # answers synchronous calls
TICK = "tick"  # runs each second
DROP = "drop"  # runs for files
COLD = "cold"  # is changed before each call, to start an environment
NAMES = (WORK, TOLD, SINK, ECHO, TICK, DROP, COLD)

# One line of log for each time that it is run, with what the event calls itself.
SOURCE = """
import os, time

def handler(event, context):
    print("ran", event.get("n", ""), flush=True)
    kind = event.get("kind")
    if kind == "poison":
        os._exit(1)
    if kind == "slow":
        time.sleep(event["seconds"])
    if kind == "fails" or (kind == "flaky" and time.time() < event["until"]):
        raise RuntimeError("as it was asked to")
    return {"n": event.get("n"), "square": event["n"] ** 2 if kind == "echo" else None}
"""

SLOW_S = 0.5
FLAKY_S = 0.3  # shorter than the wait before the second attempt

_KINDS = (("poison", 0.01), ("slow", 0.01), ("flaky", 0.01), ("fails", 0.005))


@dataclass(frozen=True, slots=True)
class Planned:
    """An asynchronous event that is to be published."""

    n: int  # what it calls itself; no other does
    function: str
    kind: str

    @property
    def payload(self) -> bytes:
        told: dict[str, Any] = {"n": self.n, "kind": self.kind}
        if self.kind == "slow":
            told["seconds"] = SLOW_S
        if self.kind == "flaky":
            told["until"] = time.time() + FLAKY_S
        return json.dumps(told).encode()


def events(dice: random.Random, first: int = 0) -> Iterator[Planned]:
    """Events without end: 1 % poison, 1 % slow, 1 % that fail once, a few that always fail."""
    n = first
    while True:
        n += 1
        roll, kind = dice.random(), "ok"
        for name, share in _KINDS:
            if roll < share:
                kind = name
                break
            roll -= share
        yield Planned(n, TOLD if dice.random() < 0.05 else WORK, kind)


def deploy(running: Running, folder: Path | None = None) -> None:
    """All of them, with their triggers; DROP watches `folder`."""
    client = running.client("lambda", read_timeout=30)
    arns = {}
    for name in NAMES:
        made = client.create_function(
            FunctionName=name,
            Runtime=f"python3.{sys.version_info.minor}",
            Handler="app.handler",
            Role=ROLE,
            Timeout=10,
            Code={"ZipFile": zipped({"app.py": SOURCE})},
        )
        arns[name] = made["FunctionArn"]
    sink = {"Destination": arns[SINK]}
    client.put_function_event_invoke_config(
        FunctionName=TOLD, DestinationConfig={"OnSuccess": sink, "OnFailure": sink}
    )
    running.trivet("trigger", "schedule", TICK, "rate(1 second)", "--name", "tick")
    if folder is not None:
        running.trivet("trigger", "files", DROP, str(folder), "--name", "drop")
