"""Attacks on the machine's supplies: memory, processes, files, space, and what outlives a kill."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.jail import jails
from tests.jail.jails import HANDLERS, Attack, Host, Jail, Spec, needs_root
from tests.workers import driver

from trivet.launcher import hierarchies
from trivet.supervisor.cgroups import Cgroup, CgroupTree
from trivet_worker import wire

_SPECS = [
    pytest.param(Spec("python", as_user), id=str(Spec("python", as_user)))
    for as_user in ((False, True) if os.geteuid() == 0 else (True,))
]
both = pytest.mark.parametrize("jail", _SPECS, indirect=True)

_FORKS = 200
_TAKEN_MB = 200


def _attack(function: str, module: str = "processes", **arguments: Any) -> Attack:
    return Attack(function, module, function, 0, given=lambda world: arguments)


def _on_the_host(code: str, *, files: int = 1024, **options: Any) -> subprocess.Popen[bytes]:
    """The same attack without a jail, by an ordinary process of this machine."""

    def settle() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    return subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(HANDLERS)!r}); {code}"],
        stdout=subprocess.PIPE,
        preexec_fn=settle,
        **options,
    )


# ------------------------------------------------------------------------------ rlimits


@both
def test_descriptors_run_out(jail: Jail) -> None:
    answer = jail.attempt(_attack("open_many", count=1_500))
    assert (answer["escaped"], answer["errno"]) == (False, errno.EMFILE)


def test_elsewhere_descriptors_do_not_run_out() -> None:
    with _on_the_host("import processes; processes.open_many(1_500)", files=4_096) as process:
        assert process.wait(driver.DEADLINE_S) == 0


@both
def test_waiting_signals_run_out(jail: Jail) -> None:
    answer = jail.attempt(_attack("queue_signals", count=2_000))
    assert (answer["escaped"], answer["errno"]) == (False, errno.EAGAIN)


def test_elsewhere_more_signals_may_wait() -> None:
    with _on_the_host("import processes; processes.queue_signals(2_000)") as process:
        assert process.wait(driver.DEADLINE_S) == 0


@both
@pytest.mark.parametrize(
    ("name", "value"),
    [("RLIMIT_NOFILE", 4_096), ("RLIMIT_CORE", 1 << 20), ("RLIMIT_SIGPENDING", 4_096)],
)
def test_a_limit_cannot_be_raised(jail: Jail, name: str, value: int) -> None:
    answer = jail.attempt(_attack("raise_limit", "identity", name=name, value=value))
    assert not answer["escaped"], answer


def test_elsewhere_a_limit_is_higher() -> None:
    code = "import identity; assert identity.raise_limit('RLIMIT_NOFILE', 4_096)[1] >= 4_096"
    with _on_the_host(code, files=4_096) as process:
        assert process.wait(driver.DEADLINE_S) == 0


# ------------------------------------------------------------------------------- space


@both
def test_tmp_is_full_where_it_was_to_be(jail: Jail) -> None:
    answer = jail.attempt(_attack("fill_tmp", "files", mb=32), tmp_mb=16)
    assert (answer["escaped"], answer["errno"]) == (False, errno.ENOSPC)


@both
def test_a_larger_tmp_takes_it(jail: Jail) -> None:
    answer = jail.attempt(_attack("fill_tmp", "files", mb=32), tmp_mb=48)
    assert answer["escaped"], answer


@both
def test_files_without_content_run_out(jail: Jail) -> None:
    answer = jail.attempt(_attack("exhaust_inodes", "files", most=2_500), tmp_mb=16)
    assert (answer["escaped"], answer["errno"]) == (False, errno.ENOSPC)


@both
def test_a_larger_tmp_takes_more_files(jail: Jail) -> None:
    answer = jail.attempt(_attack("exhaust_inodes", "files", most=2_500), tmp_mb=32)
    assert answer["escaped"], answer


# ------------------------------------------------------------------------ what is left


@both
def test_daemons_end_with_their_environment(jail: Jail) -> None:
    environment = jail.spawn(jail.uid)
    try:
        order = {"module": "processes", "attack": "leave_daemons", "arguments": {"count": 50}}
        answer = environment.invoke(order, remaining_ms=30_000)
        assert answer.json["escaped"], answer.json
        namespace = os.readlink(f"/proc/{environment.pid}/ns/pid") if os.geteuid() == 0 else ""
        if namespace:
            assert len(_inhabitants(namespace)) == 51
    finally:
        jails.end(environment)
    assert not namespace or _inhabitants(namespace) == []


def _inhabitants(namespace: str) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/ns/pid") == namespace:
                found.append(int(name))
        except OSError:
            continue
    return found


def test_elsewhere_a_daemon_outlives_the_kill() -> None:
    code = "import os, processes; processes.leave_daemons(3); os.write(1, b'x'); os.read(0, 1)"
    with _on_the_host(code, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        daemons = [
            int(name)
            for name in filter(str.isdigit, os.listdir("/proc"))
            if _command_line(name) == _command_line(str(process.pid)) and int(name) != process.pid
        ]
        process.kill()
        process.wait(driver.DEADLINE_S)
        pidfds = [os.pidfd_open(pid) for pid in daemons]
        for pidfd in pidfds:
            assert not driver.has_ended(pidfd, within_s=0)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            assert driver.has_ended(pidfd)
            os.close(pidfd)
        assert len(pidfds) == 3


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


# ------------------------------------------------------------------------------ cgroups


@pytest.fixture(scope="module")
def tree(host: Host) -> Iterator[CgroupTree]:
    """Base folders below the bounds of this session, which hold whatever fails here."""
    found = hierarchies.survey()
    if os.geteuid() != 0 or found.version != 1:
        pytest.skip("needs root and cgroup v1 hierarchies")
    name = f"trivet-jail-bases-{os.getpid()}"
    bases = {controller: folder / name for controller, folder in found.own.items()}
    for base in dict.fromkeys(bases.values()):
        base.mkdir()
    yield CgroupTree(found.version, {controller: str(base) for controller, base in bases.items()})
    for base in dict.fromkeys(bases.values()):
        base.rmdir()


@pytest.fixture(scope="module")
def caged(host: Host, tree: CgroupTree) -> Iterator[Jail]:
    with jails.jail(Spec(), host, tuple(dict.fromkeys(tree._paths.values()))) as running:
        assert running.zygote.bits & wire.ISOLATION_CGROUP
        yield running


def _cgroup(tree: CgroupTree, uid: int, memory_mb: int, processes: int) -> Cgroup:
    cgroup = tree.make(str(uid))
    cgroup.limit(memory_mb, cpu="weight", most_processes=processes)
    return cgroup


@needs_root
@pytest.mark.parametrize(("most", "escapes"), [(100, False), (_FORKS + 50, True)])
def test_processes_run_out(caged: Jail, tree: CgroupTree, most: int, escapes: bool) -> None:
    uid = jails.fresh_uid()
    cgroup = _cgroup(tree, uid, 256, most)
    try:
        attack = _attack("fork_many", count=_FORKS)
        answer = caged.attempt(attack, uid=uid, joins_cgroup=True)
        assert answer["escaped"] == escapes, answer
        assert escapes or answer["errno"] == errno.EAGAIN
    finally:
        assert cgroup.remove()


@needs_root
@pytest.mark.parametrize(("limit_mb", "escapes"), [(128, False), (_TAKEN_MB + 100, True)])
def test_memory_runs_out(caged: Jail, tree: CgroupTree, limit_mb: int, escapes: bool) -> None:
    uid = jails.fresh_uid()
    cgroup = _cgroup(tree, uid, limit_mb, 100)
    environment = caged.spawn(uid, joins_cgroup=True)
    try:
        arguments = {"mb": _TAKEN_MB}
        order = {"module": "processes", "attack": "take_memory", "arguments": arguments}
        if escapes:
            assert environment.invoke(order, remaining_ms=30_000).json["escaped"]
            assert cgroup.oom_kills() == 0
            assert cgroup.peak_kib() >= _TAKEN_MB << 10
        else:
            with pytest.raises(EOFError):
                environment.invoke(order, remaining_ms=30_000)
            assert driver.has_ended(environment.pidfd)
            assert cgroup.oom_kills() == 1
    finally:
        jails.end(environment)
        assert cgroup.remove()


@needs_root
def test_it_lives_in_its_cgroups(caged: Jail, tree: CgroupTree) -> None:
    uid = jails.fresh_uid()
    cgroup = _cgroup(tree, uid, 128, 64)
    environment = caged.spawn(uid, joins_cgroup=True)
    try:
        lines = Path(f"/proc/{environment.pid}/cgroup").read_text().splitlines()
        own = {
            name for line in lines for name in line.split(":")[1].split(",") if f"/{uid}" in line
        }
        assert own >= {"memory", "cpu", "pids", "freezer"}
        limits = {"memory": "memory.limit_in_bytes", "pids": "pids.max", "cpu": "cpu.shares"}
        folders = {name: f"{base}/{uid}" for name, base in tree._paths.items()}
        values = {
            name: int(Path(f"{folders[name]}/{file}").read_text()) for name, file in limits.items()
        }
        assert values == {"memory": 128 << 20, "pids": 64, "cpu": 1024 * 128 // 1769}
        seen = environment.invoke(
            {
                "module": "files",
                "attack": "read_all",
                "arguments": {"path": "/proc/self/cgroup"},
            }
        ).json["message"]
        assert str(uid) not in seen
    finally:
        jails.end(environment)
        assert cgroup.remove()
