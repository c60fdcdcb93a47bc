"""Fixtures of the worker's tests: code folders, and zygotes as root and as an ordinary user."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.workers import driver
from tests.workers.driver import Environment, Zygote

Code = Callable[[str], Path]
Run = Callable[[str], Environment]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# As root both are tried, the second in the slow tier.
_IDENTITIES = [
    pytest.param(False, id="root", marks=needs_root),
    pytest.param(True, id="user", marks=[pytest.mark.slow] if os.geteuid() == 0 else []),
]


@pytest.fixture
def files() -> Iterator[Callable[[dict[str, str]], Path]]:
    """Writes a code folder of several files."""
    folders: list[Path] = []

    def write(contents: dict[str, str]) -> Path:
        folders.append(driver.write_code(contents))
        return folders[-1]

    yield write
    for folder in folders:
        driver.remove_code(folder)


@pytest.fixture
def code(files: Callable[[dict[str, str]], Path]) -> Code:
    """Writes a code folder that holds only index.py."""
    return lambda source: files({"index.py": source})


@pytest.fixture(scope="module", params=_IDENTITIES)
def zygote(request: pytest.FixtureRequest) -> Iterator[Zygote]:
    """A zygote for Python, of which a test must leave nothing but its environments."""
    running = driver.start_zygote(as_user=request.param)
    yield running
    running.close()


@pytest.fixture(params=_IDENTITIES)
def own_zygote(request: pytest.FixtureRequest) -> Iterator[Zygote]:
    """A zygote for Python that a test may end."""
    running = driver.start_zygote(as_user=request.param)
    yield running
    running.close()


@pytest.fixture(scope="module", params=_IDENTITIES)
def node_zygote(request: pytest.FixtureRequest) -> Iterator[Zygote]:
    """A zygote for Node cells."""
    assert driver.NODE.exists(), f"Node is fetched by ./run, to {driver.NODE}"
    running = driver.start_zygote(kind="node", as_user=request.param)
    yield running
    running.close()


@pytest.fixture
def run(zygote: Zygote, code: Code) -> Iterator[Run]:
    """Starts and initialises an environment with the given index.py."""
    started: list[Environment] = []

    def start(source: str) -> Environment:
        environment = zygote.spawn(code(source))
        started.append(environment)
        assert environment.init().body == b""
        return environment

    yield start
    for environment in started:
        if not driver.has_ended(environment.pidfd, within_s=0):
            environment.kill()
