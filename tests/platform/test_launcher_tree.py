"""The launcher's tree: what it starts and hands out, mends, and ends, with real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.platform.launched import DEADLINE_S, GOOD, Launched, has_ended

from trivet.launcher.hierarchies import survey

pytestmark = pytest.mark.slow


@pytest.fixture
def launched() -> Iterator[Launched]:
    launched = Launched()
    try:
        yield launched
    finally:
        launched.close()


def asked_to_end(launched: Launched, process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return launched.ended(process)


def left_in_run(launched: Launched) -> list[str]:
    """What a platform that ended leaves in the run folder, but its parts' last words."""
    return sorted(path.name for path in launched.run.iterdir() if path.suffix != ".log")


# ----------------------------------------------------------------------------- starting


def test_it_says_what_it_serves_when_all_parts_are_ready(launched: Launched) -> None:
    process = launched.start()
    state = launched.told(process)
    assert state["pid"] == process.pid
    assert state["isolation"] == "L0  own uid, PID namespace; not for hostile code"
    assert state["isolation_level"] == "L0"
    assert state["lanes"] == {"express": "embedded", "durable": "embedded"}
    assert state["valkey"][0].isdigit()
    assert state["runtimes"][0]["kind"] == "python"
    assert state.pop("banner").startswith("  ✓ valkey")
    assert json.loads((launched.run / "platform.json").read_text()) == state
    for name in ("aws", "http"):
        url = urllib.parse.urlsplit(state[f"{name}_url"])
        assert (url.hostname, url.port) == ("127.0.0.1", state["ports"][name])
        socket.create_connection(("127.0.0.1", state["ports"][name]), DEADLINE_S).close()


def test_a_part_gets_its_descriptors_and_variables_and_no_others(launched: Launched) -> None:
    launched.up()
    for name in ("gateway", "supervisor", "adapters"):
        part = launched.event_of(name, "started")
        control = int(part["environment"]["TRIVET_CONTROL_FD"])
        listeners = json.loads(part["listen"] or "{}")
        assert sorted(listeners) == (["aws", "http"] if name == "gateway" else [])
        assert part["descriptors"] == sorted({0, 1, 2, control, *listeners.values()})
        expected = {"PATH", "LANG", "HOME", "TRIVET_CONTROL_FD", "REPORT_TO"}
        assert (
            set(part["environment"]) - {"TRIVET_LISTEN_JSON", "TRIVET_CGROUPS_JSON", "LC_CTYPE"}
            == expected
        )
        assert part["session"] == part["pid"]
    # Its two ends beside the standard three.
    assert len(launched.event_of("zygote", "started")["descriptors"]) == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give parts their own uids")
def test_as_root_each_part_has_its_own_uid_and_all_share_a_group(launched: Launched) -> None:
    launched.up()
    first = launched.settings.service_uid
    for offset, name in enumerate(("gateway", "supervisor", "adapters")):
        ids = launched.event_of(name, "started")["ids"]
        assert ids == [first + offset] * 3 + [first] * 3
    modes = {
        name: (status.st_uid - first, stat.S_IMODE(status.st_mode))
        for name in ("blobs", "logs", "durable")
        if (status := (launched.settings.data_path / name).stat())
    }
    assert modes == {"blobs": (0, 0o711), "logs": (1, 0o2750), "durable": (3, 0o700)}
    status = (launched.run / "durable.sock").stat()
    owner = (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
    assert owner == (first + 3, first, 0o770)


def test_a_part_that_cannot_start_ends_the_rest_with_its_last_words(launched: Launched) -> None:
    process = launched.start({**GOOD, "adapters": "broken"})
    told = launched.told(process)
    assert told["error"].startswith("the platform cannot start: adapters ended (status 1)")
    assert told["error"].endswith(": the moon is in the wrong house")
    assert told["exit_code"] == process.wait(DEADLINE_S) == 70
    assert left_in_run(launched) == ["lock"]


def test_a_part_that_refuses_the_settings_is_not_tried_again(launched: Launched) -> None:
    process = launched.start({**GOOD, "gateway": "refusing"})
    assert launched.told(process)["error"] == "these settings cannot be used"
    assert process.wait(DEADLINE_S) == 78


def test_a_second_platform_on_the_same_data_is_turned_away(launched: Launched) -> None:
    first = launched.up()
    second = launched.start()
    told = launched.told(second)
    assert told["error"] == f"another platform (pid {first.pid}) serves {launched.settings.data}"
    assert second.wait(DEADLINE_S) == 75
    assert (launched.run / "platform.json").exists()


# ------------------------------------------------------------------------------ mending


def test_a_killed_gateway_is_replaced_and_no_caller_is_refused(launched: Launched) -> None:
    process = launched.start()
    port = launched.told(process)["ports"]["http"]
    for _ in range(3):
        gateway = launched.event("gateway", "started")
        os.kill(gateway["pid"], signal.SIGKILL)
        assert has_ended(gateway["pid"])
        socket.create_connection(("127.0.0.1", port), DEADLINE_S).close()
    launched.event("gateway", "started")
    assert launched.count("supervisor", "started") == 1
    lines = [line for line in launched.said().splitlines() if line.startswith("! gateway")]
    assert lines == [
        "! gateway ended (signal 9), started again at once",
        "! gateway ended (signal 9), started again in 0.05 s",
        "! gateway ended (signal 9), started again in 0.1 s",
    ]


def test_with_the_supervisor_go_its_zygote_and_environments(launched: Launched) -> None:
    launched.up()
    environment = launched.event("environment", "started")
    supervisor = launched.event_of("supervisor", "started")
    zygote = launched.event_of("zygote", "started")
    os.kill(supervisor["pid"], signal.SIGKILL)
    assert has_ended(zygote["pid"])
    assert has_ended(environment["pid"])
    successor = launched.event("supervisor", "zygote")
    assert successor["pid"] != supervisor["pid"]
    assert launched.event("environment", "started")["pid"] != environment["pid"]
    assert launched.count("gateway", "started") == 1


def test_a_zygote_that_went_with_its_supervisor_is_not_to_blame(launched: Launched) -> None:
    process = launched.up()
    for _ in range(2):
        supervisor = launched.event_of("supervisor", "started")["pid"]
        os.kill(supervisor, signal.SIGKILL)
        launched.event("supervisor", "zygote")
    os.kill(launched.event_of("zygote", "started")["pid"], signal.SIGKILL)
    launched.event("supervisor", "zygote")
    (told,) = [line for line in launched.said().splitlines() if line.startswith("! zygote")]
    assert told.endswith("ended (signal 9), started again at once")
    assert asked_to_end(launched, process) == 0


def test_a_killed_zygote_alone_is_replaced_and_its_environment_lives(launched: Launched) -> None:
    process = launched.up()
    environment = launched.event("environment", "started")
    zygote = launched.event_of("zygote", "started")
    supervisor = launched.event_of("supervisor", "started")
    os.kill(zygote["pid"], signal.SIGKILL)
    assert launched.event("supervisor", "zygote")["pid"] == supervisor["pid"]
    launched.event("environment", "started")
    os.kill(environment["pid"], 0)  # it lives
    assert asked_to_end(launched, process) == 0
    assert has_ended(environment["pid"])


def test_zygote_and_supervisor_killed_together_leave_no_environment(launched: Launched) -> None:
    launched.up()
    environment = launched.event("environment", "started")
    os.kill(launched.event_of("zygote", "started")["pid"], signal.SIGKILL)
    os.kill(launched.event_of("supervisor", "started")["pid"], signal.SIGKILL)
    assert has_ended(environment["pid"])
    launched.event("supervisor", "zygote")


@pytest.mark.parametrize("lane", ["express", "durable"])
def test_a_killed_server_is_replaced(launched: Launched, lane: str) -> None:
    process = launched.up()
    pid = launched.server_pid(lane)
    os.kill(pid, signal.SIGKILL)
    assert has_ended(pid)
    launched.new_server_pid(lane, pid)
    line = f"! valkey ({lane}) ended (signal 9), started again at once"
    assert line in launched.said().splitlines()
    assert launched.count("gateway", "started") == 1
    assert asked_to_end(launched, process) == 0


# -------------------------------------------------------------------------------- peers


def test_gateway_and_supervisor_are_joined_anew_when_one_of_them_was_killed(
    launched: Launched,
) -> None:
    launched.up()

    def pid(name: str) -> int:
        return int(launched.event_of(name, "started")["pid"])

    def joined(gateway: int, supervisor: int) -> None:
        """Each has heard the other, on a link that nobody else is on."""
        heard = {(gateway, f"supervisor {supervisor}"), (supervisor, f"gateway {gateway}")}
        while heard - {(e["pid"], e["text"]) for e in launched.events if e["event"] == "heard"}:
            launched.wait()

    gateway, supervisor = pid("gateway"), pid("supervisor")
    joined(gateway, supervisor)
    os.kill(gateway, signal.SIGKILL)
    successor = launched.successor("gateway", gateway)
    joined(successor, supervisor)
    os.kill(supervisor, signal.SIGKILL)
    joined(successor, launched.successor("supervisor", supervisor))
    gone = [(e["name"], e["peer"]) for e in launched.events if e["event"] == "peer gone"]
    assert gone[:2] == [("supervisor", "gateway"), ("gateway", "supervisor")]


WITH_PROVISIONER = {**GOOD, "provisioner": "good"}


def test_the_provisioner_serves_the_supervisor_and_ends_with_it(launched: Launched) -> None:
    process = launched.up(WITH_PROVISIONER)
    first = launched.event_of("provisioner", "heard")
    supervisor = launched.event_of("supervisor", "started")["pid"]
    assert first["text"] == f"supervisor {supervisor}"
    assert len(launched.event_of("provisioner", "started")["descriptors"]) == 5
    os.kill(supervisor, signal.SIGKILL)
    assert has_ended(first["pid"])
    second = launched.heard_by_another("provisioner", first["pid"])
    assert second["text"] == f"supervisor {launched.successor('supervisor', supervisor)}"
    os.kill(second["pid"], signal.SIGKILL)
    launched.heard_by_another("provisioner", second["pid"])
    assert launched.count("supervisor", "started") == 2
    assert asked_to_end(launched, process) == 0


@pytest.mark.parametrize("behaviour", ["unusable", "broken"])
def test_a_platform_without_a_provisioner_serves_and_says_what_is_lost(
    launched: Launched, behaviour: str
) -> None:
    process = launched.up({**GOOD, "provisioner": behaviour})
    launched.event_of("provisioner", "started")
    if behaviour == "broken":
        while launched.count("provisioner", "started") < 2:
            launched.wait()
    else:
        launched.until_said("there is no provisioner")
    assert asked_to_end(launched, process) == 0
    lines = [line for line in launched.said().splitlines() if "provisioner" in line]
    if behaviour == "unusable":
        assert lines == ["! there is no provisioner: this kernel has no bridges; nobody misses it"]
    else:
        what = "! provisioner ended (status 1), started again"
        assert lines[0] == f"{what} at once; it said: the moon is in the wrong house"


# ---------------------------------------------------------------------------- isolation


def test_below_the_least_isolation_nothing_is_served(launched: Launched) -> None:
    launched.change(isolation_minimum="L2")
    process = launched.start()
    told = launched.told(process)
    assert told["error"] == (
        "functions would be isolated to L0 only, and L2 is the minimum; they lack mounts of their"
        " own, a network of their own, a filter of system calls (seccomp)"
    )
    assert "TRIVET_ISOLATION_MINIMUM=L0 " in told["hint"]
    assert told["exit_code"] == launched.ended(process) == 78
    assert left_in_run(launched) == ["lock"]


JAILED = {**GOOD, "supervisor": "jailed"}
FALLING = {**GOOD, "supervisor": "falling"}


def test_enough_isolation_is_served_and_told(launched: Launched) -> None:
    launched.change(isolation_minimum="L3")
    process = launched.start(JAILED)
    state = launched.told(process)
    assert (state["isolation_level"], state["isolation_bits"]) == ("L3", 255)
    assert state["isolation"].startswith("L3  own uid, user, PID, mount, network, IPC, UTS and")
    # Only root has a provisioner, and so networks that lead anywhere.
    assert ("no egress" in state["isolation"]) == (os.geteuid() != 0)
    assert asked_to_end(launched, process) == 0


def test_a_zygote_that_comes_back_with_less_ends_a_platform_that_may_not_have_less(
    launched: Launched,
) -> None:
    launched.change(isolation_minimum="L3")
    process = launched.up(FALLING)
    os.kill(launched.event_of("zygote", "started")["pid"], signal.SIGKILL)
    assert launched.ended(process) == 78
    assert "error: functions would be isolated to L1 only, and L3 is" in launched.said()
    assert all(has_ended(pid) for pid in launched.pids())


def test_a_zygote_that_comes_back_with_less_is_told_where_that_may_be(launched: Launched) -> None:
    process = launched.up(FALLING)
    os.kill(launched.event_of("zygote", "started")["pid"], signal.SIGKILL)
    launched.event("supervisor", "zygote")
    launched.event("environment", "started")
    launched.until_said("the isolation of functions is now L1  seccomp, Landlock")
    state = json.loads((launched.run / "platform.json").read_text())
    assert state["isolation_level"] == "L1"
    assert asked_to_end(launched, process) == 0


# ------------------------------------------------------------------------------ cgroups


def bases(launched: Launched) -> list[Path]:
    """Where the supervisor may make cgroups."""
    told = json.loads(
        launched.event_of("supervisor", "started")["environment"]["TRIVET_CGROUPS_JSON"]
    )
    return [Path(path) for path in dict.fromkeys(told["paths"].values())]


def enclosed(launched: Launched, pid: int) -> list[Path]:
    """Cgroups that now hold the process `pid`, which is frozen in them."""
    folders = [base / "100000" for base in bases(launched)]
    for folder in folders:
        folder.mkdir()
        (folder / "cgroup.procs").write_text(str(pid))
    for folder in folders:
        for name, word in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
            if (folder / name).exists():
                (folder / name).write_text(word)
    return folders


with_cgroups = pytest.mark.skipif(
    os.geteuid() != 0 or bool(survey().reason), reason="no cgroups can be made here"
)


@with_cgroups
def test_the_supervisor_gets_cgroups_that_go_with_the_platform(launched: Launched) -> None:
    process = launched.up()
    found = bases(launched)
    owner = launched.settings.service_uid + 1
    assert {base.stat().st_uid for base in found} == {owner}
    for name in ("launcher", "gateway", "supervisor", "zygote"):
        pid = process.pid if name == "launcher" else launched.event_of(name, "started")["pid"]
        memberships = Path(f"/proc/{pid}/cgroup").read_text().replace("\n", "/").split("/")
        assert not any(base.name in memberships for base in found)
    assert asked_to_end(launched, process) == 0
    assert not any(base.exists() for base in found)


@with_cgroups
def test_environments_that_are_frozen_go_with_their_supervisor(launched: Launched) -> None:
    launched.up()
    environment = launched.event("environment", "started")["pid"]
    folders = enclosed(launched, environment)
    supervisor = launched.event_of("supervisor", "started")["pid"]
    os.kill(supervisor, signal.SIGKILL)
    assert has_ended(environment)
    launched.successor("supervisor", supervisor)
    assert not any(folder.exists() for folder in folders)
    # Else it waited for what could not end, until it was killed.
    assert launched.count("zygote", "ended") == 1
    assert all(base.exists() for base in bases(launched))


@with_cgroups
def test_a_frozen_environment_of_a_killed_launcher_ends_with_the_next_one(
    launched: Launched,
) -> None:
    process = launched.up()
    environment = launched.event("environment", "started")["pid"]
    folders = enclosed(launched, environment)
    os.kill(launched.event_of("zygote", "started")["pid"], signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    process.wait(DEADLINE_S)
    os.kill(environment, 0)  # the kernel keeps it
    second = launched.up()
    assert has_ended(environment)
    assert not any(folder.exists() for folder in folders)
    assert asked_to_end(launched, second) == 0


# ------------------------------------------------------------------------------- ending


def test_it_ends_from_the_outside_in_and_leaves_nothing(launched: Launched) -> None:
    process = launched.up()
    launched.event("environment", "started")
    servers = [launched.server_pid(lane) for lane in ("express", "durable")]
    assert asked_to_end(launched, process) == 0
    launched.event("launcher", "ended")
    order = [
        event["name"] for event in launched.events if event["event"] in ("asked to end", "ended")
    ]
    assert order == ["gateway", "adapters", "supervisor", "zygote", "launcher"]
    assert all(has_ended(pid) for pid in [*launched.pids(), *servers])
    assert left_in_run(launched) == ["lock"]


def test_a_second_interrupt_ends_it_at_once(launched: Launched) -> None:
    process = launched.up({**GOOD, "gateway": "stubborn"})
    process.send_signal(signal.SIGINT)
    launched.event("gateway", "asked to end")
    process.send_signal(signal.SIGINT)
    assert launched.ended(process) == 0
    assert all(has_ended(pid) for pid in launched.pids())


def test_a_killed_launcher_takes_everything_with_it(launched: Launched) -> None:
    process = launched.up()
    launched.event("environment", "started")
    servers = [launched.server_pid(lane) for lane in ("express", "durable")]
    process.send_signal(signal.SIGKILL)
    process.wait(DEADLINE_S)
    assert all(has_ended(pid) for pid in [*launched.pids(), *servers])
    assert (launched.run / "platform.json").exists()
    # The next one clears up and serves, on the very same ports if asked to.
    assert asked_to_end(launched, launched.up()) == 0
    assert left_in_run(launched) == ["lock"]


# ----------------------------------------------------------------------- what it may not


def test_the_launcher_loads_the_standard_library_and_its_own_few_modules() -> None:
    program = (
        "import sys, trivet.launcher.__main__\n"
        "from trivet.launcher import embedded, services\n"
        "assert embedded.bundled_server() and services.workers_root()\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(names - sys.stdlib_module_names - {'__main__'}))\n"
        "print('asyncio' in sys.modules)\n"
    )
    told = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split("\n")[:2] == ["trivet trivet_worker", "False"]
