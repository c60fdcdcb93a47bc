"""Trivet's own operations, driven by a client that botocore makes of our model."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.platform.conftest import Call, Echo, zip_of

from trivet.aws.model import load
from trivet.aws.own import OPERATIONS
from trivet.aws.services import Services
from trivet.core.triggers import FileTrigger, TriggerSet
from trivet.errors import FunctionNotFound, Throttled

pytestmark = pytest.mark.anyio

ROLE = "arn:aws:iam::123456789012:role/r"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def function(call: Call) -> str:
    await call(
        "lambda",
        "create_function",
        FunctionName="hello",
        Runtime="python3.11",
        Handler="app.handler",
        Role=ROLE,
        Code={"ZipFile": zip_of(app="def handler(e, c): pass")},
    )
    return "hello"


async def refused(call: Call, operation: str, **settings: Any) -> tuple[str, int, str]:
    with pytest.raises(ClientError) as caught:
        await call("trivet", operation, **settings)
    response = caught.value.response
    error = response["Error"]
    return error["Code"], response["ResponseMetadata"]["HTTPStatusCode"], error["Message"]


async def test_a_schedule_is_kept_described_listed_and_deleted(
    call: Call, function: str, services: Services
) -> None:
    made = await call(
        "trivet",
        "put_schedule",
        Function=f"arn:aws:lambda:us-east-1:123456789012:function:{function}",
        ScheduleExpression="cron(0 9 ? * MON-FRI *)",
        ScheduleExpressionTimezone="Europe/Berlin",
    )
    assert made["Type"] == "schedule"
    assert made["Function"] == function
    assert made["NextTime"] > made["CreationTime"]
    (kept,) = (await services.triggers.all()).schedules
    assert (kept.name, kept.timezone) == (made["Name"], "Europe/Berlin")
    listed = await call("trivet", "list_triggers")
    assert [trigger["Name"] for trigger in listed["Triggers"]] == [made["Name"]]
    deleted = await call("trivet", "delete_trigger", Name=made["Name"])
    assert deleted["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert await services.triggers.all() == TriggerSet()
    kind, status, _ = await refused(call, "delete_trigger", Name=made["Name"])
    assert (kind, status) == ("ResourceNotFoundException", 404)


async def test_putting_the_same_again_changes_nothing_and_another_begins_anew(
    call: Call, function: str, services: Services
) -> None:
    async def put(expression: str) -> str:
        arguments = {"Function": function, "Name": "n", "ScheduleExpression": expression}
        await call("trivet", "put_schedule", **arguments)
        (kept,) = (await services.triggers.all()).schedules
        assert kept.expression == expression
        return kept.id

    first = await put("rate(1 minute)")
    version = await services.triggers.version()
    assert await put("rate(1 minute)") == first
    assert await services.triggers.version() == version
    assert await put("rate(2 minutes)") != first


async def test_a_folder_is_watched_under_its_real_path(
    call: Call, function: str, services: Services, tmp_path: Path
) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "inbox")
    made = await call(
        "trivet", "put_file_trigger", Function=function, Folder=str(tmp_path / "link")
    )
    assert made["Folder"] == str(tmp_path / "inbox")
    (kept,) = (await services.triggers.all()).files
    assert isinstance(kept, FileTrigger)
    assert kept.folder == made["Folder"]
    kind, status, _ = await refused(
        call,
        "put_schedule",
        Function=function,
        Name=made["Name"],
        ScheduleExpression="rate(1 minute)",
    )
    assert (kind, status) == ("ResourceConflictException", 409)


@pytest.mark.parametrize(
    ("operation", "settings", "kind", "words"),
    [
        (
            "put_schedule",
            {"ScheduleExpression": "rate(1 minutes)"},
            "ValidationException",
            "Parameter ScheduleExpression is not valid.",
        ),
        (
            "put_schedule",
            {"ScheduleExpression": "rate(1 minute)", "ScheduleExpressionTimezone": "../../x"},
            "ValidationException",
            "The ScheduleExpressionTimezone is not valid.",
        ),
        (
            "put_schedule",
            {"ScheduleExpression": "rate(1 minute)", "Name": "a b"},
            "ValidationException",
            "1 validation error detected: Value 'a b' at 'name' failed to satisfy constraint: "
            r"Member must satisfy regular expression pattern: [\.\-_A-Za-z0-9]+",
        ),
        (
            "put_schedule",
            {"ScheduleExpression": "rate(1 minute)", "Function": "nobody"},
            "ResourceNotFoundException",
            "Function not found: arn:aws:lambda:us-east-1:123456789012:function:nobody",
        ),
        (
            "put_file_trigger",
            {"Folder": "inbox"},
            "InvalidParameterValueException",
            "A watched folder is named by its absolute path, which 'inbox' is not.",
        ),
        (
            "put_file_trigger",
            {"Folder": "/dev/null"},
            "InvalidParameterValueException",
            "/dev/null is not a folder.",
        ),
    ],
)
async def test_what_cannot_be_is_refused(
    call: Call,
    function: str,
    services: Services,
    operation: str,
    settings: dict[str, Any],
    kind: str,
    words: str,
) -> None:
    given = {"Function": function, **settings}
    assert await refused(call, operation, **given) == (
        kind,
        404 if "nobody" in words else 400,
        words,
    )
    assert await services.triggers.all() == TriggerSet()


async def test_a_folder_that_is_not_seen_is_refused_with_a_way_out(
    call: Call, function: str
) -> None:
    kind, _, words = await refused(
        call, "put_file_trigger", Function=function, Folder="/nowhere/inbox"
    )
    assert kind == "InvalidParameterValueException"
    assert "/nowhere/inbox" in words
    assert "/srv/inbox" in words


async def test_triggers_come_in_pages_and_by_function(call: Call, function: str) -> None:
    for name in ("c", "a", "b"):
        await call(
            "trivet",
            "put_schedule",
            Function=function,
            Name=name,
            ScheduleExpression="rate(1 minute)",
        )
    first = await call("trivet", "list_triggers", MaxItems=2)
    assert [t["Name"] for t in first["Triggers"]] == ["a", "b"]
    second = await call("trivet", "list_triggers", MaxItems=2, Marker=first["NextMarker"])
    assert [t["Name"] for t in second["Triggers"]] == ["c"]
    assert "NextMarker" not in second
    assert (await call("trivet", "list_triggers", Function="other"))["Triggers"] == []


async def test_events_are_accepted_or_refused_one_by_one(
    call: Call, function: str, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo = services.publisher
    assert isinstance(echo, Echo)
    own_id = str(uuid.uuid4())
    real = echo.publish

    async def publish(event: Any, *, once: str = "") -> bool:
        if event.function == "full":
            raise Throttled("Rate Exceeded.")
        if event.function == "nobody":
            raise FunctionNotFound("Function not found: nobody")
        return await real(event, once=once) and once != "twice"

    monkeypatch.setattr(echo, "publish", publish)
    answer = await call(
        "trivet",
        "publish_events",
        Events=[
            {"Function": function, "Payload": '{"n": 1}', "Id": own_id},
            {"Function": "full", "Payload": "1"},
            {"Function": "nobody"},
            {"Function": function, "Payload": "{"},
            {"Function": function, "Once": "twice"},
        ],
    )
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert answer["FailedCount"] == 3
    results = answer["Results"]
    assert results[0] == {"Id": own_id}
    assert [result.get("ErrorCode") for result in results] == [
        None,
        "TooManyRequestsException",
        "ResourceNotFoundException",
        "InvalidRequestContentException",
        None,
    ]
    assert results[4]["Duplicate"]
    (first, _), (second, once) = echo.published
    assert (first.id, first.payload) == (own_id, b'{"n": 1}')
    assert (second.payload, once) == (b"{}", "twice")


async def test_no_more_than_a_thousand_events_come_at_once(call: Call, function: str) -> None:
    kind, status, _ = await refused(call, "publish_events", Events=[{"Function": function}] * 1001)
    assert (kind, status) == ("ValidationException", 400)
    answer = await call("trivet", "publish_events", Events=[{"Function": function}] * 1000)
    assert answer["FailedCount"] == 0
    assert len({result["Id"] for result in answer["Results"]}) == 1000


def test_every_operation_is_in_the_model() -> None:
    assert OPERATIONS.keys() <= load("trivet").operations.keys()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_folder_that_only_stands_in_for_a_closed_one_is_refused(tmp_path: Path) -> None:
    """As the launcher covers a closed home: a folder there is empty, and stays so."""
    home = tmp_path / "home"
    (home / "inbox").mkdir(parents=True)
    program = (
        "import os, sys\n"
        "from trivet.aws.own.folders import reachable\n"
        "from trivet.errors import CallerError\n"
        "from trivet.launcher import kernel\n"
        "assert reachable(sys.argv[1]) == reachable(sys.argv[2]).rpartition('/')[0]\n"
        "kernel.unshare_mounts()\n"
        "kernel.mount('none', '/', None, kernel.MS_REC | kernel.MS_SLAVE)\n"
        "kernel.mount('trivet', sys.argv[1], 'tmpfs', 0)\n"
        "os.mkdir(sys.argv[2])\n"
        "for folder in sys.argv[1:]:\n"
        "    try:\n"
        "        reachable(folder)\n"
        "    except CallerError as error:\n"
        "        print(error.message)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(home), str(home / "inbox")],
        capture_output=True,
        text=True,
        check=True,
    )
    refusals = told.stdout.splitlines()
    assert len(refusals) == 2
    for folder, words in zip((home, home / "inbox"), refusals, strict=True):
        assert words.startswith(f"Trivet sees no folder {folder}. If it is there, it lies below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
async def test_a_closed_folder_is_refused_with_the_command_that_opens_it(
    call: Call, function: str, tmp_path: Path
) -> None:
    (tmp_path / "closed" / "inbox").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o600)
    folder = str(tmp_path / "closed" / "inbox")
    _, _, words = await refused(call, "put_file_trigger", Function=function, Folder=folder)
    assert f"chmod o+x {tmp_path / 'closed'}" in words
