"""The services' own log: a disk that is full costs lines, and no service."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_line_that_cannot_be_written_ends_nothing() -> None:
    program = (
        "import structlog\n"
        "from trivet.reporting import configure_logging\n"
        "configure_logging('gateway')\n"
        "structlog.get_logger().warning('disk.full')\n"
        "print('alive')\n"
    )
    full = os.open("/dev/full", os.O_WRONLY)
    ended = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=full, check=False
    )
    os.close(full)
    assert (ended.returncode, ended.stdout) == (0, b"alive\n")
