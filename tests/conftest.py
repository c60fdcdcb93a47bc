"""Fixtures that every test may use."""

import pytest
from hypothesis import settings

# A loaded machine is no reason to fail: hypothesis would take a slow example for a slow program.
settings.register_profile("trivet", deadline=None)
settings.load_profile("trivet")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that the services run on."""
    return "asyncio", {"use_uvloop": True}
