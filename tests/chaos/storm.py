"""Storm: strikes a platform under load, step by step, and sees how soon it serves again."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
from tests.chaos.injectors import Injector, NobodyThere
from tests.chaos.probes import LANES, NotRecovered, Probes
from tests.chaos.schedule import Fault, Step


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault, as it happened. Times in seconds since the epoch."""

    fault: Fault
    at: float
    until: float


@dataclass
class Storm:
    """What was done, and what came of it."""

    injectors: Mapping[str, Injector]
    probes: Probes
    strikes: list[Strike] = field(default_factory=list)
    recovered_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: list[str] = field(default_factory=list)

    async def run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            async with anyio.create_task_group() as tasks:
                for fault in step.faults:
                    tasks.start_soon(self._strike, fault, len(step.faults) == 1)
            with suppress(NotRecovered):  # which the probe of the part itself has told
                await self.probes.calls()
            await anyio.sleep(step.rest_s)

    async def _strike(self, fault: Fault, is_alone: bool) -> None:
        at = time.time()
        try:
            await self.injectors[fault.kind](fault)
            begun = time.monotonic()
            self.strikes.append(Strike(fault, at, time.time()))
            if fault.part in LANES:
                begun = await self.probes.pings(fault.part)
            well = await self.probes.after(fault.part)()
        except NobodyThere:
            self.failures.append(f"{fault}: there is none")
        except NotRecovered as error:
            self.failures.append(f"{fault}: {error}")
        else:
            if is_alone:
                self.recovered_s[str(fault)].append(well - begun)
