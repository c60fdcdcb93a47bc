"""trivet doctor: what this machine and its platform are like, and the command that mends each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from trivet.cli.options import Data, Json
from trivet.cli.screen import GREEN, RED, YELLOW, command, harmless, paint
from trivet.errors import TrivetError
from trivet.settings import Settings, read_settings

if TYPE_CHECKING:
    from trivet.cli.checks import Finding

    Check = Callable[[Settings], Iterator[Finding]]

_MARKS = {"ok": ("✓", GREEN), "warning": ("!", YELLOW), "problem": ("✗", RED)}


class Unwell(TrivetError):
    """Something keeps the platform from working."""

    exit_code = 1


def doctor(data: Data = None, as_json: Json = False) -> None:
    """Check the machine and the platform; exit code 1 says that something has to be mended."""
    from trivet.cli.checks import OF_THE_MACHINE
    from trivet.cli.jail_checks import OF_THE_JAIL
    from trivet.cli.platform_checks import OF_THE_PLATFORM

    settings = read_settings(flags={"data": data})
    findings = []
    for finding in _findings((*OF_THE_MACHINE, *OF_THE_JAIL, *OF_THE_PLATFORM), settings):
        findings.append(finding)
        if not as_json:
            print("\n".join(_shown(finding)), flush=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    problems = [finding for finding in findings if finding.state == "problem"]
    if problems:
        what = ", ".join(dict.fromkeys(finding.subject for finding in problems))
        raise Unwell(f"to be mended: {what}", hint=problems[0].fix)


def _findings(checks: Iterable[Check], settings: Settings) -> Iterator[Finding]:
    from trivet.cli.checks import problem

    for check in checks:
        try:
            yield from check(settings)
        except Exception as error:
            # What a broken machine answers may be anything; the other checks still count.
            text = f"cannot be checked: {type(error).__name__}: {error}"
            yield problem(check.__name__, text, f"TRIVET_DEBUG=1 {command()} doctor")


def _shown(finding: Finding) -> Iterator[str]:
    mark, colour = _MARKS[finding.state]
    yield f"  {paint(mark, colour)} {finding.subject:11}  {harmless(finding.text)}"
    if finding.fix:
        yield f"    {'':11}  {harmless(finding.fix)}"
