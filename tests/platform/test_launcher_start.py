"""What the launcher settles before it starts a part: folders, listeners, words, waits."""

from __future__ import annotations

import json
import os
import socket
import stat
from itertools import pairwise
from pathlib import Path

import pytest
from tests.platform.launched import has_ended

from trivet.errors import PlatformError, SettingsError
from trivet.launcher import announce, folders, listeners, processes, services
from trivet.launcher.announce import PlatformState
from trivet.launcher.identities import identities
from trivet.launcher.processes import ServiceSpec
from trivet.launcher.refusals import AlreadyUp, PortTaken, Unusable, exit_code
from trivet.launcher.restarts import Restarts, spoken
from trivet.runtimes import Runtime
from trivet.settings import Settings, read_settings

# -------------------------------------------------------------------------- listeners


def test_a_port_in_use_is_named_with_its_holder_and_the_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRIVET_COMMAND", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken) as caught:
            listeners.open_listeners(Settings(aws_port=0, http_port=port))
    assert f"port {port} on 127.0.0.1 is in use by " in caught.value.message
    assert caught.value.message.endswith(f"(pid {os.getpid()})")
    assert caught.value.hint.startswith("TRIVET_HTTP_PORT=0 trivet up")
    assert exit_code(caught.value) == 69


def test_one_port_for_both_listeners_is_refused_in_words() -> None:
    with pytest.raises(PortTaken, match="port 18080 is given to both") as caught:
        listeners.open_listeners(Settings(aws_port=18080, http_port=18080))
    assert caught.value.hint.startswith("TRIVET_HTTP_PORT=0 ")


def test_an_address_that_is_not_this_machines_is_refused() -> None:
    with pytest.raises(PortTaken, match=r"cannot listen on 192\.0\.2\.1, port 0"):
        listeners.open_listeners(Settings(host="192.0.2.1", aws_port=0, http_port=0))


def test_a_refusal_reads_as_those_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    announce.say_refusal(PortTaken("port 1 is in use", hint="try another"))
    assert capsys.readouterr().err == "error: port 1 is in use\nhint: try another\n"


def test_two_listeners_take_two_ports() -> None:
    opened = listeners.open_listeners(Settings(aws_port=0, http_port=0))
    ports = {listener.getsockname()[1] for listener in opened.values()}
    assert list(opened) == ["aws", "http"]
    assert len(ports) == 2
    for listener in opened.values():
        listener.close()


# ---------------------------------------------------------------------------- folders


def test_the_data_folder_is_made_and_locked_once(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path / "new" / "data"))
    folders.make(settings, identities(settings))
    folders.make(settings, identities(settings))
    lock = folders.lock(settings)
    with pytest.raises(AlreadyUp, match=f"pid {os.getpid()}"):
        folders.lock(settings)
    os.close(lock)
    os.close(folders.lock(settings))


def test_state_and_sockets_of_a_killed_platform_are_removed(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path))
    folders.make(settings, None)
    assert not folders.clear_run(settings)
    folders.write_state(settings, "{}")
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(settings.durable_socket)
    (settings.run_path / "gateway.log").touch()
    assert folders.clear_run(settings)
    assert [path.name for path in settings.run_path.iterdir()] == ["gateway.log"]


def test_a_data_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(SettingsError, match="the data folder cannot be used"):
        folders.make(Settings(data=str(tmp_path / "data")), None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can own it for somebody else")
def test_root_does_not_take_over_somebody_elses_data(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path))
    folders.make(settings, identities(settings))
    os.chown(settings.data_path / "durable", 12_345, 12_345)
    with pytest.raises(Unusable, match="durable belongs to uid 12345"):
        folders.make(settings, identities(settings))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root shares the run folder")
def test_in_the_run_folder_valkey_may_only_add(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path))
    who = identities(settings)
    assert who is not None
    folders.make(settings, who)
    status = settings.run_path.stat()
    assert (status.st_uid, status.st_gid) == (0, who.valkey.groups[0])
    assert stat.S_IMODE(status.st_mode) == 0o1731
    assert who.valkey.groups[0] not in {who.gateway.gid, who.supervisor.gid, who.adapters.gid}


# -------------------------------------------------------------------------- processes


def run(spec: ServiceSpec, log: Path) -> tuple[int, str]:
    descriptor = os.open(log, os.O_RDWR | os.O_CREAT)
    try:
        pid = processes.start(spec, log=descriptor)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(descriptor)
    assert has_ended(pid)
    return status, log.read_text()


def test_a_program_starts_with_a_clean_state(tmp_path: Path) -> None:
    script = "ls /proc/self/fd; umask; pwd; ulimit -c; env | cut -d= -f1 | sort"
    spec = ServiceSpec(name="x", argv=("/bin/sh", "-c", script), variables={"ANSWER": "42"})
    inherited = os.open("/", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    status, told = run(spec, tmp_path / "log")
    os.close(inherited)
    words = told.split()
    assert status == 0
    assert words[:8] == ["0", "1", "2", "3", "0027", "/", "0", "ANSWER"]  # 3 is how ls looks
    assert set(words[8:]) - {"PWD", "SHLVL", "_", "OLDPWD"} == {"HOME", "LANG", "PATH"}


def test_a_program_that_is_not_there_is_an_error_and_no_process(tmp_path: Path) -> None:
    spec = ServiceSpec(name="x", argv=("/does/not/exist",))
    with pytest.raises(OSError, match="/does/not/exist"):
        run(spec, tmp_path / "log")


def test_how_a_process_ended_is_said_in_words() -> None:
    assert processes.how_it_ended(9) == "signal 9"
    assert processes.how_it_ended(1 << 8) == "status 1"


# --------------------------------------------------------------------------- restarts


def test_each_early_death_doubles_the_wait_up_to_five_seconds() -> None:
    restarts = Restarts()
    delays = []
    for _ in range(10):
        restarts = restarts.after_death(lived_s=0.1)
        delays.append(restarts.delay_s)
    assert delays == [0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    assert Restarts(10**9).delay_s == 5
    assert spoken(0.2) == "started again in 0.2 s"


def test_a_part_that_is_killed_every_few_seconds_always_comes_back_at_once() -> None:
    restarts = Restarts(count=9)
    for _ in range(50):
        restarts = restarts.after_death(lived_s=3.0)
        assert restarts.delay_s == 0


# ------------------------------------------------------------------------------ words


STATE = PlatformState(
    pid=7,
    started_at="2026-11-23T15:00:00.000+00:00",
    ready_ms=912,
    aws_url="http://127.0.0.1:4566",
    http_url="http://127.0.0.1:8080",
    ports={"aws": 4566, "http": 8080},
    runtimes=(Runtime(name="python3.11", kind="python", program="/python", version="3.11.7"),),
    isolation="L0",
    isolation_level="L0",
    isolation_bits=7,
    valkey="9.1.2",
    lanes={"express": "embedded", "durable": "external"},
)


def test_the_banner_says_where_and_what_and_gives_a_command_that_works() -> None:
    assert announce.banner(STATE) == (
        "  ✓ valkey 9.1.2 embedded   express lane (memory)   durable lane (external)\n"
        "  ✓ runtimes   python3.11 3.11.7\n"
        "  ✓ isolation  L0\n"
        "  ready in 0.9 s    AWS endpoint http://127.0.0.1:4566"
        "    HTTP triggers http://127.0.0.1:8080\n"
        "  try:  curl 'http://127.0.0.1:8080/welcome?name=Alice'\n"
    )
    assert "\x1b[" in announce.banner(STATE, has_colour=True)
    assert json.loads(STATE.to_json())["runtimes"][0]["name"] == "python3.11"


def test_what_a_part_said_cannot_steer_the_terminal() -> None:
    assert announce.one_line("a\x1b[31mb\nc\r\n") == "a [31mb c"


def test_a_refusal_is_one_line_of_json() -> None:
    told = announce.refusal_json(PlatformError("no\nluck", hint="try again"))
    assert "\n" not in told
    assert json.loads(told) == {"error": "no\nluck", "hint": "try again", "exit_code": 70}


# --------------------------------------------------------------------------- servants


def test_a_python_zygote_shows_functions_what_aws_has_installed() -> None:
    python = Runtime(name="python3.11", kind="python", program="/python", version="3.11.7")
    node = Runtime(name="nodejs20.x", kind="node", program="/node", version="20")
    first, second = (
        each.spec.argv for each in services.zygote_specs((python, node), ("/a", "/b"), 7)
    )
    shown = [Path(path) for path in first[first.index("--libraries") + 1].split(":")]
    assert {"botocore", "jmespath", "dateutil", "urllib3", "six.py"} <= {p.name for p in shown}
    assert all(path.exists() for path in shown)
    assert "--libraries" not in second
    assert all(argv[argv.index("--cgroups") + 1] == "/a:/b" for argv in (first, second))
    (bare,) = services.zygote_specs((python,), (), 0)
    assert "--cgroups" not in bare.spec.argv


def test_the_provisioner_gets_what_the_operator_opened_and_no_more(tmp_path: Path) -> None:
    settings = Settings(
        data=str(tmp_path),
        egress="api.example.com 198.51.100.0/24:443",
        egress_allow="10.0.0.0/8:5432 [fd00::/8]",
    )
    argv = services.provisioner_spec(settings).spec.argv
    opened = [after for word, after in pairwise(argv) if word == "--open"]
    assert opened == ["10.0.0.0/8:5432-5432", "198.51.100.0/24:443-443"]
    assert argv[argv.index("--egress") + 1] == "some"
    assert argv[argv.index("--scratch-folder") + 1] == str(tmp_path / "scratch")
    other = services.provisioner_spec(Settings(data="/", egress="none", scratch="memory"))
    assert "--scratch-folder" not in other.spec.argv
    assert other.spec.argv[other.spec.argv.index("--egress") + 1] == "none"
    assert argv[argv.index("--name") + 1] != other.spec.argv[other.spec.argv.index("--name") + 1]
    assert other.without_it


# --------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("egress", "example"),
        ("egress", "internet api.example.com"),
        ("egress_allow", "api.example.com"),
        ("network_range", "8.8.0.0/16"),
        ("network_range", "10.0.0.0/24"),
        ("network_range", "10.0.0.1/16"),
        ("network_range", "fd00::/8"),
        ("service_endpoints", "dynamodb"),
    ],
)
def test_settings_of_the_network_are_read_before_anything_starts(name: str, text: str) -> None:
    with pytest.raises(SettingsError):
        read_settings(flags={name: text}, variables={})


@pytest.mark.parametrize("first", [0, 64_100, 64_103, 4_101, -5, 2**31 - 59_999])
def test_functions_never_run_as_a_service(first: int) -> None:
    with pytest.raises(SettingsError, match="uid"):
        read_settings(flags={"data": "/tmp/x", "first_uid": first}, variables={})


def test_uids_beside_those_of_services_are_usable() -> None:
    for first in (4_100, 64_104):
        assert read_settings(flags={"data": "/tmp/x", "first_uid": first}, variables={})
