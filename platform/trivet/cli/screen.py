"""Screen: what a user sees. Results go to stdout; progress and errors to stderr.

Text that others wrote (a function, a server) is printed through `harmless`, so that it can neither
drive the terminal nor pass for a line of ours.
"""

from __future__ import annotations

import os
import shlex
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TextIO

from trivet.errors import SettingsError, TrivetError

BOLD, DIM, RED, GREEN, YELLOW, CYAN = "1", "2", "31", "32", "33", "36"

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_UNUSABLE_SETTINGS = 78  # as sysexits(3) names a configuration error


def command() -> str:
    """How the user calls us: `./run` of a clone says so by this variable."""
    return os.environ.get("TRIVET_COMMAND", "trivet")


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def paint(text: str, colour: str, *, stream: TextIO | None = None) -> str:
    """`text` in a colour, where the stream (stdout) is a terminal and nobody forbade it."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if is_plain or not (stream or sys.stdout).isatty():
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def harmless(text: str) -> str:
    """`text` with every character escaped that is not a visible one or a space."""
    if text.isprintable():
        return text
    return "".join(c if _is_visible(c) else _escaped(c) for c in text)


def _is_visible(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    # A lone surrogate stands for a byte that was not UTF-8.
    return character.encode("unicode_escape").decode("ascii")


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as harmless lines, every column as wide as its widest cell."""
    shown = [[harmless(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def size(count_bytes: int) -> str:
    """A size as people read it: "1.2 kB"."""
    number, unit = float(count_bytes), "B"
    for larger in ("kB", "MB", "GB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{count_bytes} B" if unit == "B" else f"{number:.1f} {unit}"


def report(error: Exception, arguments: Sequence[str]) -> int:
    """Say what went wrong in one line, and what mends it in another; the exit code."""
    if os.environ.get("TRIVET_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        # The reader, `head` for one, has had enough. Nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if type(error).__name__ == "Abort":  # what typer makes of Ctrl-C
        return EXIT_INTERRUPTED
    message, hint, code = _told(error, arguments)
    print(f"error: {harmless(' '.join(message.split()))}", file=sys.stderr)
    if hint:
        print(f"hint: {harmless(hint)}", file=sys.stderr)
    return code


# Verbs whose second word says what is to be done.
_GROUPS = ("ledger", "runtime", "trigger")


def _told(error: Exception, arguments: Sequence[str]) -> tuple[str, str, int]:
    words = [word for word in arguments if not word.startswith("-")]
    verb = words[: 2 if words[:1] and words[0] in _GROUPS else 1]
    usage = " ".join((command(), *verb, "--help"))
    if isinstance(error, TrivetError):
        code = EXIT_UNUSABLE_SETTINGS if isinstance(error, SettingsError) else 1
        return error.message, error.hint or usage, getattr(error, "exit_code", code)
    if isinstance(error, OSError):
        return str(error), usage, 1
    import typer

    if isinstance(error, typer.TyperException):
        # The words up to where the parser stopped: "trivet trigger http", or "trivet" alone.
        path = getattr(getattr(error, "ctx", None), "command_path", "trivet")
        hint = f"{command()}{path.removeprefix('trivet')} --help"
        return error.format_message(), hint, EXIT_USAGE
    again = f"TRIVET_DEBUG=1 {shlex.join((command(), *arguments))}"
    return f"a fault of Trivet: {type(error).__name__}: {error}", again, 1
