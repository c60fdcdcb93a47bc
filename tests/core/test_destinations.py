"""Destinations: which ARNs name one, and the records they get."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trivet.core import retries
from trivet.core.arns import Place
from trivet.core.destinations import (
    MAX_RECORD_BYTES,
    Destination,
    NotServed,
    RecordTooLarge,
    bus_arn,
    bus_entry,
    parse_destination,
    record,
)

PLACE = Place("eu-west-1", "123456789012")
FUNCTION = "arn:aws:lambda:eu-west-1:123456789012:function:orders"
BUS = "arn:aws:events:eu-west-1:123456789012:event-bus/default"
AT_MS = 1_795_442_400_007  # 2026-11-23T14:00:00.007Z

FAILED: dict[str, Any] = {
    "request_id": "6f0c8d5e-0000-4000-8000-000000000000",
    "condition": retries.RETRIES_EXHAUSTED,
    "invoke_count": 3,
    "at_ms": AT_MS,
    "request": b'{"order": 7}',
    "response": b'{"errorType":"ValueError"}',
    "function_error": "Unhandled",
}


def recorded(**settings: Any) -> bytes:
    return record(PLACE, "orders", **{**FAILED, **settings})


def strictly(text: bytes) -> Any:
    """As any reader of JSON takes it, who knows no NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text.decode(), parse_constant=refuse)


# -------------------------------------------------------------------------------------- ARNs


@pytest.mark.parametrize(
    ("arn", "destination"),
    [
        (FUNCTION, Destination("function", "orders")),
        (f"{FUNCTION}:$LATEST", Destination("function", "orders")),
        (BUS, Destination("bus", "default")),
    ],
)
def test_functions_and_the_bus_of_this_place_are_destinations(
    arn: str, destination: Destination
) -> None:
    assert parse_destination(arn, PLACE) == destination


def test_the_arn_of_a_bus_names_it() -> None:
    assert bus_arn(PLACE, "default") == BUS


@pytest.mark.parametrize(
    ("arn", "words"),
    [
        ("arn:aws:sqs:eu-west-1:123456789012:queue", "SQS"),
        ("arn:aws:sns:eu-west-1:123456789012:topic", "SNS"),
        ("arn:aws:s3:::bucket", "S3"),
        ("kafka://topic", "Kafka"),
    ],
)
def test_what_aws_has_beside_them_is_refused_with_what_is_here(arn: str, words: str) -> None:
    with pytest.raises(NotServed) as error:
        parse_destination(arn, PLACE)
    assert str(error.value) == (
        f"Destinations in {words}. Records go to functions and to the event bus 'default'"
    )


@pytest.mark.parametrize(
    "arn",
    [
        "",
        "orders",
        "arn:aws:lambda",
        FUNCTION.replace("eu-west-1", "us-east-1"),
        FUNCTION.replace("123456789012", "999999999999"),
        FUNCTION.replace("arn:aws:", "arn:aws-cn:"),
        FUNCTION.replace(":lambda:", ":iam:"),
        FUNCTION.replace(":function:", ":layer:"),
        f"{FUNCTION}:7",
        f"{FUNCTION}:$LATEST:x",
        f"{FUNCTION[:-6]}",
        BUS.replace("default", "mine"),
        BUS.replace("event-bus/default", "rule/default"),
        f"{BUS}\n",
    ],
)
def test_other_arns_name_no_destination(arn: str) -> None:
    with pytest.raises(ValueError, match=r"(?s)\barn:|ARN") as error:
        parse_destination(arn, PLACE)
    assert not isinstance(error.value, NotServed)


# ----------------------------------------------------------------------------------- records


def test_a_failure_is_recorded_as_aws_writes_it() -> None:
    assert recorded() == (
        b'{"version":"1.0","timestamp":"2026-11-23T14:00:00.007Z","requestContext":'
        b'{"requestId":"6f0c8d5e-0000-4000-8000-000000000000",'
        b'"functionArn":"arn:aws:lambda:eu-west-1:123456789012:function:orders:$LATEST",'
        b'"condition":"RetriesExhausted","approximateInvokeCount":3},'
        b'"requestPayload":{"order": 7},'
        b'"responseContext":{"statusCode":200,"executedVersion":"$LATEST",'
        b'"functionError":"Unhandled"},'
        b'"responsePayload":{"errorType":"ValueError"}}'
    )


def test_a_success_has_no_error() -> None:
    told = strictly(
        recorded(condition=retries.SUCCESS, invoke_count=1, response=b"null", function_error=None)
    )
    assert told["requestContext"]["condition"] == "Success"
    assert told["responseContext"] == {"statusCode": 200, "executedVersion": "$LATEST"}
    assert told["responsePayload"] is None


def test_a_function_that_never_ran_answered_nothing() -> None:
    told = strictly(recorded(condition=retries.ZERO_CONCURRENCY, invoke_count=0, response=None))
    assert told["requestContext"]["condition"] == "ZeroReservedConcurrency"
    assert told["requestContext"]["approximateInvokeCount"] == 0
    assert set(told) == {"version", "timestamp", "requestContext", "requestPayload"}


def test_a_poisonous_event_is_told_in_a_word_of_aws() -> None:
    told = strictly(recorded(condition=retries.POISON))
    assert told["requestContext"]["condition"] == "RetriesExhausted"


@pytest.mark.parametrize(
    "payload",
    [
        b" {\n} ",
        b'{"a":1,"a":2}',
        b"1.00",
        b"9" * 10_000,  # longer than Python reads a number
        b"1e999",
        b'"\\ud800"',  # half a pair
        '"ü€😀"'.encode(),
    ],
)
def test_json_goes_into_a_record_byte_by_byte(payload: bytes) -> None:
    whole = recorded(request=payload, response=payload)
    assert whole.count(b'Payload":' + payload) == 2
    json.loads(whole.decode(), parse_int=str)


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"NaN", "NaN"),
        (b'{"a": -Infinity}', '{"a": -Infinity}'),
        (b"", ""),
        (b"1,2", "1,2"),
        (b'1,"requestContext":{}', '1,"requestContext":{}'),
        (b'{"a":1}}', '{"a":1}}'),
        (b'"\n"', '"\n"'),
        (b'"\xff"', '"�"'),
        (b'"\xed\xa0\x80"', '"���"'),  # half a pair that was never escaped
        ("\ufeff{}".encode(), "\ufeff{}"),
        ("{}".encode("utf-16"), "��{\x00}\x00"),
        (b"[" * 100_000 + b"]" * 100_000, "[" * 100_000 + "]" * 100_000),
    ],
)
def test_what_is_no_json_is_told_as_its_text(payload: bytes, text: str) -> None:
    told = strictly(recorded(request=payload, response=payload))
    assert (told["requestPayload"], told["responsePayload"]) == (text, text)
    assert told["requestContext"]["condition"] == "RetriesExhausted"


def test_a_record_is_no_larger_than_an_event_may_be() -> None:
    room = MAX_RECORD_BYTES - len(recorded(request=b'""'))
    assert len(recorded(request=b'"%b"' % (b"x" * room))) == MAX_RECORD_BYTES
    for request in (b'"%b"' % (b"x" * (room + 1)), b"\0" * (room // 2)):
        with pytest.raises(RecordTooLarge) as error:
            recorded(request=request)
        assert str(error.value).endswith("bytes is over 1048576")
    with pytest.raises(RecordTooLarge):
        recorded(response=b'"%b"' % (b"x" * 6_000_000))


# ----------------------------------------------------------------------------- events on a bus


@pytest.mark.parametrize(
    ("condition", "result"),
    [(retries.SUCCESS, "Success"), (retries.EVENT_AGE_EXCEEDED, "Failure")],
)
def test_a_record_on_a_bus_is_the_detail_of_an_event(condition: str, result: str) -> None:
    inner = recorded(condition=condition)
    entry = bus_entry(
        PLACE, "orders", "default", inner, condition=condition, event_id="e-1", at_ms=AT_MS + 990
    )
    assert strictly(entry) == {
        "version": "0",
        "id": "e-1",
        "detail-type": f"Lambda Function Invocation Result - {result}",
        "source": "lambda",
        "account": "123456789012",
        "time": "2026-11-23T14:00:00Z",
        "region": "eu-west-1",
        "resources": [BUS, f"{FUNCTION}:$LATEST"],
        "detail": strictly(inner),
    }
    assert entry.endswith(b'"detail":' + inner + b"}")


def test_a_record_that_only_just_fits_is_too_large_for_a_bus() -> None:
    room = MAX_RECORD_BYTES - len(recorded(request=b'""'))
    inner = recorded(request=b'"%b"' % (b"x" * room))
    with pytest.raises(RecordTooLarge):
        bus_entry(
            PLACE, "orders", "default", inner, condition="Success", event_id="e-1", at_ms=AT_MS
        )
