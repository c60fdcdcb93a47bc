"""Hooks: what modules ask to be done at a fork, kept from the forks of a zygote.

Each would be done in every new environment, where it costs a third of a fork's copied pages and
changes nothing: a zygote has one thread and holds no lock when it forks. In the environment they
are registered for the forks of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

_deferred: list[dict[str, Any]] = []


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """What is registered in here waits for `register`."""
    original = os.register_at_fork
    os.register_at_fork = lambda **hooks: _deferred.append(hooks)
    try:
        yield
    finally:
        os.register_at_fork = original


def register() -> None:
    """In an environment: from here on they are run, in the order in which they came."""
    for hooks in _deferred:
        os.register_at_fork(**hooks)
    _deferred.clear()
