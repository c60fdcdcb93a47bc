"""Phase: one platform under load, which is struck, and judged once all is quiet again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
from redis.asyncio import Redis
from tests.chaos import accounts, functions, injectors, schedule, verdict
from tests.chaos.accepted import AcceptedFile
from tests.chaos.injectors import Injector
from tests.chaos.load import Asynchronous, Files, Synchronous
from tests.chaos.probes import Probes
from tests.chaos.schedule import Wanted
from tests.chaos.storm import Storm
from tests.chaos.verdict import Verdict
from tests.e2e.conftest import BIN, Running

from trivet.client import AsyncClient

SETTINGS = {
    "TRIVET_AWS_PORT": "0",
    "TRIVET_HTTP_PORT": "0",
    "TRIVET_CONSOLE_PORT": "0",
    "TRIVET_MAX_ENVIRONMENTS": "4",
    "TRIVET_RETRY_AFTER_S": "0.5 1",
    "TRIVET_LEDGER_MB": "256",  # nothing is forgotten, so that all of it can be counted
}
CALLERS = 3
CALLER_PAUSE_S = 0.05
REST_S = 0.4
QUIET_WITHIN_S = 90.0
JUDGED_WITHIN_S = 300.0
SETTLES_WITHIN_S = 3.0  # a file is seen at most this long after it was dropped


class PlatformEnded(Exception):
    """The launcher is gone, and everything with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything."""

    events: int
    per_s: float
    kills: int  # of each part


@dataclass
class Phase:
    """What one phase is made of, beside the load that all have."""

    seed: int
    size: Size
    running: Running
    folder: Path  # of the client
    servers: dict[str, Redis]  # of the lanes, past every proxy
    wanted: Sequence[Wanted]
    more: Mapping[str, Injector] = field(default_factory=dict)
    goals_s: Mapping[str, float] = field(default_factory=dict)
    may_die: Sequence[str] = ()  # parts that end by themselves at these faults

    async def run(self) -> Verdict:
        """Start the load, strike, wait until nothing is in flight, and judge."""
        drops = self.folder / "drops"
        drops.mkdir()
        drops.chmod(0o755)
        await anyio.to_thread.run_sync(functions.deploy, self.running, drops)
        dice = random.Random(self.seed)
        file = AcceptedFile(self.folder / "accepted.jsonl")
        load = Asynchronous(
            self._client(), file, functions.events(dice), self.size.per_s, self.size.events
        )
        callers = [Synchronous(self._client(), CALLER_PAUSE_S, i * 10**7) for i in range(CALLERS)]
        files = Files(drops, random.Random(self.seed))
        probes = Probes(self.running, self._client(), file, self.servers)
        launcher = int(self.running.state["pid"])
        struck = {**injectors.of_processes(launcher, random.Random(self.seed)), **self.more}
        storm = Storm(struck, probes)
        found = Verdict()
        try:
            async with anyio.create_task_group() as beside:
                beside.start_soon(self._see_it_live)
                beside.start_soon(files.run)
                for caller in callers:
                    beside.start_soon(caller.run)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(load.run)
                    plan = schedule.steps(self.seed, self.wanted, rest_s=REST_S)
                    tasks.start_soon(storm.run, plan)
                beside.cancel_scope.cancel()
            await load.settle()
            await self._quiet(found)
            await self._judge(found, load, callers, files, storm)
        except* PlatformEnded:
            found.tell("platform", "has ended", self._said().splitlines()[-3:])
        finally:
            file.close()
        return found

    async def _see_it_live(self) -> None:
        """Raises PlatformEnded when its launcher has ended."""
        descriptor = os.pidfd_open(int(self.running.state["pid"]))
        try:
            await anyio.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        raise PlatformEnded

    def _said(self) -> str:
        """The launcher's own words."""
        return (self.running.data / "run" / "platform.log").read_text(errors="replace")

    def _client(self) -> AsyncClient:
        env = self.running.env
        return AsyncClient(
            env["AWS_ENDPOINT_URL"],
            access_key=env["AWS_ACCESS_KEY_ID"],
            secret=env["AWS_SECRET_ACCESS_KEY"],
            region=env["AWS_DEFAULT_REGION"],
        )

    async def _quiet(self, found: Verdict) -> None:
        """The schedule ends, the last file is seen, and all that is there has ended."""
        begun = time.monotonic()
        await anyio.to_thread.run_sync(self.running.trivet, "trigger", "rm", "tick")
        quiet_since = time.monotonic()
        while (now := time.monotonic()) < begun + QUIET_WITHIN_S:
            if await accounts.in_flight(self.servers["durable"]):
                quiet_since = now
            elif now - quiet_since > SETTLES_WITHIN_S:
                break
            await anyio.sleep(0.2)
        left = await accounts.in_flight(self.servers["durable"])
        words = f"{left} in flight after {time.monotonic() - begun:.1f} s"
        found.tell("quiet", words, [f"{left} have not ended"] if left else [])

    async def _judge(
        self,
        found: Verdict,
        load: Asynchronous,
        callers: Sequence[Synchronous],
        files: Files,
        storm: Storm,
    ) -> None:
        accepted = load.file.read()
        most = len(storm.strikes)
        ids = self.folder / "accepted.ids"
        ids.write_text("\n".join(event.id for event in accepted if event.id))
        check = ("ledger", "check", "--quiesced", "--accepted", str(ids), "--json")
        told = await self._trivet(*check, "--most-aborted", str(most))
        verdict.on_ledger(found, json.loads(told.stdout))
        bill = await self._trivet("bill", "--check")
        words = [bill.stderr.strip()] if bill.returncode else []
        found.tell("bill", "is the sum of its Readings", words)
        kept = await accounts.counted(self.servers["durable"], self.running.data / "logs")
        doubtful = load.doubtful | storm.probes.doubtful
        verdict.on_events(found, accepted, doubtful, kept)
        verdict.on_duplicates(found, kept.aborted, most)
        verdict.on_slots(found, kept.slots)
        verdict.on_files(found, files.names, kept.files)
        answered = [call for caller in callers for call in caller.answered]
        refusals = sum((caller.refusals for caller in callers), start=load.refusals)
        killed = [s.fault.part for s in storm.strikes if s.fault.kind == "kill"]
        verdict.on_calls(
            found,
            answered,
            wrong=[words for caller in callers for words in caller.wrong],
            crashed=sum(caller.crashed for caller in callers),
            killed_environments=killed.count("environment"),
            refusals=refusals,
            slowest_s=max(caller.slowest_s for caller in callers),
        )
        verdict.on_express_bill(found, answered, kept.metered, storm.strikes)
        verdict.on_deaths(found, self._said(), self.may_die)
        refused = storm.probes.refused
        words = [f"{refused} were refused"] if refused else []
        found.tell("connections", f"{refused} refused by the listener", words)
        strikes = [str(strike.fault) for strike in storm.strikes]
        counts = ", ".join(f"{strikes.count(name)} {name}" for name in sorted({*strikes}))
        found.tell("strikes", f"{len(strikes)}: {counts}", storm.failures)
        verdict.on_recovery(found, storm.recovered_s, self.goals_s)

    async def _trivet(self, *words: str) -> subprocess.CompletedProcess[str]:
        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [str(BIN / "trivet"), *words],
                env=self.running.variables,
                capture_output=True,
                text=True,
                check=False,
                timeout=JUDGED_WITHIN_S,
            )

        return await anyio.to_thread.run_sync(run)
