"""Refusals: why the launcher does not start, each one line and an exit code of sysexits(3)."""

from __future__ import annotations

import os

from trivet.errors import SettingsError, TrivetError

EXIT_PORT_TAKEN = 69
EXIT_PART_FAILED = 70
EXIT_ALREADY_UP = 75
EXIT_UNUSABLE = 78


class PortTaken(TrivetError):
    """An address to listen on cannot be had."""


class AlreadyUp(TrivetError):
    """Another platform serves this data folder."""


class PartFailed(TrivetError):
    """A part of the platform did not become ready at its first start."""


class Unusable(SettingsError):
    """The machine, the data or the settings are not fit to start with, and nothing mends them."""


def exit_code(error: TrivetError) -> int:
    if isinstance(error, PortTaken):
        return EXIT_PORT_TAKEN
    if isinstance(error, AlreadyUp):
        return EXIT_ALREADY_UP
    if isinstance(error, SettingsError):
        return EXIT_UNUSABLE
    return EXIT_PART_FAILED


def command() -> str:
    """How this user calls us, for hints."""
    return os.environ.get("TRIVET_COMMAND", "trivet")
