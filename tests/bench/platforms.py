"""Platforms: a whole Trivet of its own for a benchmark, and what it says of itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.endpoints import Endpoint

BIN = Path(sys.executable).parent
POLL_S = 0.05
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Platform:
    """A running platform."""

    endpoint: Endpoint
    http_url: str
    data: Path
    env: dict[str, str]

    @property
    def launcher(self) -> int:
        state = json.loads((self.data / "run" / "platform.json").read_text())
        return int(state["pid"])

    def trivet(self, *words: str) -> None:
        command = [str(BIN / "trivet"), *words]
        subprocess.run(command, env=self.env, check=True, stdout=subprocess.DEVNULL)

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics by family, one label pair after another summed up.

        "name" holds the sum of a family, "name{label=value}" that of all with this label.
        """
        with urllib.request.urlopen(f"{self.endpoint.url}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        found: dict[str, float] = defaultdict(float)
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            name, _, value = line.rpartition(" ")
            family, _, labels = name.partition("{")
            found[family] += float(value)
            for label, told in re.findall(r'(\w+)="([^"]*)"', labels):
                found[f"{family}{{{label}={told}}}"] += float(value)
        return found


@contextmanager
def trivet(**settings: str) -> Iterator[Platform]:
    """A platform in a folder and on ports of its own; settings are `TRIVET_*` in lower case."""
    with tempfile.TemporaryDirectory(prefix="trivet-bench-") as folder:
        Path(folder).chmod(0o755)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "TRIVET_"))}
        env |= {"TRIVET_DATA": folder}
        env |= {f"TRIVET_{name}_PORT": "0" for name in ("AWS", "HTTP", "CONSOLE")}
        env |= {f"TRIVET_{name.upper()}": value for name, value in settings.items()}
        program = str(BIN / "trivet")
        subprocess.run([program, "up", "--detach", "--quiet"], env=env, check=True)
        try:
            told = subprocess.run(
                [program, "env", "--json"], env=env, check=True, capture_output=True
            )
            env |= json.loads(told.stdout)
            endpoint = Endpoint(
                url=env["AWS_ENDPOINT_URL"],
                access_key=env["AWS_ACCESS_KEY_ID"],
                secret=env["AWS_SECRET_ACCESS_KEY"],
                region=env["AWS_DEFAULT_REGION"],
            )
            yield Platform(endpoint, env["TRIVET_HTTP_URL"], Path(folder), env)
        finally:
            subprocess.run([program, "down"], env=env, check=True, stderr=subprocess.DEVNULL)


def await_that(holds: Callable[[], bool], what: str) -> None:
    """Ask until it holds."""
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > ends:
            raise TimeoutError(f"still not true after {PATIENCE_S:g} s: {what}")
        time.sleep(POLL_S)
