"""Policies: how each function in use here wants its asynchronous events treated."""

from __future__ import annotations

from trivet.core.functions import Function
from trivet.core.retries import RetryPolicy, policy_of

_DEFAULT = RetryPolicy()


class Policies:
    """As the functions' records said when they were last read: at the first event of a function,
    and whenever it was changed."""

    def __init__(self) -> None:
        self._policies: dict[str, RetryPolicy] = {}
        self._reserved: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Policies of {len(self._policies)} functions>"

    def note(self, function: Function) -> None:
        name = function.name
        self._policies[name] = policy_of(function)
        self._reserved.pop(name, None)
        if function.reserved_concurrency is not None:
            self._reserved[name] = function.reserved_concurrency

    def forget(self, function: str) -> None:
        self._policies.pop(function, None)
        self._reserved.pop(function, None)

    def of(self, function: str) -> RetryPolicy:
        return self._policies.get(function, _DEFAULT)

    def most_at_once(self, function: str) -> int | None:
        """Its reserved concurrency, which is also the most it may use; None: it has none."""
        return self._reserved.get(function)
