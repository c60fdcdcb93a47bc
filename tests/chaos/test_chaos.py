"""The short form of chaos: 10,000 events and ten kills of each part, and every promise is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")
WITHIN_S = 540  # it takes less than five minutes on two cores of its own


@pytest.mark.slow
@pytest.mark.timeout(WITHIN_S + 30)
def test_nothing_is_lost_whatever_is_struck() -> None:
    command = [sys.executable, str(RUN), "chaos", "--short"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
