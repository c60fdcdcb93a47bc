"""A whole platform, started as a user starts it, on ports and in a folder of its own."""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

BIN = Path(sys.executable).parent
# Generous: the gateway alone may take 30 s for the calls in flight.
END_WITHIN_S = 60.0
ROLE = "arn:aws:iam::123456789012:role/lambda-execution-role"


def zipped(files: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


@dataclass
class Running:
    """A running platform, and the clients a user would point at it."""

    data: Path
    settings: dict[str, str]
    env: dict[str, str] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    launcher: int = -1  # a pidfd, which cannot come to mean another process

    @property
    def variables(self) -> dict[str, str]:
        """The process environment of a user's shell before `eval "$(trivet env)"`."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "TRIVET_"))}
        return {**kept, "TRIVET_DATA": str(self.data), "NO_COLOR": "1", **self.settings}

    def trivet(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "trivet"), *args],
            env=self.variables,
            capture_output=True,
            text=True,
            check=check,
            timeout=60,
        )

    def up(self) -> None:
        started = self.trivet("up", "--detach", check=False)
        assert started.returncode == 0, started.stdout + started.stderr
        self.env = json.loads(self.trivet("env", "--json").stdout)
        self.state = json.loads((self.data / "run" / "platform.json").read_text())
        self.close()
        self.launcher = os.pidfd_open(int(self.state["pid"]))

    def ask_to_end(self) -> None:
        """As `trivet down` does."""
        with suppress(OSError):  # a test has ended it, or it never ran
            signal.pidfd_send_signal(self.launcher, signal.SIGTERM)

    def ended(self) -> None:
        """Wait until it has ended; whoever took its place is ended too."""
        if self.launcher >= 0:
            assert select.select([self.launcher], [], [], END_WITHIN_S)[0], self.data
        if (self.data / "run" / "platform.json").exists():
            self.down()
        self.close()

    def close(self) -> None:
        if self.launcher >= 0:
            os.close(self.launcher)
            self.launcher = -1

    def down(self) -> None:
        self.trivet("down")

    def aws(self, *args: str, check: bool = True, cwd: Path | None = None) -> str:
        """The stock aws CLI, in the environment that `trivet env` makes."""
        ended = subprocess.run(
            [str(BIN / "aws"), *args],
            env={**self.variables, **self.env},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=cwd,
        )
        if check:
            assert ended.returncode == 0, ended.stderr
            return ended.stdout
        return ended.stdout + ended.stderr

    def client(self, service: str, **options: Any) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            region_name=self.env["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            config=Config(retries={"total_max_attempts": 1}, max_pool_connections=64, **options),
        )

    @property
    def http_url(self) -> str:
        return self.env["TRIVET_HTTP_URL"]

    def pids(self) -> set[int]:
        """Every process of this platform: they all carry its data folder or are its children."""
        launcher = int(self.state["pid"])
        return descendants(launcher) | {launcher}


def descendants(pid: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


@pytest.fixture(scope="session")
def start_platform() -> Iterator[Callable[..., Running]]:
    """Starts platforms, each with settings of its own; ends them all with the session."""
    started: list[Running] = []

    def start(**settings: str) -> Running:
        data = Path(tempfile.mkdtemp(prefix="trivet-e2e-"))
        data.chmod(0o755)
        ports = {"TRIVET_AWS_PORT": "0", "TRIVET_HTTP_PORT": "0", "TRIVET_CONSOLE_PORT": "0"}
        running = Running(data, {**ports, **settings})
        started.append(running)
        running.up()
        return running

    yield start
    # All together: each waits for its parts.
    for running in started:
        running.ask_to_end()
    for running in started:
        running.ended()
        shutil.rmtree(running.data)


@pytest.fixture(scope="session")
def platform(start_platform: Callable[..., Running]) -> Running:
    """One platform for all tests that do not harm it."""
    return start_platform()


@dataclass
class Deployed:
    """A function that a test deployed."""

    name: str
    client: Any

    def invoke(self, payload: Any = None, **options: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.invoke(
            FunctionName=self.name, Payload=json.dumps(payload), **options
        )
        answer["Payload"] = answer["Payload"].read()
        return answer

    def call(self, payload: Any = None, **options: Any) -> Any:
        return json.loads(self.invoke(payload, **options)["Payload"])


@pytest.fixture
def deploy(platform: Running, request: pytest.FixtureRequest) -> Callable[..., Deployed]:
    """Deploys a function on the shared platform, for this test."""
    return deployer(platform, request)


def deployer(running: Running, request: pytest.FixtureRequest) -> Callable[..., Deployed]:
    client = running.client("lambda", read_timeout=30)
    count = 0

    def deploy(
        source: str, *, runtime: str = "", file: str = "", handler: str = "", **options: Any
    ) -> Deployed:
        nonlocal count
        count += 1
        is_node = runtime.startswith("nodejs")
        runtime = runtime or f"python3.{sys.version_info.minor}"
        name = f"{request.node.name.partition('[')[0][-50:]}-{os.urandom(3).hex()}"
        client.create_function(
            FunctionName=name,
            Runtime=runtime,
            Handler=handler or ("index.handler" if is_node else "app.handler"),
            Role=ROLE,
            Code={"ZipFile": zipped({file or ("index.mjs" if is_node else "app.py"): source})},
            **options,
        )
        client.get_waiter("function_active_v2").wait(FunctionName=name)
        request.addfinalizer(lambda: client.delete_function(FunctionName=name))
        return Deployed(name, client)

    return deploy
