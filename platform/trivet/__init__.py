"""Trivet: AWS Lambda on your own machine. The names that others may import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trivet.core.invocations import Event, Match, Reply
from trivet.core.schedules import Expression, due_slots, next_slot, parse_schedule
from trivet.core.triggers import FileTrigger, Schedule, Trigger, TriggerSet
from trivet.core.urls import Cors, FunctionUrl, Presented, Signer
from trivet.errors import (
    Forbidden,
    FunctionNotFound,
    PlatformError,
    RequestTooLarge,
    Throttled,
    TrivetError,
    Unavailable,
)
from trivet.ports import Host, Memory, Platform, Publisher, Triggers

if TYPE_CHECKING:
    from trivet.client import AsyncClient, Client, LogLine, NoAnswer, Result

__all__ = [
    "AsyncClient",
    "Client",
    "Cors",
    "Event",
    "Expression",
    "FileTrigger",
    "Forbidden",
    "FunctionNotFound",
    "FunctionUrl",
    "Host",
    "LogLine",
    "Match",
    "Memory",
    "NoAnswer",
    "Platform",
    "PlatformError",
    "Presented",
    "Publisher",
    "Reply",
    "RequestTooLarge",
    "Result",
    "Schedule",
    "Signer",
    "Throttled",
    "Trigger",
    "TriggerSet",
    "Triggers",
    "TrivetError",
    "Unavailable",
    "due_slots",
    "next_slot",
    "parse_schedule",
]

# Imported when first asked for: they need an event loop's and HTTP's packages, and the launcher,
# which imports this package too, is to hold nothing but the standard library.
_OF_THE_CLIENT = frozenset({"AsyncClient", "Client", "LogLine", "NoAnswer", "Result"})


def __getattr__(name: str) -> Any:
    if name in _OF_THE_CLIENT:
        from trivet import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
