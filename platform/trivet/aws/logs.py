"""CloudWatch Logs: the functions' log files, read through AWS's operations.

A function's log group exists once it has written a line, as on AWS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from anyio.to_thread import run_sync

from trivet.errors import NotImplementedHere
from trivet.store.logs import BadToken, LogGroup, LogLine, LogStream

from .refusals import Refused
from .services import Caller, Operation, Services

_PREFIX = "/aws/lambda/"
_TERM = re.compile(r'([?-]?)(?:"((?:[^"\\]|\\.)*)"|(\S+))')
_DESCRIBED = 50  # groups or streams on a page

Item = TypeVar("Item")
Result = TypeVar("Result")


async def filter_log_events(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    group = await _group(services, params)
    names = frozenset(params.get("logStreamNames", ()))
    prefix = params.get("logStreamNamePrefix", "")
    if names and prefix:
        message = "LogStreamNamePrefix and LogStreamNames cannot be specified together."
        raise Refused("InvalidParameterException", message)
    fits = matcher(params.get("filterPattern", ""))

    def wanted(line: LogLine) -> bool:
        if names and line.stream not in names:
            return False
        return line.stream.startswith(prefix) and fits(line.text)

    def read() -> tuple[list[LogLine], str | None]:
        return services.logs.filter(
            group.function,
            start_ms=params.get("startTime", 0),
            # AWS's end is inclusive here.
            end_ms=params["endTime"] + 1 if "endTime" in params else None,
            where=wanted,
            after=params.get("nextToken"),
            limit=params.get("limit", 10_000),
        )

    lines, token = await _reading(read)
    events = [
        {**_event(line), "logStreamName": line.stream, "eventId": line.id}
        for line in sorted(lines, key=_time)
    ]
    return {"events": events, "searchedLogStreams": [], "nextToken": token}


async def get_log_events(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    group = await _group(services, params)
    name = params["logStreamName"]
    streams = await run_sync(services.logs.streams, group.function)
    if all(stream.name != name for stream in streams):
        raise _not_found("The specified log stream does not exist.")
    token = params.get("nextToken", "")
    if token[:2] not in ("", "f/", "b/"):
        raise _bad_token()
    place = token[2:]
    is_forward = token.startswith("f/") if token else bool(params.get("startFromHead"))

    def read() -> list[LogLine]:
        span = {"start_ms": params.get("startTime", 0), "end_ms": params.get("endTime")}
        limit = params.get("limit", 10_000)
        if is_forward:
            after = place or None
            return services.logs.filter(
                group.function, **span, stream=name, after=after, limit=limit
            )[0]
        return services.logs.last(
            group.function, **span, stream=name, before=place or None, limit=limit
        )

    lines = await _reading(read)
    return {
        "events": [_event(line) for line in sorted(lines, key=_time)],
        # The same token again tells a client that it has reached the end.
        "nextForwardToken": f"f/{lines[-1].after if lines else place}",
        "nextBackwardToken": f"b/{lines[0].before if lines else place}",
    }


async def describe_log_groups(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    prefix = params.get("logGroupNamePrefix", "")
    part = params.get("logGroupNamePattern", "").lower()
    groups = await run_sync(services.logs.groups)
    named = [(f"{_PREFIX}{group.function}", group) for group in groups]
    fitting = [
        (name, group) for name, group in named if name.startswith(prefix) and part in name.lower()
    ]
    page, token = _page(fitting, lambda entry: entry[0], params)
    return {
        "logGroups": [_described_group(services, name, group) for name, group in page],
        "nextToken": token,
    }


async def describe_log_streams(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    group = await _group(services, params)
    streams = await run_sync(services.logs.streams, group.function)
    prefix = params.get("logStreamNamePrefix", "")
    by_time = params.get("orderBy") == "LastEventTime"
    if by_time and prefix:
        message = "Cannot order by LastEventTime with a logStreamNamePrefix."
        raise Refused("InvalidParameterException", message)

    def key(stream: LogStream) -> str:
        return f"{stream.last_ms:020}{stream.name}" if by_time else stream.name

    fitting = [stream for stream in streams if stream.name.startswith(prefix)]
    page, token = _page(fitting, key, params)
    arn = _arn(services, f"{_PREFIX}{group.function}")
    return {
        "logStreams": [
            {
                "logStreamName": stream.name,
                "creationTime": stream.first_ms,
                "firstEventTimestamp": stream.first_ms,
                "lastEventTimestamp": stream.last_ms,
                "lastIngestionTime": stream.last_ms,
                "arn": f"{arn}:log-stream:{stream.name}",
                "storedBytes": 0,  # AWS has said 0 for every stream since 2019
            }
            for stream in page
        ],
        "nextToken": token,
    }


def matcher(pattern: str) -> Callable[[str], bool]:
    """What AWS's unstructured filter patterns mean: terms, ?alternatives, -exclusions, "phrases".

    Raises NotImplementedHere for patterns over JSON and columns, and for regular expressions.
    """
    text = pattern.strip()
    if text[:1] in ("{", "[", "%"):
        raise NotImplementedHere("Trivet filters log lines by plain terms only yet.")
    terms: dict[str, list[str]] = {"": [], "?": [], "-": []}
    for sign, phrase, word in _TERM.findall(text):
        terms[sign].append(re.sub(r"\\(.)", r"\1", phrase) if phrase else word)
    all_of, any_of, none_of = terms[""], terms["?"], terms["-"]

    def fits(line: str) -> bool:
        return (
            all(term in line for term in all_of)
            and not any(term in line for term in none_of)
            # As on AWS, required terms make the alternatives void.
            and (bool(all_of) or not any_of or any(term in line for term in any_of))
        )

    return fits


def _page(
    items: list[Item], key: Callable[[Item], str], params: Mapping[str, Any]
) -> tuple[list[Item], str | None]:
    """One page in order, and the token of the next: the key of the last item on this one."""
    descending = bool(params.get("descending"))
    ordered = sorted(items, key=key, reverse=descending)
    token = params.get("nextToken")
    if token is not None:
        beyond = str.__lt__ if descending else str.__gt__
        ordered = [item for item in ordered if beyond(key(item), token)]
    page = ordered[: params.get("limit", _DESCRIBED)]
    return page, key(page[-1]) if len(page) < len(ordered) else None


async def _group(services: Services, params: Mapping[str, Any]) -> LogGroup:
    name = params.get("logGroupName")
    if name is None:
        # An ARN may name the group instead, with ":*" behind it.
        name = params.get("logGroupIdentifier", "").partition(":log-group:")[2].removesuffix(":*")
        name = name or params.get("logGroupIdentifier", "")
    group = None
    if name.startswith(_PREFIX):
        group = await run_sync(services.logs.group, name.removeprefix(_PREFIX))
    if group is None:
        raise _not_found("The specified log group does not exist.")
    return group


async def _reading(read: Callable[[], Result]) -> Result:
    try:
        return await run_sync(read)
    except BadToken:
        raise _bad_token() from None


def _event(line: LogLine) -> dict[str, Any]:
    # On AWS a function's lines come with their line break.
    message = f"{line.text}\n"
    return {"timestamp": line.at_ms, "message": message, "ingestionTime": line.at_ms}


def _time(line: LogLine) -> int:
    return line.at_ms


def _described_group(services: Services, name: str, group: LogGroup) -> dict[str, Any]:
    arn = _arn(services, name)
    return {
        "logGroupName": name,
        "creationTime": group.created_ms,
        "metricFilterCount": 0,
        "arn": f"{arn}:*",
        "storedBytes": group.stored_bytes,
        "logGroupClass": "STANDARD",
        "logGroupArn": arn,
    }


def _arn(services: Services, name: str) -> str:
    place = services.place
    return f"arn:aws:logs:{place.region}:{place.account}:log-group:{name}"


def _not_found(message: str) -> Refused:
    return Refused("ResourceNotFoundException", message)


def _bad_token() -> Refused:
    return Refused("InvalidParameterException", "The specified nextToken is invalid.")


OPERATIONS: Mapping[str, Operation] = {
    "DescribeLogGroups": describe_log_groups,
    "DescribeLogStreams": describe_log_streams,
    "FilterLogEvents": filter_log_events,
    "GetLogEvents": get_log_events,
}
