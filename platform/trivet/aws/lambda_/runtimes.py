"""Runtimes: which of AWS's names this machine can run, and what to say of the others."""

from __future__ import annotations

from collections.abc import Set

from trivet.errors import CallerError

# AWS creates and updates no function with these any more. As of November 2026; the models still
# list them, because old functions go on running.
DEPRECATED = frozenset(
    {
        *("nodejs", "nodejs4.3", "nodejs4.3-edge", "nodejs6.10", "nodejs8.10"),
        *("nodejs10.x", "nodejs12.x", "nodejs14.x"),
        *("python2.7", "python3.6", "python3.7"),
        *("dotnetcore1.0", "dotnetcore2.0", "dotnetcore2.1", "dotnetcore3.1"),
        *("ruby2.5", "ruby2.7", "java8", "go1.x", "provided"),
    }
)


def check_runtime(runtime: str, here: Set[str]) -> None:
    """Raise unless this machine runs `runtime`. The model has made sure that AWS knows the name."""
    if runtime in here:
        return
    if runtime in DEPRECATED:
        raise CallerError(
            f"The runtime parameter of {runtime} is no longer supported for creating or updating "
            "AWS Lambda functions. We recommend you use a supported runtime while creating or "
            "updating functions."
        )
    command = f"trivet runtime add {runtime}"
    has = f"which has {', '.join(sorted(here))}" if here else "which has none yet"
    raise CallerError(
        f"The runtime {runtime} is not installed on this machine, {has}. To add it: {command}",
        hint=command,
    )
