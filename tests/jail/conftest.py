"""Fixtures of the jail's tests: targets on the host, jails, and a check that nothing is left."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.jail import jails, leaks, safety
from tests.jail.jails import Host, Jail, Spec
from tests.workers import driver

_HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def bounds() -> Iterator[None]:
    with safety.bounds():
        yield


@pytest.fixture(scope="session")
def host(bounds: None) -> Iterator[Host]:
    """Also has every temporary file of this session below one folder, apart from others' files."""
    before = tempfile.tempdir
    folder = tempfile.mkdtemp(prefix="trivet-jail-", dir="/tmp")
    os.chmod(folder, 0o755)
    tempfile.tempdir = folder
    try:
        with jails.on_the_host() as targets:
            yield targets
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def jail_of(host: Host) -> Iterator[Callable[[Spec], Jail]]:
    """The jail of a `Spec`, started when it is first asked for."""
    with contextlib.ExitStack() as stack:
        running: dict[Spec, Jail] = {}

        def find(spec: Spec) -> Jail:
            if spec not in running:
                running[spec] = stack.enter_context(jails.jail(spec, host))
            return running[spec]

        yield find


@pytest.fixture
def jail(request: pytest.FixtureRequest, jail_of: Callable[[Spec], Jail]) -> Jail:
    """The jail of the `Spec` that is this fixture's parameter. Tests share it."""
    return jail_of(request.param)


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest, host: Host) -> Iterator[None]:
    """As before a test, so after it: a jail that tests share is up before this looks."""
    if "jail" in request.fixturenames:
        request.getfixturevalue("jail")
    before = leaks.all_things()
    yield
    deadline = time.monotonic() + driver.DEADLINE_S
    while (after := leaks.all_things()) - before and time.monotonic() < deadline:
        gc.collect()  # what a failed test holds on to is no leak
        time.sleep(0.02)  # a namespace outlives its last process by a moment
    assert sorted((after - before).elements()) == []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of it takes minutes; what `/proc` shows of an environment is looked at every time."""
    for item in items:
        if item.path.parent == _HERE and item.path.name != "test_outside.py":
            item.add_marker(pytest.mark.slow)
