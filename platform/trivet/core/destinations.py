"""Destinations: who is told how an asynchronous event ended, and the record that they get.

Records and events have AWS's form. A payload goes into them byte by byte as it was, so that what
a function said is what a destination reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn

from trivet.core.arns import LATEST, Place, parse_function_ref
from trivet.core.retries import SUCCESS, told

MAX_RECORD_BYTES = 1_048_576
"""What an asynchronous invocation and an event on a bus may hold: records are both."""

DEFAULT_BUS = "default"

_MEMBERS = 6  # of an ARN, the last of which may hold colons of its own

_NOT_SERVED = {
    "s3": "Destinations in S3",
    "sns": "Destinations in SNS",
    "sqs": "Destinations in SQS",
    "kafka": "Destinations in Kafka",
}


class NotServed(ValueError):
    """A destination that AWS has and Trivet has not; the message says what Trivet has."""


class RecordTooLarge(Exception):
    """A record cannot be delivered: it is over MAX_RECORD_BYTES."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A function or an event bus of this account and region."""

    kind: Literal["function", "bus"]
    name: str


def parse_destination(arn: str, place: Place) -> Destination:
    """The destination that `arn` names; whether a function of that name exists is not asked.

    Raises NotServed, and ValueError for an ARN that names no destination in this place.
    """
    if arn.startswith("kafka://"):
        raise _not_served("kafka")
    members = arn.split(":", _MEMBERS - 1)
    if len(members) < _MEMBERS or members[0] != "arn":
        raise ValueError(f"'{arn}' is not an ARN")
    _, partition, service, region, account, resource = members
    if service in _NOT_SERVED:
        raise _not_served(service)
    if (partition, region, account) != ("aws", place.region, place.account):
        raise ValueError(f"{arn} is not in this account and region")
    if service == "lambda":
        return _function(arn, resource)
    if service == "events":
        return _bus(arn, resource)
    raise ValueError(f"{arn} is neither a function nor an event bus")


def bus_arn(place: Place, name: str) -> str:
    return f"arn:aws:events:{place.region}:{place.account}:event-bus/{name}"


def record(
    place: Place,
    function: str,
    *,
    request_id: str,
    condition: str,
    invoke_count: int,
    at_ms: int,
    request: bytes,
    response: bytes | None,
    function_error: str | None = None,
    version: str = LATEST,
) -> bytes:
    """How an event of `function` ended, as JSON.

    `condition` as `core/retries.py` has it. `at_ms`: now, since the Unix epoch. `request` and
    `response` are JSON; `response` is None if the function never answered, and then the record
    has no member of it. What is no JSON (a function can answer NaN) is told as a string of its
    text. Raises RecordTooLarge.
    """
    _check_size(len(request) + len(response or b""))  # before either is looked at
    head: dict[str, Any] = {
        "version": "1.0",
        "timestamp": _instant(at_ms, "milliseconds"),
        "requestContext": {
            "requestId": request_id,
            "functionArn": place.function_arn(function, LATEST),
            "condition": told(condition),
            "approximateInvokeCount": invoke_count,
        },
    }
    payloads = [b'"requestPayload":%b' % _as_json(request)]
    if response is not None:
        context: dict[str, Any] = {"statusCode": 200, "executedVersion": version}
        if function_error is not None:
            context["functionError"] = function_error
        payloads.append(b'"responseContext":%b' % _compact(context))
        payloads.append(b'"responsePayload":%b' % _as_json(response))
    return _joined(head, *payloads)


def bus_entry(
    place: Place,
    function: str,
    bus: str,
    record: bytes,
    *,
    condition: str,
    event_id: str,
    at_ms: int,
) -> bytes:
    """`record` as an event on the bus of this name, as JSON.

    `event_id` is a UUID of its own, `at_ms` since the Unix epoch. Raises RecordTooLarge.
    """
    result = "Success" if condition == SUCCESS else "Failure"
    head: dict[str, Any] = {
        "version": "0",
        "id": event_id,
        "detail-type": f"Lambda Function Invocation Result - {result}",
        "source": "lambda",
        "account": place.account,
        "time": _instant(at_ms, "seconds"),
        "region": place.region,
        "resources": [bus_arn(place, bus), place.function_arn(function, LATEST)],
    }
    return _joined(head, b'"detail":%b' % record)


def _function(arn: str, resource: str) -> Destination:
    ref = parse_function_ref(arn)
    if ref is None or not resource.startswith("function:"):
        raise ValueError(f"{arn} names no function")
    if ref.qualifier not in (None, LATEST):
        raise ValueError(f"{arn} names a version that does not exist")
    return Destination("function", ref.name)


def _bus(arn: str, resource: str) -> Destination:
    kind, _, name = resource.partition("/")
    if kind != "event-bus" or name != DEFAULT_BUS:
        raise ValueError(f"{arn} names no event bus: there is only '{DEFAULT_BUS}'")
    return Destination("bus", name)


def _not_served(service: str) -> NotServed:
    return NotServed(
        f"{_NOT_SERVED[service]}. Records go to functions and to the event bus '{DEFAULT_BUS}'"
    )


def _joined(head: Mapping[str, Any], *members: bytes) -> bytes:
    """An object of `head` and of members that are JSON already."""
    text = b",".join((_compact(head)[:-1], *members)) + b"}"
    _check_size(len(text))
    return text


def _check_size(size: int) -> None:
    if size > MAX_RECORD_BYTES:
        raise RecordTooLarge(f"a record of {size} bytes is over {MAX_RECORD_BYTES}")


def _as_json(payload: bytes) -> bytes:
    """`payload` if it is JSON, a string of it otherwise. Half a surrogate pair is JSON."""
    try:
        _READER.decode(payload.decode())
    except (ValueError, RecursionError):  # nested that deep, hardly anybody could read it
        return _compact(payload.decode(errors="replace"))
    return payload


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a value of JSON")


# Numbers stay text: as values they could be too long to be read.
_READER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse_constant)
_WRITER = json.JSONEncoder(separators=(",", ":"))


def _compact(value: Any) -> bytes:
    return _WRITER.encode(value).encode()


def _instant(at_ms: int, precision: str) -> str:
    """ "2026-11-23T14:00:00.123Z", or without the fraction."""
    # From whole seconds: a float of both would round some milliseconds away.
    instant = datetime.fromtimestamp(at_ms // 1_000, UTC).replace(microsecond=at_ms % 1_000 * 1_000)
    return instant.isoformat(timespec=precision).replace("+00:00", "Z")
