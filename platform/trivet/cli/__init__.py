"""The command line: one file per verb. Whatever is heavy is imported by the verb that needs it."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """The `trivet` console script."""
    arguments = sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130  # as a shell reports it
    except Exception as error:
        from trivet.cli.screen import report

        code = report(error, arguments)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["aws"]:
        # Its words are the AWS CLI's, options included; a parser of ours would only spoil them.
        from trivet.cli.aws import run

        run(arguments[1:])
    from trivet.cli.verbs import app

    result = app(arguments, prog_name="trivet", standalone_mode=False)
    return result if isinstance(result, int) else 0
