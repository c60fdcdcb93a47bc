"""The supervisor's cgroups: real processes that outgrow, spin, freeze and die in them."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.platform import caged
from tests.platform.caged import Caged, burn, cpu_s, until

from trivet.launcher import cgroups as launcher
from trivet.launcher.cgroups import Cgroups
from trivet.launcher.hierarchies import CONTROLLERS
from trivet.launcher.identities import identities
from trivet.settings import Settings
from trivet.supervisor.cgroups import Cgroup, CgroupTree, inherited_cgroups

MB = 1 << 20

Run = Callable[..., Caged]


@pytest.fixture
def bases(tmp_path: Path) -> Iterator[Cgroups]:
    """Real bases in this machine's v1 hierarchies; whatever a test leaves there is killed."""
    found = caged.survey_v1()
    settings = Settings(data=str(tmp_path))
    made = launcher.prepare(settings, identities(settings), found)
    assert made, made.reason
    yield made
    assert made.remove()


@pytest.fixture
def bases_v2() -> Iterator[Cgroups]:
    """On the real cgroup2 mount, which may have no controllers."""
    base = caged.survey_v2().tops["memory"] / f"trivet-test-{uuid.uuid4().hex[:8]}"
    base.mkdir()
    made = Cgroups(2, dict.fromkeys(CONTROLLERS, str(base)))
    yield made
    assert made.remove()


@pytest.fixture(params=["v1", "v2"])
def either(request: pytest.FixtureRequest) -> Cgroups:
    made: Cgroups = request.getfixturevalue("bases" if request.param == "v1" else "bases_v2")
    return made


@pytest.fixture
def run() -> Iterator[Run]:
    """run(bases, cgroup, code): a process in that cgroup."""
    with contextlib.ExitStack() as stack:

        def run(bases: Cgroups, cgroup: Cgroup, code: str) -> Caged:
            process = Caged([f"{base}/{cgroup.name}" for base in bases.bases], code)
            stack.callback(process.close)
            stack.callback(cgroup.thaw)
            return process

        yield run


def tree_of(bases: Cgroups) -> CgroupTree:
    return CgroupTree(bases.version, bases.paths)


def value(bases: Cgroups, controller: str, cgroup: Cgroup, file: str) -> str:
    return Path(bases.paths[controller], cgroup.name, file).read_text().strip()


# ----------------------------------------------------------------------- made and removed


def test_the_tree_is_what_the_launcher_made(
    bases: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(launcher.VARIABLE, bases.to_json())
    tree = inherited_cgroups()
    assert tree is not None
    assert repr(tree) == f"<CgroupTree v1 {bases.paths['memory']}>"
    for none in ("", None):
        if none is None:
            monkeypatch.delenv(launcher.VARIABLE)
        else:
            monkeypatch.setenv(launcher.VARIABLE, none)
        assert inherited_cgroups() is None


def test_one_is_made_in_all_hierarchies_or_in_none(bases: Cgroups) -> None:
    tree = tree_of(bases)
    cgroup = tree.make("100000")
    assert repr(cgroup) == "<Cgroup 100000 0 MB>"
    assert all(os.path.isdir(f"{base}/100000") for base in bases.bases)
    assert cgroup.remove()
    assert not any(os.path.exists(f"{base}/100000") for base in bases.bases)
    assert cgroup.remove()  # once more does no harm
    half = CgroupTree(1, {**bases.paths, "pids": "/nowhere"})
    with pytest.raises(FileNotFoundError):
        half.make("100001")
    assert not any(os.path.exists(f"{base}/100001") for base in bases.bases)


def test_one_in_which_something_lives_is_neither_removed_nor_made_again(
    either: Cgroups, run: Run
) -> None:
    tree = tree_of(either)
    cgroup = tree.make("100000")
    process = run(either, cgroup, caged.WAIT)
    assert not cgroup.remove()
    with pytest.raises(FileExistsError):
        tree.make("100000")
    process.process.kill()
    process.status()
    until(cgroup.remove)
    assert tree.make("100000").remove()


def test_one_that_a_dead_supervisor_left_is_made_anew(bases: Cgroups) -> None:
    tree_of(bases).make("100000").limit(128, cpu="weight", most_processes=5)
    again = tree_of(bases).make("100000")
    assert value(bases, "pids", again, "pids.max") == "max"
    assert again.remove()


def test_the_supervisor_needs_no_privilege(bases: Cgroups, tmp_path: Path) -> None:
    who = identities(Settings(data=str(tmp_path)))
    assert who
    told, end = os.pipe()
    pid = os.fork()  # an exec'd Python may lie where that uid cannot go
    if not pid:
        try:
            os.setgroups([])
            os.setresgid(who.supervisor.gid, who.supervisor.gid, who.supervisor.gid)
            os.setresuid(who.supervisor.uid, who.supervisor.uid, who.supervisor.uid)
            os.write(end, _all_that_the_supervisor_does(tree_of(bases)).encode())
        except BaseException as error:
            os.write(end, repr(error).encode())
        finally:
            os._exit(0)
    os.close(end)
    with os.fdopen(told) as file:
        assert file.read() == "False 0 0 True"
    os.waitpid(pid, 0)


def _all_that_the_supervisor_does(tree: CgroupTree) -> str:
    cgroup = tree.make("100000")
    cgroup.limit(128, extra_mb=64, cpu="quota")
    cgroup.throttle()
    cgroup.freeze()
    cgroup.thaw()
    return f"{cgroup.kill()} {cgroup.peak_kib()} {cgroup.oom_kills()} {cgroup.remove()}"


# -------------------------------------------------------------------------------- limits


def test_limits_are_by_memory(bases: Cgroups) -> None:
    cgroup = tree_of(bases).make("100000")
    for memory_mb, shares in ((1769, 1024), (128, 74), (10_240, 5927), (3008, 1741)):
        cgroup.limit(memory_mb, extra_mb=512, cpu="weight", most_processes=77)
        limit = str((memory_mb + 512) * MB)
        assert value(bases, "memory", cgroup, "memory.limit_in_bytes") == limit
        with contextlib.suppress(FileNotFoundError):  # where swap is not accounted for
            assert value(bases, "memory", cgroup, "memory.memsw.limit_in_bytes") == limit
        assert value(bases, "pids", cgroup, "pids.max") == "77"
        assert value(bases, "cpu", cgroup, "cpu.shares") == str(shares)
    cgroup.throttle()
    assert value(bases, "cpu", cgroup, "cpu.cfs_quota_us") == "-1"
    assert repr(cgroup) == "<Cgroup 100000 3008 MB>"


def test_one_that_outgrows_its_memory_is_killed_and_counted(bases: Cgroups, run: Run) -> None:
    cgroup = tree_of(bases).make("100000")
    cgroup.limit(64, cpu="weight")
    process = run(bases, cgroup, "kept = [bytearray(1 << 20) for _ in range(200)]")
    assert process.status() == -signal.SIGKILL
    assert cgroup.oom_kills() == 1
    assert 60 * 1024 <= cgroup.peak_kib() <= 64 * 1024


def test_the_kill_of_a_child_is_counted_though_its_parent_lives(bases: Cgroups, run: Run) -> None:
    cgroup = tree_of(bases).make("100000")
    cgroup.limit(64, cpu="weight")
    code = """
child = os.fork()
if not child:
    kept = [bytearray(1 << 20) for _ in range(200)]
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
    process = run(bases, cgroup, code + caged.WAIT)
    assert process.line() == "-9"
    assert cgroup.oom_kills() == 1
    assert process.process.poll() is None


_FILL_CACHE = """
with open({path!r}, "wb") as file:
    for _ in range(150):
        file.write(bytes(1 << 20))
print("written", flush=True)
sys.stdin.readline()
kept = bytearray(30 << 20)
print("grown", flush=True)
sys.stdin.readline()
"""


def test_file_cache_kills_nobody_and_is_not_use(bases: Cgroups, run: Run, tmp_path: Path) -> None:
    if os.statvfs(tmp_path).f_files == 0:
        pytest.skip("no disk behind this folder")
    cgroup = tree_of(bases).make("100000")
    cgroup.limit(64, cpu="weight")
    process = run(bases, cgroup, _FILL_CACHE.format(path=str(tmp_path / "file")))
    assert process.line() == "written"
    assert int(value(bases, "memory", cgroup, "memory.max_usage_in_bytes")) > 60 * MB
    before = cgroup.peak_kib()
    assert before < 25 * 1024
    # Memory that only takes the place of cache: the kernel's own peak does not grow.
    assert process.process.stdin
    process.process.stdin.write(b"\n")
    process.process.stdin.flush()
    assert process.line() == "grown"
    grown = cgroup.peak_kib()
    # Of 32 MB; how much of the cache was young or mapped makes the difference.
    assert 26 * 1024 <= grown - before <= 36 * 1024
    # The kernel's peak stays where the cache had it, which is gone now.
    (tmp_path / "file").unlink()
    assert cgroup.peak_kib() == grown
    assert cgroup.oom_kills() == 0


def test_the_peak_is_real_and_stays(bases: Cgroups, run: Run) -> None:
    cgroup = tree_of(bases).make("100000")
    cgroup.limit(256, cpu="weight")
    code = """
for size in (100, 20, 150):
    kept = bytearray(size << 20)
    del kept
    print(size, flush=True)
    sys.stdin.readline()
"""
    process = run(bases, cgroup, code)
    assert process.process.stdin
    seen = []
    for _ in range(3):
        process.line()
        seen.append(cgroup.peak_kib() // 1024)
        process.process.stdin.write(b"\n")
        process.process.stdin.flush()
    assert 100 <= seen[0] <= 115
    assert seen[1] == seen[0]
    assert 150 <= seen[2] <= 165


def test_a_fork_bomb_ends_at_its_limit(bases: Cgroups, run: Run) -> None:
    cgroup = tree_of(bases).make("100000")
    cgroup.limit(256, cpu="weight", most_processes=20)
    code = """
count = 1
try:
    while True:
        if not os.fork():
            time.sleep(600)
        count += 1
except OSError:
    print(count, flush=True)
"""
    assert run(bases, cgroup, code).line() == "20"


# ----------------------------------------------------------------------------------- CPU


def _throttled(bases: Cgroups, cgroup: Cgroup) -> int:
    stat = value(bases, "cpu", cgroup, "cpu.stat")
    return dict((name, int(n)) for name, n in map(str.split, stat.splitlines()))["nr_throttled"]


def test_a_quota_throttles_from_the_first_invocation_on(bases: Cgroups, run: Run) -> None:
    cgroup = tree_of(bases).make("100000")
    cgroup.limit(128, cpu="quota")
    process = run(bases, cgroup, caged.SPIN)
    until(lambda: cpu_s(process.pid) > 0.1)  # initialises: 14 times what a period gives it
    assert _throttled(bases, cgroup) == 0
    cgroup.throttle()
    assert value(bases, "cpu", cgroup, "cpu.cfs_period_us") == "100000"
    assert value(bases, "cpu", cgroup, "cpu.cfs_quota_us") == "7235"
    assert value(bases, "cpu", cgroup, "cpu.cfs_burst_us") == "7235"
    until(lambda: _throttled(bases, cgroup) >= 3)


def test_weight_is_by_memory_and_leaves_nothing_unused(bases: Cgroups, run: Run) -> None:
    tree = tree_of(bases)
    pinned = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + caged.SPIN
    small, large = tree.make("100000"), tree.make("100001")
    small.limit(256, cpu="weight")
    large.limit(1024, cpu="weight")
    light, heavy = run(bases, small, pinned), run(bases, large, pinned)
    since = cpu_s(light.pid), cpu_s(heavy.pid)
    until(lambda: cpu_s(heavy.pid) - since[1] > 0.6)
    ratio = (cpu_s(heavy.pid) - since[1]) / (cpu_s(light.pid) - since[0])
    assert 2.5 < ratio < 6.0
    large.freeze()
    alone = cpu_s(light.pid)
    until(lambda: cpu_s(light.pid) - alone > 0.3)
    assert _throttled(bases, small) == 0


# --------------------------------------------------------------------------------- frost


def _is_still(pid: int) -> bool:
    before = cpu_s(pid)
    burn(0.05)
    return cpu_s(pid) == before


def test_what_is_frozen_uses_no_cpu(either: Cgroups, run: Run) -> None:
    cgroup = tree_of(either).make("100000")
    process = run(either, cgroup, caged.SPIN)
    assert not cgroup.is_frozen
    cgroup.freeze()
    cgroup.freeze()
    assert cgroup.is_frozen
    assert repr(cgroup) == "<Cgroup 100000 0 MB frozen>"
    until(lambda: _is_still(process.pid))
    assert _is_still(process.pid)
    cgroup.thaw()
    cgroup.thaw()
    assert not cgroup.is_frozen
    before = cpu_s(process.pid)
    until(lambda: cpu_s(process.pid) > before)


def test_v1_what_is_killed_while_frozen_ends_when_thawed(bases: Cgroups, run: Run) -> None:
    cgroup = tree_of(bases).make("100000")
    process = run(bases, cgroup, caged.SPIN)
    cgroup.freeze()
    until(lambda: value(bases, "freezer", cgroup, "freezer.state") == "FROZEN")
    assert not cgroup.kill()  # who has root does it
    process.process.kill()
    assert not process.ends_within(0.05)
    cgroup.thaw()
    assert process.status() == -signal.SIGKILL
    until(cgroup.remove)


def test_v2_all_that_is_frozen_is_killed_at_once(bases_v2: Cgroups, run: Run) -> None:
    cgroup = tree_of(bases_v2).make("100000")
    code = "for _ in range(10): os.fork() and time.sleep(600)\n"
    process = run(bases_v2, cgroup, code)
    until(lambda: len(value(bases_v2, "pids", cgroup, "cgroup.procs").split()) == 11)
    cgroup.freeze()
    assert cgroup.kill()
    assert process.status() == -signal.SIGKILL
    until(cgroup.remove)


# ------------------------------------------------- what v2's controllers would be told


@pytest.fixture
def pretended(tmp_path: Path) -> Cgroup:
    """A v2 cgroup in a plain folder: no kernel here has its controllers to offer."""
    cgroup = CgroupTree(2, dict.fromkeys(CONTROLLERS, str(tmp_path))).make("100000")
    for file in (
        "memory.max",
        "memory.oom.group",
        "memory.peak",
        "memory.current",
        "memory.stat",
        "memory.events",
        "pids.max",
        "cpu.weight",
        "cpu.max",
        "cpu.max.burst",
    ):
        (tmp_path / "100000" / file).touch()
    return cgroup


def test_pending_v2_limits_are_written(pretended: Cgroup, tmp_path: Path) -> None:
    folder = tmp_path / "100000"
    pretended.prepare()
    pretended.limit(1769, extra_mb=31, cpu="weight")
    pretended.throttle()
    found = {file.name: file.read_text() for file in folder.iterdir()}
    assert found["memory.max"] == str(1800 * MB)
    assert (found["memory.oom.group"], found["pids.max"]) == ("1", "1024")
    assert (found["cpu.weight"], found["cpu.max"]) == ("100", "")  # as the kernel made it
    assert "memory.swap.max" not in found  # a kernel without swap has no such file
    pretended.limit(128, cpu="quota")
    assert (folder / "cpu.max").read_text() == "max 100000"  # it had been limited before
    pretended.throttle()
    assert (folder / "cpu.max").read_text() == "7235 100000"
    assert (folder / "cpu.max.burst").read_text() == "7235"


def test_pending_v2_use_is_read(pretended: Cgroup, tmp_path: Path) -> None:
    folder = tmp_path / "100000"
    stat = "anon 1\nfile 5\nactive_file {}\ninactive_file 2000\nfile_mapped 1500\nshmem 500\n"
    (folder / "memory.stat").write_text(stat.format(3000))
    (folder / "memory.events").write_text("low 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 1\n")
    (folder / "memory.peak").write_text("104000\n")
    (folder / "memory.current").write_text("9000\n")
    assert pretended.oom_kills() == 2
    assert pretended.peak_kib() == 98  # 104,000 less 5,000 of files, of which 1,000 are mapped


def test_pending_v2_use_without_a_peak_is_the_use_seen(pretended: Cgroup, tmp_path: Path) -> None:
    folder = tmp_path / "100000"
    (folder / "memory.peak").unlink()
    for used, peak in ((2048, 2), (1024, 2), (4096, 4)):
        (folder / "memory.current").write_text(f"{used}\n")
        assert pretended.peak_kib() == peak
