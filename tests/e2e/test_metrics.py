"""/health and /metrics of a whole platform, as a load balancer and Prometheus ask."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest
from tests.e2e.conftest import Deployed, Running

SOURCE = """
def handler(event, context):
    if event == "fail":
        raise ValueError(event)
    return event
"""


def read(running: Running, path: str) -> str:
    with urllib.request.urlopen(running.env["AWS_ENDPOINT_URL"] + path, timeout=5) as answer:
        return str(answer.read().decode())


def value(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of a name that have these labels."""
    total = 0.0
    for line in text.splitlines():
        match = re.match(r"([\w:]+)(?:\{(.*)\})? (\S+)\Z", line)
        if match and match[1] == name:
            found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            if labels.items() <= found.items():
                total += float(match[3])
    return total


def test_health_tells_isolation_and_lanes(platform: Running) -> None:
    health = json.loads(read(platform, "/health"))
    assert health["status"] == "ok"
    assert health["lanes"] == {"express": "ok", "durable": "ok"}
    assert health["isolation"]["level"] == platform.state["isolation_level"]


def test_what_ran_is_counted(platform: Running, deploy: Callable[..., Deployed]) -> None:
    function = deploy(SOURCE)
    for payload in ("ok", "ok", "fail"):
        function.invoke(payload)
    text = ""
    # A supervisor reports once a second: several of its reports come in this many looks.
    for _ in range(2_000):
        text = read(platform, "/metrics")
        if value(text, "trivet_invocations_total", function=function.name) == 3:
            break
    assert value(text, "trivet_invocations_total", function=function.name, lane="express") == 3
    assert value(text, "trivet_errors_total", function=function.name) == 1
    assert value(text, "trivet_duration_seconds_count", lane="express") >= 3
    assert value(text, "trivet_cold_start_seconds_count", phase="fork") >= 1
    assert value(text, "trivet_cold_start_seconds_sum", phase="init") > 0
    kept = [value(text, "trivet_environments", state=state) for state in ("idle", "frozen")]
    assert sum(kept) >= 1
    assert value(text, "trivet_published_total", lane="express") >= 3
    assert value(text, "trivet_publish_batches_total", lane="express") >= 1
    assert value(text, "trivet_commit_batches_total", lane="express") >= 1
    assert value(text, "trivet_call_seconds_count") >= 3
    assert value(text, "trivet_lane_up") == 2


def test_neither_page_is_public(platform: Running) -> None:
    for path in ("/health", "/metrics"):
        with pytest.raises(urllib.error.HTTPError) as told:
            urllib.request.urlopen(platform.http_url + path, timeout=5)
        assert told.value.code == 404
        told.value.close()
