"""Billing: durations become billed milliseconds here, and nowhere else."""

from __future__ import annotations


def billed_ms(run_ns: int, init_ns: int = 0) -> int:
    """AWS rounds up to a millisecond, and since August 2025 bills initialisation with the run."""
    return -(-(run_ns + init_ns) // 1_000_000)
