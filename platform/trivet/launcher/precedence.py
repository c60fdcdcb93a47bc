"""Precedence: where functions want all of the processor, the platform still gets what it needs.

One call wakes the gateway, a Valkey and the supervisor in turn, and each needs a fraction of a
millisecond: behind functions that compute, every one of them would wait as its equals do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from trivet.launcher.cgroups import OWN_CHILD, Cgroups

# Ten times what the base of all functions has, which is the kernel's default.
_SHARES_V1 = 10 * 1024
_WEIGHT_V2 = 10 * 100


@contextlib.contextmanager
def precedence(cgroups: Cgroups) -> Iterator[None]:
    """This process, and what it starts, go before the functions whose bases these are.

    What cannot be had is done without: nobody is refused for it.
    """
    if not cgroups:
        yield
        return
    base = Path(cgroups.paths["cpu"])
    if cgroups.version == 2:
        own = base.parent / OWN_CHILD
        # In any other we are somebody else's to arrange.
        if os.getpid() in _processes(own):
            with contextlib.suppress(OSError):
                _tell(own / "cpu.weight", _WEIGHT_V2)
        yield
        return
    own = _own_v1(cgroups)
    with contextlib.suppress(OSError):
        own.mkdir(mode=0o755, exist_ok=True)
        _tell(own / "cpu.shares", _SHARES_V1)
        _tell(own / "cgroup.procs", os.getpid())
    try:
        yield
    finally:
        clear(cgroups)


def clear(cgroups: Cgroups) -> None:
    """Leave no cgroup of the platform's own, which a killed launcher could not remove either."""
    if cgroups.version != 1:
        return
    own = _own_v1(cgroups)
    for pid in _processes(own):  # us, and who has not quite ended
        with contextlib.suppress(OSError):
            _tell(own.parent / "cgroup.procs", pid)
    with contextlib.suppress(OSError):
        own.rmdir()


def _own_v1(cgroups: Cgroups) -> Path:
    base = Path(cgroups.paths["cpu"])
    return base.with_name(f"{base.name}-platform")


def _tell(file: Path, number: int) -> None:
    file.write_text(str(number))


def _processes(cgroup: Path) -> set[int]:
    try:
        return set(map(int, (cgroup / "cgroup.procs").read_text().split()))
    except OSError:
        return set()
