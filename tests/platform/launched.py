"""Launched: a real launcher with stand-in parts, and deadlines for everything it should do."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.platform import stand_ins

from trivet.launcher import cgroups, precedence
from trivet.launcher.identities import identities
from trivet.settings import Settings

# Generous: it decides when a test has failed, not how fast anything is.
DEADLINE_S = 30.0

GOOD: Mapping[str, str] = {"gateway": "good", "supervisor": "good", "adapters": "good"}


def has_ended(pid: int) -> bool:
    """Wait until the process `pid` has ended; False when the deadline passes first."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], DEADLINE_S)[0])
    finally:
        os.close(pidfd)


class Launched:
    """One data folder, its launchers one after the other, and what their parts report."""

    def __init__(self) -> None:
        # Short for the sockets in it, and open to the uids that the parts run as.
        self.folder = Path(tempfile.mkdtemp(prefix="trivet-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.settings = Settings(data=str(self.folder / "data"), aws_port=0, http_port=0)
        self.events: list[dict[str, Any]] = []
        self.stderr = (self.folder / "stderr").open("w+")
        self._reports = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._reports.bind(str(self.folder / "reports"))
        (self.folder / "reports").chmod(0o777)
        self._reports.settimeout(DEADLINE_S)
        self._seen = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._told: dict[int, int] = {}

    @property
    def run(self) -> Path:
        return self.settings.run_path

    def change(self, **changes: Any) -> None:
        """Change settings of the launchers to come."""
        self.settings = replace(self.settings, **changes)

    def start(self, plan: Mapping[str, str] = GOOD) -> subprocess.Popen[bytes]:
        told, end = os.pipe()
        arguments = [json.dumps(asdict(self.settings)), json.dumps(dict(plan))]
        process = subprocess.Popen(
            [sys.executable, "-I", stand_ins.HERE, "launch", *arguments, "--ready-fd", str(end)],
            env={stand_ins.REPORT_TO: str(self.folder / "reports")},
            pass_fds=[end],
            stderr=self.stderr,
        )
        os.close(end)
        self._processes.append(process)
        self._told[process.pid] = told
        return process

    def told(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """The line of JSON that a launcher wrote when it was ready, or refused."""
        descriptor = self._told.pop(process.pid)
        while not self._or_report(descriptor):
            pass
        with os.fdopen(descriptor) as file:
            found: dict[str, Any] = json.loads(file.readline())
        return found

    def up(self, plan: Mapping[str, str] = GOOD) -> subprocess.Popen[bytes]:
        """A launcher that is ready, with its zygote handed over and one environment."""
        process = self.start(plan)
        state = self.told(process)
        assert "error" not in state, state
        self.event("supervisor", "zygote")
        return process

    def event(self, name: str, event: str) -> dict[str, Any]:
        """The next such report after those already asked for."""
        while True:
            while self._seen == len(self.events):
                self.events.append(json.loads(self._reports.recv(65_536)))
            found = self.events[self._seen]
            self._seen += 1
            if (found["name"], found["event"]) == (name, event):
                return found

    def event_of(self, name: str, event: str) -> dict[str, Any]:
        """The latest such report; waits for the first."""
        while not self.count(name, event):
            self.events.append(json.loads(self._reports.recv(65_536)))
        return next(e for e in reversed(self.events) if (e["name"], e["event"]) == (name, event))

    def ended(self, process: subprocess.Popen[bytes]) -> int:
        """The exit code of a launcher that ends, while its parts report."""
        ends = os.pidfd_open(process.pid)
        try:
            while not self._or_report(ends):
                pass
            return process.wait()
        finally:
            os.close(ends)

    def until_readable(self, end: socket.socket) -> bool:
        """Wait for `end` while the parts report; True."""
        while not self._or_report(end.fileno()):
            pass
        return True

    def _or_report(self, descriptor: int) -> bool:
        """Wait for `descriptor`, and read the reports meanwhile: their senders wait for that."""
        readable, _, _ = select.select([descriptor, self._reports.fileno()], [], [], DEADLINE_S)
        assert readable, "nothing happens any more"
        if self._reports.fileno() in readable:
            self.wait()
        return descriptor in readable

    def wait(self) -> None:
        """For one more report."""
        self.events.append(json.loads(self._reports.recv(65_536)))

    def successor(self, name: str, old: int) -> int:
        """The pid of the part that was started after `old` was."""
        while True:
            pids = [e["pid"] for e in self.events if (e["name"], e["event"]) == (name, "started")]
            if old in pids[:-1]:
                return int(pids[-1])
            self.wait()

    def heard_by_another(self, name: str, old: int) -> dict[str, Any]:
        """The report of having heard something from a part started after `old`."""
        while (found := self.event_of(name, "heard"))["pid"] == old:
            self.wait()
        return found

    def count(self, name: str, event: str) -> int:
        """How many such reports came, those that wait included."""
        self._reports.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.events.append(json.loads(self._reports.recv(65_536)))
        self._reports.settimeout(DEADLINE_S)
        return sum((e["name"], e["event"]) == (name, event) for e in self.events)

    def pids(self) -> set[int]:
        """Of every stand-in that ever reported."""
        self.count("", "")
        return {event["pid"] for event in self.events}

    def server_pid(self, lane: str) -> int:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE_S)
            client.connect(str(self.run / f"{lane}.sock"))
            client.sendall(b"PING\r\nINFO server\r\n")
            told = client.recv(65_536)
            if not told.startswith(b"+PONG"):
                raise ConnectionError(told)
            while b"process_id:" not in told or b"\r\n" not in told.partition(b"process_id:")[2]:
                told += client.recv(65_536)
        return int(told.partition(b"process_id:")[2].split(b"\r\n")[0])

    def new_server_pid(self, lane: str, old: int) -> int:
        """The pid of the server that replaces `old`, as soon as it answers."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if (pid := self.server_pid(lane)) != old:
                    return pid
        raise AssertionError(f"no new {lane} server")

    def said(self) -> str:
        """What the launchers wrote to stderr."""
        return (self.folder / "stderr").read_text()

    def until_said(self, text: str) -> None:
        """Wait until the launchers have said `text`."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.said():
            assert time.monotonic() < deadline, text
            if select.select([self._reports], [], [], 0.02)[0]:
                self.wait()

    def close(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
            process.wait(DEADLINE_S)
        left = [pid for pid in self.pids() if not has_ended(pid)]
        for descriptor in self._told.values():
            os.close(descriptor)
        if self.settings.data_path.exists():
            # Those of a launcher that was killed wait for its successor.
            made = cgroups.prepare(self.settings, identities(self.settings))
            precedence.clear(made)
            assert made.remove()
        self._reports.close()
        self.stderr.close()
        shutil.rmtree(self.folder)
        assert not left, left
