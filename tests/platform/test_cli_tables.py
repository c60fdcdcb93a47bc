"""What the command line tells of bills, invocations, coverage and names."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import botocore.session
import pytest
from tests.platform.test_cli import BIN, Shell, assert_refused, shell

from trivet.cli import names
from trivet.cli.bill import table
from trivet.cli.coverage import covered_services
from trivet.cli.invoke import failure_of, report_of
from trivet.cli.screen import size
from trivet.core.billing import MB_MS_PER_GB_S, Tariff, Usage, invoice
from trivet.gateway.__main__ import TABLES
from trivet.settings import Settings

pytestmark = pytest.mark.slow

__all__ = ["shell"]  # a fixture


# ------------------------------------------------------------------------------- bill


def told_of(usages: Mapping[str, Usage]) -> dict[str, object]:
    """The bill as the platform answers it."""
    bill = invoice("2026-11", usages, Tariff())

    def amounts(usage: Usage, cost: Decimal) -> dict[str, object]:
        return {"Requests": usage.requests, "GbSeconds": f"{usage.gb_s:f}", "Cost": f"{cost:f}"}

    return {
        "Month": bill.month,
        "Functions": [{"Name": n.function, **amounts(n.usage, n.cost)} for n in bill.lines],
        "Total": amounts(bill.usage, bill.cost),
        "Due": f"{bill.due:f}",
        "FreeRequestsLeft": bill.free_requests_left,
        "FreeGbSecondsLeft": f"{bill.free_gb_s_left:f}",
    }


def test_a_bill_within_the_free_tier() -> None:
    """One call of 1 ms at 128 MB, and ten of 100 ms at 1 GB, at the tutorial's prices."""
    usages = {"hello": Usage(1, 128), "photos": Usage(10, 10 * 100 * 1024)}
    assert table(told_of(usages)) == [
        "function  requests    GB-s  AWS would charge  free tier left",
        "hello            1  0.0001       $0.00000020  999,989 requests",
        "photos          10  1.0000       $0.00001867  399,998 GB-s",
        "2026-11         11  1.0001       $0.00001887  → $0.00 after free tier",
    ]


def test_a_bill_beyond_the_free_tier() -> None:
    """The tutorial's prices: $0.20 per million requests, $0.0000166667 per GB-second."""
    gb_s = 1_400_000
    usages = {"busy": Usage(3_000_000, gb_s * int(MB_MS_PER_GB_S))}
    # 3 x 0.20 + 1,400,000 x 0.0000166667; less 1 M requests and 400,000 GB-s: 0.40 + 16.6667
    assert table(told_of(usages))[1:] == [
        "busy      3,000,000  1,400,000.0000      $23.93338000  0 requests",
        "2026-11   3,000,000  1,400,000.0000      $23.93338000  → $17.07 after free tier",
    ]


def test_a_month_is_written_as_one(shell: Shell) -> None:
    assert_refused(shell.trivet("bill", "--month", "November"), code=2, says="2026-11")


# ----------------------------------------------------------------------------- invoke

REQUEST = "73824839-5c81-46d3-9e7a-3229c91e80ca"
REPORT = (
    f"REPORT RequestId: {REQUEST}\tDuration: 34.16 ms\tBilled Duration: 72 ms\t"
    "Memory Size: 128 MB\tMax Memory Used: 44 MB\t"
)


def test_a_cold_and_a_warm_report_are_read() -> None:
    cold = report_of(f"START\n{REPORT}Init Duration: 37.19 ms\t\n", REQUEST)
    assert cold is not None
    assert (cold.duration_ms, cold.billed_ms, cold.init_ms) == (34.16, 72, 37.19)
    assert cold.cost == Decimal("0.20") / 1_000_000 + Decimal("0.0000166667") * 9 / 1000
    warm = report_of(REPORT, REQUEST)
    assert warm is not None
    assert warm.init_ms is None


def test_what_a_function_writes_is_no_report_of_its_own() -> None:
    forged = REPORT.replace("72 ms", "1 ms")
    report = report_of(f"{forged}\n{REPORT}\n", REQUEST)
    assert report is not None
    assert report.billed_ms == 72
    assert report_of("nothing", REQUEST) is None


def test_a_timeout_comes_with_the_command_for_a_longer_one() -> None:
    payload = {
        "errorType": "Sandbox.Timedout",
        "errorMessage": "x Task timed out after 3.00 seconds",
    }
    error = failure_of("slow", json.dumps(payload).encode())
    assert "slow failed: Sandbox.Timedout: " in error.message
    assert error.hint.endswith("--function-name slow --timeout 6")
    assert failure_of("odd", b"no JSON").hint == "trivet logs odd"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("-d", "hello"), 1, "the event is not JSON"),
        (("-d", "@/absent.json"), 1, "/absent.json cannot be read"),
        (("-d", "{}"), 1, "no platform is running"),
    ],
)
def test_what_cannot_be_invoked(shell: Shell, words: tuple[str, ...], code: int, says: str) -> None:
    assert_refused(shell.trivet("invoke", "hi", *words), code=code, says=says)


def test_no_json_comes_with_the_json_that_was_meant(shell: Shell) -> None:
    asked = shell.trivet("invoke", "hi", "-d", "it's me")
    assert asked.stderr.splitlines()[1] == """hint: trivet invoke hi -d '"it'"'"'s me"'"""


# --------------------------------------------------------------------------- coverage


def test_coverage_counts_what_the_gateway_serves_against_botocores_own_models() -> None:
    loader = botocore.session.get_session()
    covered = {each.service: each for each in covered_services()}
    assert set(covered) == set(TABLES) - {"trivet"}
    for service, each in covered.items():
        operations = set(loader.get_service_model(service).operation_names)
        assert set(TABLES[service]) <= operations
        assert set(each.here) == set(TABLES[service])
        assert set(each.absent) == operations - set(TABLES[service])
    assert covered["lambda"].count == 91
    assert {"CreateFunction", "Invoke", "ListFunctions"} <= set(covered["lambda"].here)
    assert "CreateCapacityProvider" in covered["lambda"].absent


def test_coverage_is_told_in_numbers_and_in_names(shell: Shell) -> None:
    covered = {each.service: each for each in covered_services()}
    count = len(covered["lambda"].here)
    lines = [line.split() for line in shell.trivet("coverage").stdout.splitlines()]
    assert ["lambda", str(count), "of", "91"] in lines
    told = json.loads(shell.trivet("coverage", "lambda", "--json").stdout)["lambda"]
    assert (told["implemented"], told["operations"]) == (count, 91)
    assert "Invoke" in told["here"]
    assert "  ✓ Invoke" in shell.trivet("coverage", "lambda").stdout.splitlines()
    assert_refused(shell.trivet("coverage", "sqs"), code=1, says="no operation of 'sqs'")


# ------------------------------------------------------------------------- completion


def test_names_are_kept_for_completion(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path))
    names.remember_one(settings, "lost")  # no folder for it: nothing fails
    (tmp_path / "client").mkdir()
    names.remember(settings, ["orders", "hello"])
    names.remember_one(settings, "other")
    names.forget_one(settings, "hello")
    names.forget_one(settings, "absent")
    assert (tmp_path / "client" / "functions").read_text() == "orders\nother\n"


@pytest.mark.parametrize("verb", ["invoke", "rm", "logs"])
def test_a_shell_completes_the_names_of_functions(shell: Shell, verb: str) -> None:
    (shell.data / "client").mkdir(parents=True)
    names.remember(Settings(data=str(shell.data)), ["orders", "other", "hello"])
    shell.variables |= {
        "_TRIVET_COMPLETE": "complete_bash",
        "COMP_WORDS": f"trivet {verb} o",
        "COMP_CWORD": "2",
    }
    assert shell.trivet().stdout.split() == ["orders", "other"]


def test_verbs_complete_without_a_platform_or_a_folder(shell: Shell) -> None:
    shell.variables |= {
        "_TRIVET_COMPLETE": "complete_bash",
        "COMP_WORDS": "trivet dep",
        "COMP_CWORD": "1",
    }
    assert shell.trivet().stdout.split() == ["deploy"]


@pytest.mark.parametrize(("variables", "has_colour"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_colours_unless_somebody_minds(
    shell: Shell, variables: dict[str, str], has_colour: bool
) -> None:
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [BIN / "trivet", "runtime", "list"],
        stdin=theirs,
        stdout=theirs,
        env={"PATH": "/nowhere", "TERM": "xterm", "TRIVET_DATA": str(shell.data), **variables},
    )
    os.close(theirs)
    shown = b""
    with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):
        while chunk := terminal.read(65_536):
            shown += chunk
    assert program.wait() == 0
    assert b"not added" in shown
    assert (b"\x1b[2m" in shown) == has_colour


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1_234, "1.2 kB"), (52_428_800, "52.4 MB")]
)
def test_sizes_as_people_read_them(count: int, text: str) -> None:
    assert size(count) == text
