"""Reporting: what the services say of themselves, one structured line an event, on stderr."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog


def configure_logging(service: str) -> None:
    """Lines of key=value text on a terminal, JSON elsewhere; TRIVET_LOG_LEVEL chooses how many."""
    level = logging.getLevelNamesMapping().get(
        os.environ.get("TRIVET_LOG_LEVEL", "WARNING").upper(), logging.WARNING
    )
    is_terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=is_terminal and "NO_COLOR" not in os.environ)
            if is_terminal
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Lossy())),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)


class _Lossy:
    """The process's stderr, a whole line at a time. On a disk that is full a line is lost, and not
    the service that wanted to write it."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            os.write(sys.stderr.fileno(), text.encode(errors="replace"))
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""
