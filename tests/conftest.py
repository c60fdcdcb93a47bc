"""Fixtures that every test may use."""

import gc
import signal

import pytest
from hypothesis import settings

# A loaded machine is no reason to fail: hypothesis would take a slow example for a slow program.
settings.register_profile("trivet", deadline=None)
settings.load_profile("trivet")

# A shell has what a script puts into the background ignore SIGINT, and so would all that a test
# starts: a Ctrl-C that a test sends would never arrive.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure() -> None:
    """While the tests are imported there is no garbage worth a look at everything else."""
    gc.disable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What is imported by now stays to the end: no collection of a test need look at it again."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that the services run on."""
    return "asyncio", {"use_uvloop": True}
