"""The command line against a running platform, from a file to its bill."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.e2e.conftest import BIN, Running

from trivet.bus import keys

pytestmark = pytest.mark.slow

OWN = f"python3.{sys.version_info.minor}"
NODE = """
export const handler = async (event) => {
  console.log(`for ${event.name}`);
  if (event.httpMethod) return { statusCode: 200, body: "served" };
  return { hello: event.name ?? "World", table: process.env.TABLE };
};
"""
PYTHON = "def handler(event, context):\n    return event['a'] + 1\n"


@pytest.fixture
def name(platform: Running, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a function that is gone after the test."""
    name = f"cli-{os.urandom(4).hex()}"
    yield name
    platform.trivet("rm", name, check=False)


def deployed(platform: Running, *words: str | Path) -> dict[str, Any]:
    told = platform.trivet("deploy", *map(str, words), "--json", check=False)
    assert told.returncode == 0, told.stderr
    record: dict[str, Any] = json.loads(told.stdout)
    return record


def refused(platform: Running, *words: str | Path) -> tuple[str, str]:
    told = platform.trivet(*map(str, words), check=False)
    assert told.returncode != 0, told.stdout
    error, hint = told.stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return error, hint


def test_a_file_becomes_a_function_and_then_changes(
    platform: Running, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "index.mjs"
    file.write_text(NODE)
    words = ("deploy", str(file), "--name", name, "--env", "TABLE=users", "--http", f"/{name}")
    first, second = platform.trivet(*words).stdout.splitlines()
    assert first.startswith(f"  ✓ {name}  nodejs20.x  index.handler  ")
    assert re.search(r"  sha [0-9a-f]{4}…  deployed in \d+\.\d\d s$", first)
    assert second == f"    http      {platform.http_url}/{name}"
    with urllib.request.urlopen(f"{platform.http_url}/{name}") as answer:
        assert answer.read() == b"served"

    again = platform.trivet(*words).stdout.splitlines()
    assert "  unchanged, " in again[0]
    assert again[1] == second
    same = deployed(platform, file, "--name", name)
    assert (same["result"], same["triggers"]) == ("unchanged", [])
    client = platform.client("lambda")
    revision = client.get_function_configuration(FunctionName=name)["RevisionId"]
    deployed(platform, file, "--name", name, "--env", "TABLE=users")
    present = client.get_function_configuration(FunctionName=name)
    assert present["RevisionId"] == revision  # nothing was sent

    file.write_text(NODE.replace("hello:", "bye:"))
    changed = deployed(platform, file, "--name", name, "--memory", "512", "--timeout", "9")
    assert changed["result"] == "updated"
    told = platform.trivet("invoke", name, "-d", '{"name": "Al"}')
    assert json.loads(told.stdout) == {"bye": "Al", "table": "users"}
    present = client.get_function_configuration(FunctionName=name)
    assert (present["MemorySize"], present["Timeout"]) == (512, 9)


def test_a_folder_and_a_zip_of_it_are_the_same_function(
    platform: Running, tmp_path: Path, name: str
) -> None:
    source = tmp_path / "code"
    (source / "lib").mkdir(parents=True)
    (source / "app.py").write_text("from lib.names import handler\n")
    (source / "lib" / "names.py").write_text(PYTHON)
    assert deployed(platform, source, "--name", name)["handler"] == "app.handler"
    assert platform.trivet("invoke", name, "-d", '{"a": 1}').stdout == "2\n"
    package = tmp_path / "code.zip"
    location = platform.client("lambda").get_function(FunctionName=name)["Code"]["Location"]
    package.write_bytes(urllib.request.urlopen(location).read())
    assert deployed(platform, package, "--name", name)["result"] == "unchanged"


def test_what_a_function_tells_is_kept_apart(platform: Running, tmp_path: Path, name: str) -> None:
    (tmp_path / "index.mjs").write_text(NODE)
    deployed(platform, tmp_path / "index.mjs", "--name", name)
    event = tmp_path / "event.json"
    event.write_text('{"name": "Bo"}')
    cold = platform.trivet("invoke", name, "-d", f"@{event}", "--log")
    assert json.loads(cold.stdout) == {"hello": "Bo"}
    lines = cold.stderr.splitlines()
    assert any(line.startswith("  | ") and "for Bo" in line for line in lines)
    assert "  cold (init " in lines[-1]
    assert " billed " in lines[-1]
    warm = platform.trivet("invoke", name)
    assert "  warm  128 MB (peak " in warm.stderr
    assert "for " not in warm.stderr
    assert platform.trivet("invoke", name, "-q").stderr == ""
    told = json.loads(platform.trivet("invoke", name, "--json").stdout)
    assert told["payload"] == {"hello": "World"}
    assert (told["functionError"], told["initMs"]) == (None, None)
    assert told["billedMs"] >= 1


def test_a_function_that_fails_is_exit_code_1(platform: Running, tmp_path: Path, name: str) -> None:
    (tmp_path / "app.py").write_text(PYTHON)
    deployed(platform, tmp_path / "app.py", "--name", name)
    told = platform.trivet("invoke", name, check=False)
    assert told.returncode == 1
    assert json.loads(told.stdout)["errorType"] == "KeyError"
    assert "[ERROR] KeyError" in told.stderr  # the log is shown without being asked for
    assert told.stderr.splitlines()[-2:] == [
        f"error: {name} failed: KeyError: 'a'",
        f"hint: trivet logs {name}",
    ]


def test_an_event_is_accepted_for_later(platform: Running, tmp_path: Path, name: str) -> None:
    (tmp_path / "app.py").write_text(PYTHON)
    deployed(platform, tmp_path / "app.py", "--name", name)
    told = platform.trivet("invoke", name, "-d", '{"a": 1}', "--async", "--json")
    accepted = json.loads(told.stdout)
    assert accepted["statusCode"] == 202
    follower = subprocess.Popen(
        [BIN / "trivet", "logs", name, "--follow", "--filter", "REPORT"],
        env=platform.variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert follower.stdout is not None
        assert accepted["requestId"] in follower.stdout.readline()
    finally:
        follower.kill()
        follower.communicate()


def test_functions_are_listed_and_removed_with_what_leads_to_them(
    platform: Running, tmp_path: Path, name: str
) -> None:
    (tmp_path / "app.py").write_text(PYTHON)
    triggers = ("--http", f"/{name}", "--schedule", "rate(1 day)")
    made = deployed(platform, tmp_path / "app.py", "--name", name, *triggers)["triggers"]
    assert [trigger["kind"] for trigger in made] == ["http", "schedule"]
    row = next(x for x in platform.trivet("ls").stdout.splitlines() if x.startswith(name))
    assert row.split()[1:5] == [OWN, "app.handler", "128", "MB"]
    listed = json.loads(platform.trivet("ls", "--json").stdout)
    assert name in [function["FunctionName"] for function in listed]
    assert name in (platform.data / "client" / "functions").read_text().split()
    removed = json.loads(platform.trivet("rm", name, "--json").stdout)
    assert removed == {"function": name, "triggers": [f"ANY /{name}", "rate(1 day)"]}
    assert name not in platform.trivet("trigger", "list").stdout
    assert name not in platform.trivet("ls").stdout
    assert name not in (platform.data / "client" / "functions").read_text().split()


def test_a_watched_folder_and_a_schedule_come_with_the_function(
    platform: Running, tmp_path: Path, name: str
) -> None:
    (tmp_path / "app.py").write_text(PYTHON)
    inbox = platform.data / f"inbox-{name}"
    inbox.mkdir(mode=0o755)
    options = ("--watch", str(inbox), "--schedule", "rate(5 minutes)")
    told = platform.trivet("deploy", str(tmp_path / "app.py"), "--name", name, *options).stdout
    _, schedule, files = told.splitlines()
    assert schedule.startswith("    schedule  rate(5 minutes)  next ")
    assert files == f"    files     {inbox} → s3:ObjectCreated:*  bucket={inbox.name}"


def test_a_bill_of_what_ran(platform: Running, tmp_path: Path, name: str) -> None:
    (tmp_path / "app.py").write_text(PYTHON)
    deployed(platform, tmp_path / "app.py", "--name", name)
    reports = [
        json.loads(platform.trivet("invoke", name, "-d", '{"a": 1}', "--json").stdout)
        for _ in range(2)
    ]
    month = json.loads(platform.trivet("bill", "--json").stdout)
    line = next(each for each in month["functions"] if each["function"] == name)
    assert line["requests"] == 2
    billed_ms = sum(report["billedMs"] for report in reports)
    assert float(line["gbSeconds"]) == pytest.approx(billed_ms * 128 / 1024 / 1000)
    assert float(line["cost"]) == pytest.approx(sum(float(report["cost"]) for report in reports))
    head, *rows, total = platform.trivet("bill").stdout.splitlines()
    assert head.split()[:2] == ["function", "requests"]
    assert any(row.startswith(name) for row in rows)
    assert total.startswith(month["month"])
    assert platform.trivet("bill", "--check").stdout.startswith("function")
    socket = str(platform.data / "run" / "durable.sock")
    with redis.Redis(unix_socket_path=socket) as durable:
        durable.hincrby(keys.month_bill(name, month["month"]), "mb_ms", 1)
        wrong = platform.trivet("bill", "--check", check=False)
        durable.hincrby(keys.month_bill(name, month["month"]), "mb_ms", -1)
    assert wrong.returncode != 0
    assert f"the bill of {name} is not the sum of the Readings" in wrong.stderr


def test_errors_come_with_the_command_that_mends_them(
    platform: Running, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "app.py"
    file.write_text("def run(event, context): pass\ndef stop(): pass\n")
    error, hint = refused(platform, "deploy", file, "--name", name, "--handler", "app.handler")
    assert error.endswith("app.py does not export 'handler': it has run, stop")
    assert hint.endswith(f"deploy {file} --handler app.run")
    error, hint = refused(platform, "deploy", file, "--name", name, "--runtime", "nodejs24.x")
    assert hint.endswith("runtime add nodejs24.x")
    assert refused(platform, "invoke", name)[1].endswith(" ls")
    assert refused(platform, "rm", name)[1].endswith(" ls")
    assert refused(platform, "deploy", file, "--watch", tmp_path / "absent")[1].endswith("/absent")
    assert refused(platform, "deploy", file, "--memory", "12")[1].endswith("deploy --help")


def test_the_doctor_finds_a_running_platform_well(platform: Running) -> None:
    told = platform.trivet("doctor", check=False)
    assert told.returncode == 0, told.stdout
    assert f"runs on {platform.data}, pid {platform.state['pid']}" in told.stdout
    assert "appendonly yes, appendfsync always, maxmemory-policy noeviction" in told.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)  # it fetches 60 MB
def test_a_runtime_is_added_and_used_from_the_next_start_on(
    start_platform: Callable[..., Running], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("runtimes")
    for place in (folder, *folder.parents):
        if place.owner() == Path.home().owner() and place.stat().st_mode & 0o011 != 0o011:
            place.chmod(place.stat().st_mode | 0o011)
    platform = start_platform(TRIVET_RUNTIMES=str(folder))
    (folder / "index.mjs").write_text("export const handler = async () => process.version")
    deploy = ("deploy", folder / "index.mjs", "--runtime", "nodejs22.x", "--name", "newer")
    assert refused(platform, *deploy)[1] == "hint: trivet runtime add nodejs22.x"
    added = platform.trivet("runtime", "add", "nodejs22.x")
    assert "it is used from the next start on: trivet down; trivet up --detach" in added.stderr
    platform.down()
    platform.up()
    assert deployed(platform, *deploy[1:])["runtime"] == "nodejs22.x"
    assert platform.trivet("invoke", "newer").stdout.startswith('"v22.')
    assert refused(platform, "runtime", "remove", "nodejs22.x")[1].startswith("hint: trivet down")
    platform.down()
    platform.trivet("runtime", "remove", "nodejs22.x")
    assert not (folder / "nodejs22.x").exists()
    platform.up()
