"""CloudWatch Logs and STS, through the door and the real clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from botocore.exceptions import ClientError
from tests.aws.conftest import ACCESS_KEY, client

from trivet.aws.logs import matcher
from trivet.errors import NotImplementedHere
from trivet.store.logs import LogWriter

AT_MS = 1_795_435_200_000
GROUP = "/aws/lambda/hello"
STREAM = "2026/11/23/[$LATEST]0123456789abcdef0123456789abcdef"


@pytest.fixture
def logs(url: str, tmp_path: Path) -> Any:
    writer = LogWriter(tmp_path / "logs")
    for index, text in enumerate(["START", "ERROR in it", "all well", "END"]):
        writer.add("hello", AT_MS + index, STREAM, "function", "r", text)
    writer.add("hello", AT_MS + 9, "another", "function", "r", "ERROR there")
    writer.add("zebra", AT_MS, "s", "function", "r", "x")
    writer.close()
    return client("logs", url)


def messages(answer: Any) -> list[str]:
    return [event["message"].rstrip("\n") for event in answer["events"]]


def refusal(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, str]:
    found = error.value.response["Error"]
    return found["Code"], found["Message"]


def test_events_are_filtered(logs: Any) -> None:
    def filtered(**options: Any) -> list[str]:
        return messages(logs.filter_log_events(logGroupName=GROUP, **options))

    assert filtered() == ["START", "ERROR in it", "all well", "END", "ERROR there"]
    assert filtered(filterPattern="ERROR") == ["ERROR in it", "ERROR there"]
    assert filtered(startTime=AT_MS + 1, endTime=AT_MS + 2) == ["ERROR in it", "all well"]
    assert filtered(logStreamNames=["another"]) == ["ERROR there"]
    assert filtered(logStreamNamePrefix="2026/") == ["START", "ERROR in it", "all well", "END"]


def test_events_come_in_pages(logs: Any) -> None:
    paginator = logs.get_paginator("filter_log_events")
    pages = list(paginator.paginate(logGroupName=GROUP, PaginationConfig={"PageSize": 2}))
    events = [event for page in pages for event in page["events"]]
    assert len(pages) == 3
    assert len({event["eventId"] for event in events}) == 5
    assert events[0] == {
        "logStreamName": STREAM,
        "timestamp": AT_MS,
        "ingestionTime": AT_MS,
        "message": "START\n",
        "eventId": events[0]["eventId"],
    }


def test_a_stream_is_read_from_either_end(logs: Any) -> None:
    def read(**options: Any) -> Any:
        return logs.get_log_events(logGroupName=GROUP, logStreamName=STREAM, **options)

    assert messages(read()) == ["START", "ERROR in it", "all well", "END"]
    newest = read(limit=2)
    assert messages(newest) == ["all well", "END"]
    older = read(nextToken=newest["nextBackwardToken"])
    assert messages(older) == ["START", "ERROR in it"]
    head = read(startFromHead=True, limit=3)
    assert messages(head) == ["START", "ERROR in it", "all well"]
    rest = read(nextToken=head["nextForwardToken"])
    assert messages(rest) == ["END"]
    end = read(nextToken=rest["nextForwardToken"])
    assert messages(end) == []
    assert end["nextForwardToken"] == rest["nextForwardToken"]
    beginning = read(nextToken=older["nextBackwardToken"])
    assert messages(beginning) == []
    assert beginning["nextBackwardToken"] == older["nextBackwardToken"]
    with pytest.raises(ClientError) as error:
        read(nextToken="nonsense")
    told = "The specified nextToken is invalid."
    assert refusal(error) == ("InvalidParameterException", told)


def test_groups_and_streams_are_described(logs: Any) -> None:
    groups = logs.describe_log_groups()["logGroups"]
    assert [group["logGroupName"] for group in groups] == [GROUP, "/aws/lambda/zebra"]
    arn = f"arn:aws:logs:us-east-1:123456789012:log-group:{GROUP}"
    assert (groups[0]["logGroupArn"], groups[0]["arn"]) == (arn, f"{arn}:*")
    paginator = logs.get_paginator("describe_log_groups")
    pages = list(paginator.paginate(PaginationConfig={"PageSize": 1}))
    assert [len(page["logGroups"]) for page in pages] == [1, 1]
    found = logs.describe_log_groups(logGroupNamePrefix="/aws/lambda/z")["logGroups"]
    assert len(found) == 1
    streams = logs.describe_log_streams(logGroupName=GROUP)["logStreams"]
    assert [stream["logStreamName"] for stream in streams] == [STREAM, "another"]
    newest = logs.describe_log_streams(
        logGroupName=GROUP, orderBy="LastEventTime", descending=True, limit=1
    )
    assert newest["logStreams"][0]["lastEventTimestamp"] == AT_MS + 9
    rest = logs.describe_log_streams(
        logGroupName=GROUP,
        orderBy="LastEventTime",
        descending=True,
        nextToken=newest["nextToken"],
    )
    assert [stream["logStreamName"] for stream in rest["logStreams"]] == [STREAM]


@pytest.mark.parametrize("name", ["/aws/lambda/nobody", "/elsewhere", "/aws/lambda/../hello"])
def test_a_group_that_is_not_there_is_aws_not_found(logs: Any, name: str) -> None:
    for call, options in (
        (logs.filter_log_events, {}),
        (logs.describe_log_streams, {}),
        (logs.get_log_events, {"logStreamName": "s"}),
    ):
        with pytest.raises(logs.exceptions.ResourceNotFoundException) as error:
            call(logGroupName=name, **options)
        told = "The specified log group does not exist."
        assert refusal(error) == ("ResourceNotFoundException", told)
    with pytest.raises(ClientError) as error:
        logs.get_log_events(logGroupName=GROUP, logStreamName="nobody")
    assert refusal(error)[1] == "The specified log stream does not exist."


def test_a_bad_parameter_is_logss_own_error(logs: Any) -> None:
    with pytest.raises(ClientError) as error:
        logs.filter_log_events(logGroupName="a b")
    code, message = refusal(error)
    assert code == "InvalidParameterException"
    assert message.startswith("1 validation error detected: Value 'a b' at 'logGroupName' failed")


@pytest.mark.parametrize(
    ("pattern", "fitting"),
    [
        ("", {"a b", "a c", "b c"}),
        ("a", {"a b", "a c"}),
        ("a b", {"a b"}),
        ('"b c"', {"b c"}),
        ("?a ?c", {"a b", "a c", "b c"}),
        ("c -a", {"b c"}),
        ('-"a b"', {"a c", "b c"}),
    ],
)
def test_a_pattern_of_terms(pattern: str, fitting: set[str]) -> None:
    fits = matcher(pattern)
    assert {line for line in ("a b", "a c", "b c") if fits(line)} == fitting


@pytest.mark.parametrize("pattern", ["{ $.a = 1 }", "[a, b]", "%x%"])
def test_other_patterns_are_refused_in_words(pattern: str) -> None:
    with pytest.raises(NotImplementedHere):
        matcher(pattern)


def test_sts_says_who_calls(url: str) -> None:
    identity = client("sts", url).get_caller_identity()
    del identity["ResponseMetadata"]
    assert identity == {
        "UserId": ACCESS_KEY,
        "Account": "123456789012",
        "Arn": "arn:aws:iam::123456789012:user/trivet",
    }


def test_a_presigned_url_needs_no_headers(url: str) -> None:
    sts = client("sts", url)
    made = sts.generate_presigned_url("get_caller_identity", HttpMethod="GET")
    with urlopen(made) as answer:
        assert b"<Account>123456789012</Account>" in answer.read()
