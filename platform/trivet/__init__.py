"""Trivet: AWS Lambda on your own machine. The names that others may import."""

from trivet.core.invocations import Event, Match, Reply
from trivet.errors import (
    FunctionNotFound,
    PlatformError,
    RequestTooLarge,
    Throttled,
    TrivetError,
    Unavailable,
)
from trivet.ports import Platform

__all__ = [
    "Event",
    "FunctionNotFound",
    "Match",
    "Platform",
    "PlatformError",
    "Reply",
    "RequestTooLarge",
    "Throttled",
    "TrivetError",
    "Unavailable",
]
