"""Load: wrk, with the same request on every connection."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from dataclasses import dataclass, field

# Longer than a slow peer takes to answer the last of all connections.
TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. A signature in its headers holds for minutes: for a whole run."""

    url: str
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""

    @property
    def script(self) -> str:
        """The request as wrk reads it; strings of JSON are strings of Lua for plain text."""
        lines = [f"wrk.method = {json.dumps(self.method)}"]
        if self.body:
            lines.append(f"wrk.body = {json.dumps(self.body)}")
        for name, value in self.headers.items():
            lines.append(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}")
        return "\n".join(lines) + "\n"


def load(request: Request, connections: int, seconds: float) -> dict[str, float]:
    """Send the request on all connections, again and again."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(request.script)
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
        command += ["--timeout", f"{TIMEOUT_S}s", "-s", script.name, request.url]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    errors = sum(int(n) for n in re.findall(r"(?:read|write|timeout|connect) (\d+)", text))
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert rate is not None, text
    return {
        "per_s": float(rate[1]),
        "p50_ms": _latency(text, "50%"),
        "p99_ms": _latency(text, "99%"),
        "errors": errors + (int(failed[1]) if failed else 0),
    }


def _latency(text: str, percentile: str) -> float:
    found = re.search(rf"\s{percentile}\s+([\d.]+)(us|ms|s|m)\b", text)
    assert found is not None, text
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}[found[2]]
