"""trivet invoke: run a function once; its result to stdout, all that is about it to stderr."""

from __future__ import annotations

import base64
import json
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivet.cli import names
from trivet.cli.door import Door, Refused, named
from trivet.cli.options import Data, Json, Quiet
from trivet.cli.running import require_running
from trivet.cli.screen import DIM, command, harmless, paint, say
from trivet.errors import CallerError, FunctionNotFound, TrivetError
from trivet.settings import read_settings

if TYPE_CHECKING:
    from decimal import Decimal

# The longest that a function may run, and some time to wait for room before it.
PATIENCE_S = 900 + 60

EXIT_FUNCTION_ERROR = 1


@dataclass(frozen=True, slots=True)
class Report:
    """What a REPORT line says."""

    duration_ms: float
    billed_ms: int
    memory_mb: int
    peak_mb: int
    init_ms: float | None  # None: the environment was warm

    @property
    def cost(self) -> Decimal:
        """In dollars, the free tier left aside."""
        from trivet.core.billing import Tariff, Usage

        return Tariff().cost(Usage(1, self.memory_mb * self.billed_ms))


class FunctionFailed(TrivetError):
    """The function ran, or began to, and answered with an error."""

    exit_code = EXIT_FUNCTION_ERROR


def invoke(
    name: Annotated[
        str,
        typer.Argument(help="Name or ARN of the function.", autocompletion=names.complete_function),
    ],
    payload: Annotated[
        str, typer.Option("--payload", "-d", metavar="JSON|@FILE|-", help="The event.")
    ] = "{}",
    is_async: Annotated[
        bool, typer.Option("--async", help="Return as soon as it is accepted.")
    ] = False,
    log: Annotated[bool, typer.Option("--log", help="Show what it wrote.")] = False,
    data: Data = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a function: trivet invoke hi -d '{"name": "Alice"}'

    Exit code 1 says that the function failed.
    """
    settings = read_settings(flags={"data": data})
    function = named(name).name
    event = _event(function, payload)
    door = Door(settings, require_running(settings))
    answer = _ask(door, name, event, is_async)
    if is_async:
        _tell_accepted(function, answer, quiet=quiet, as_json=as_json)
        return
    result: bytes = answer["Payload"].read()
    text = base64.b64decode(answer.get("LogResult", "")).decode(errors="replace")
    request_id = answer["ResponseMetadata"]["RequestId"]
    report = report_of(text, request_id)
    error = answer.get("FunctionError", "")
    if as_json:
        print(json.dumps(_record(answer, result, text, report)))
    else:
        _print_result(result)
        if log or error:
            for line in text.splitlines():
                say(f"  {paint('|', DIM, stream=sys.stderr)} {harmless(line.expandtabs(2))}")
        if not quiet:
            say(f"  {_summary(report, request_id)}")
    if error:
        raise failure_of(function, result)


def _event(function: str, payload: str) -> bytes:
    """What the option says, as JSON. Raises CallerError."""
    if payload == "-":
        event = sys.stdin.buffer.read()
    elif payload.startswith("@"):
        try:
            event = Path(payload[1:]).read_bytes()
        except OSError as error:
            folder = shlex.quote(str(Path(payload[1:]).parent))
            message = f"{payload[1:]} cannot be read: {error.strerror}"
            raise CallerError(message, hint=f"ls -l {folder}") from error
    else:
        event = payload.encode(errors="surrogateescape")
    try:
        json.loads(event)
    except ValueError as error:
        text = event.decode(errors="replace")
        example = json.dumps(text) if len(text) < _SHORT else '{"key": "value"}'
        hint = f"{command()} invoke {function} -d {shlex.quote(example)}"
        raise CallerError(f"the event is not JSON: {error}", hint=hint) from error
    return event


def _ask(door: Door, name: str, event: bytes, is_async: bool) -> Mapping[str, Any]:
    kind = "Event" if is_async else "RequestResponse"
    # Once: a function that runs twice may do twice what it does.
    api = door.client("lambda", patience_s=PATIENCE_S, attempts=1)
    try:
        with door.answers():
            answer: Mapping[str, Any] = api.invoke(
                FunctionName=name,
                Payload=event,
                InvocationType=kind,
                LogType="None" if is_async else "Tail",
            )
    except Refused as error:
        if error.kind != FunctionNotFound.error_type:
            raise
        raise FunctionNotFound(f"there is no function '{name}'", hint=f"{command()} ls") from error
    return answer


# -------------------------------------------------------------------------- telling

_SHORT = 60

_REPORT = re.compile(
    r"Duration: (?P<duration>[\d.]+) ms\s+Billed Duration: (?P<billed>\d+) ms\s+"
    r"Memory Size: (?P<memory>\d+) MB\s+Max Memory Used: (?P<peak>\d+) MB"
    r"(?:\s+Init Duration: (?P<init>[\d.]+) ms)?"
)


def report_of(log: str, request_id: str) -> Report | None:
    """The platform's REPORT, which is the last line; a function may write what looks like one."""
    begin = f"REPORT RequestId: {request_id}"
    lines = [line for line in log.splitlines() if line.startswith(begin)]
    match = _REPORT.search(lines[-1]) if lines else None
    if match is None:
        return None
    return Report(
        duration_ms=float(match["duration"]),
        billed_ms=int(match["billed"]),
        memory_mb=int(match["memory"]),
        peak_mb=int(match["peak"]),
        init_ms=float(match["init"]) if match["init"] else None,
    )


def _summary(report: Report | None, request_id: str) -> str:
    if report is None:
        return request_id
    start = "warm" if report.init_ms is None else f"cold (init {report.init_ms:g} ms)"
    return (
        f"{report.duration_ms:g} ms  billed {report.billed_ms} ms  {start}  "
        f"{report.memory_mb} MB (peak {report.peak_mb})  ${report.cost:.8f}"
    )


def _print_result(result: bytes) -> None:
    """As it is for whoever reads it; on a terminal, without what could steer that."""
    if sys.stdout.isatty():
        lines = result.decode(errors="replace").splitlines() or [""]
        print("\n".join(map(harmless, lines)), flush=True)
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(result + b"\n")
        sys.stdout.buffer.flush()


def _tell_accepted(function: str, answer: Mapping[str, Any], *, quiet: bool, as_json: bool) -> None:
    request_id = answer["ResponseMetadata"]["RequestId"]
    if as_json:
        print(json.dumps({"statusCode": answer["StatusCode"], "requestId": request_id}))
    elif not quiet:
        say(f"  ✓ accepted for {function}, request {request_id}")


def _record(
    answer: Mapping[str, Any], result: bytes, log: str, report: Report | None
) -> dict[str, Any]:
    try:
        payload = json.loads(result)
    except ValueError:
        payload = result.decode(errors="replace")
    return {
        "statusCode": answer["StatusCode"],
        "requestId": answer["ResponseMetadata"]["RequestId"],
        "functionError": answer.get("FunctionError"),
        "payload": payload,
        "log": log,
        "durationMs": report and report.duration_ms,
        "billedMs": report and report.billed_ms,
        "initMs": report and report.init_ms,
        "cost": str(report.cost) if report else None,
    }


def failure_of(function: str, result: bytes) -> FunctionFailed:
    try:
        told = json.loads(result)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        told = {}
    kind, message = str(told.get("errorType", "error")), str(told.get("errorMessage", ""))
    hint = f"{command()} logs {function}"
    if late := _TIMED_OUT.search(message):
        limit_s = min(900, 2 * max(1, round(float(late[1]))))
        change = "aws lambda update-function-configuration"
        hint = f"{command()} {change} --function-name {function} --timeout {limit_s}"
    text = f"{kind}: {message}" if message else kind
    return FunctionFailed(f"{function} failed: {text}", hint=hint)


_TIMED_OUT = re.compile(r"Task timed out after ([\d.]+) seconds")
