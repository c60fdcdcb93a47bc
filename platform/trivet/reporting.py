"""Reporting: what the services say of themselves, one structured line an event, on stderr."""

from __future__ import annotations

import logging
import os
import sys

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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
