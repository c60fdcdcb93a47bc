"""The launcher's bases: found in every layout of mounts, given away, and emptied of anything."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.platform import caged
from tests.platform.caged import Caged

from trivet.launcher import cgroups
from trivet.launcher.cgroups import Cgroups
from trivet.launcher.hierarchies import CONTROLLERS, Survey, found_in
from trivet.launcher.identities import identities
from trivet.settings import Settings

# ------------------------------------------------------------------------------- finding

V1 = """\
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:7 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /cg/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /cg/free\\040zer rw,relatime - cgroup cgroup rw,freezer
39 31 0:36 / /cg/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /cg/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
"""
V2 = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
OWN_V1 = """\
9:name=systemd:/init
8:pids:/a
6:freezer:/
4:memory:/a/b
2:cpu,cpuacct:/c:d
"""


def test_each_controller_is_found_where_it_is_mounted() -> None:
    found = found_in(V1, OWN_V1)
    assert (found.version, found.reason) == (1, "")
    assert found.own == {
        "memory": Path("/cg/memory/a/b"),
        "cpu": Path("/sys/fs/cgroup/cpu,cpuacct/c:d"),
        "pids": Path("/cg/pids/a"),
        "freezer": Path("/cg/free zer"),
    }
    assert found.tops["memory"] == Path("/cg/memory")


def test_of_a_hybrid_it_is_the_version_with_the_memory() -> None:
    assert found_in(V2 + V1, OWN_V1 + "0::/unit\n").version == 1
    only_systemd = "40 31 0:37 / /cg/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
    found = found_in(only_systemd + V2, "1:name=systemd:/x\n0::/unit\n")
    assert found.version == 2
    assert found.own == dict.fromkeys(CONTROLLERS, Path("/sys/fs/cgroup/unified/unit"))


def test_a_container_s_mount_shows_its_own_part() -> None:
    mounts = V1.replace(" / /", " /docker/1 /")
    own = "".join(f"{i}:{names}:/docker/1\n" for i, names in enumerate(CONTROLLERS, 1))
    found = found_in(mounts, own.replace("cpu", "cpu,cpuacct"))
    assert found.own == found.tops
    deeper = found_in(mounts, own.replace("/docker/1", "/docker/1/job"))
    assert deeper.own["memory"] == Path("/cg/memory/job")
    # Those of another container, and those above our cgroup namespace.
    assert found_in(mounts, own.replace("/docker/1", "/docker/12")).reason
    assert found_in(V2.replace(" / /", " /.. /"), "0::/\n").reason
    assert found_in(V2, "0::/../x\n").reason


def test_what_is_missing_is_named() -> None:
    without = "".join(line for line in V1.splitlines(keepends=True) if "rw,pids" not in line)
    assert found_in(without, OWN_V1).reason == "no mounted cgroup hierarchy has pids"
    assert found_in("1 1 0:1 / / rw - ext4 /dev/vda rw\n", "0::/\n").reason == (
        "no cgroup hierarchy is mounted"
    )


def test_without_root_there_are_none(tmp_path: Path) -> None:
    made = cgroups.prepare(Settings(data=str(tmp_path)), None)
    assert not made
    assert (made.reason, made.bases, made.to_json()) == ("only root can make cgroups", (), "")
    assert made.empty()
    assert made.remove()


# -------------------------------------------------------------------------- making, on v1


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=str(tmp_path))


@pytest.fixture
def made(settings: Settings) -> Iterator[Cgroups]:
    """The bases of a data folder, in this machine's v1 hierarchies."""
    found = caged.survey_v1()
    made = cgroups.prepare(settings, identities(settings), found)
    assert made, made.reason
    yield made
    assert made.remove()


@contextlib.contextmanager
def living(folders: list[str], code: str) -> Iterator[Caged]:
    for folder in dict.fromkeys(folders):
        os.mkdir(folder)
    process = Caged(folders, code)
    try:
        yield process
    finally:
        process.close()


def test_the_bases_belong_to_the_supervisor(made: Cgroups, settings: Settings) -> None:
    found, who = caged.survey_v1(), identities(settings)
    assert who
    told = json.loads(made.to_json())
    assert (told["version"], sorted(told["paths"])) == (1, sorted(CONTROLLERS))
    for controller, path in told["paths"].items():
        assert Path(path).parent == found.own[controller]
        assert os.stat(path).st_uid == who.supervisor.uid
        # Membership in v1 is for root alone to change.
        assert os.stat(f"{path}/cgroup.procs").st_uid == 0
    assert made.bases == tuple(dict.fromkeys(told["paths"].values()))


def test_nobody_else_s_data_folder_has_the_same_bases(made: Cgroups, tmp_path: Path) -> None:
    other = Settings(data=str(tmp_path / "other"))
    other.data_path.mkdir()
    theirs = cgroups.prepare(other, identities(other), caged.survey_v1())
    try:
        assert not set(theirs.bases) & set(made.bases)
    finally:
        assert theirs.remove()


@pytest.mark.slow  # it takes what processes there may be, and others go short of them
@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_leftover_that_forks_and_flees_is_gone_after_the_next_start(
    made: Cgroups, settings: Settings, is_frozen: bool
) -> None:
    folders = [f"{base}/100000" for base in made.bases]
    with living(folders, caged.FLEE) as first:
        assert first.status() == 0  # its descendants go on
        if is_frozen:
            state = Path(made.paths["freezer"], "100000", "freezer.state")
            state.write_text("FROZEN")
            caged.until(lambda: state.read_text() == "FROZEN\n")
            assert Path(folders[0], "cgroup.procs").read_text()
        again = cgroups.prepare(settings, identities(settings), caged.survey_v1())
        assert again == made
        assert [os.path.exists(folder) for folder in folders] == [False] * len(folders)


def test_a_fork_bomb_of_many_is_gone(made: Cgroups) -> None:
    with living([f"{base}/100000" for base in made.bases], caged.WAIT + caged.FORK) as bomb:
        folder = Path(made.paths["pids"], "100000")
        (folder / "pids.max").write_text("300")  # before it begins: the machine is not only ours
        assert bomb.process.stdin
        bomb.process.stdin.close()
        caged.until(lambda: int((folder / "pids.current").read_text()) == 300)
        assert made.empty()
        assert bomb.status() == -9


def test_what_had_joined_only_one_hierarchy_is_gone_too(made: Cgroups) -> None:
    with living([f"{made.paths['memory']}/100000"], caged.SPIN) as process:
        assert made.empty()
        assert process.status() == -9


def test_a_predecessor_of_another_session_is_found(made: Cgroups, settings: Settings) -> None:
    found = caged.survey_v1()
    session = f"session-{uuid.uuid4().hex[:8]}"
    elsewhere = {name: f"{top}/{session}" for name, top in found.tops.items()}
    bases = [f"{path}/{Path(made.bases[0]).name}" for path in elsewhere.values()]
    for folder in (*elsewhere.values(), *bases):
        os.mkdir(folder)
    try:
        with living([f"{base}/100000" for base in bases], caged.SPIN) as process:
            assert cgroups.prepare(settings, identities(settings), found) == made
            assert process.status() == -9
        assert not any(os.path.exists(base) for base in bases)
    finally:
        for folder in elsewhere.values():
            os.rmdir(folder)


def test_a_process_that_stays_is_told_in_time(made: Cgroups) -> None:
    folders = [f"{base}/100000" for base in made.bases]
    with living(folders, caged.SPIN) as process:
        assert not made.empty(within_s=0)
        assert not made.remove(within_s=0)
        assert process.process.poll() is None
        assert made.empty()


def test_what_the_kernel_refuses_is_the_reason(settings: Settings, tmp_path: Path) -> None:
    found = replace(caged.survey_v1(), own=dict.fromkeys(CONTROLLERS, tmp_path / "none"))
    made = cgroups.prepare(settings, identities(settings), found)
    assert not made
    assert made.reason.startswith(str(tmp_path / "none"))
    assert made.reason.endswith("No such file or directory")


# ------------------------------------------------------------------------- v2, a real mount


@pytest.fixture
def below_v2() -> Iterator[Path]:
    """A cgroup of our own on the real cgroup2 mount."""
    folder = caged.survey_v2().tops["memory"] / f"trivet-test-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    yield folder
    assert Cgroups(2, dict.fromkeys(CONTROLLERS, str(folder))).remove()


@pytest.mark.slow  # it takes what processes there may be, and others go short of them
@pytest.mark.parametrize("is_frozen", [False, True])
def test_v2_a_leftover_that_forks_and_flees_is_gone(below_v2: Path, is_frozen: bool) -> None:
    made = Cgroups(2, dict.fromkeys(CONTROLLERS, str(below_v2)))
    inside = below_v2 / "100000"
    with living([str(inside)], caged.FLEE) as first:
        assert first.status() == 0  # its descendants go on
        if is_frozen:
            (inside / "cgroup.freeze").write_text("1")
            caged.until(lambda: "frozen 1" in (inside / "cgroup.events").read_text())
            assert (inside / "cgroup.procs").read_text()
        assert made.empty()
    assert not inside.exists()
    assert "frozen 0" in (below_v2 / "cgroup.events").read_text()


def test_v2_a_delegated_cgroup_is_ours_and_we_step_aside(below_v2: Path) -> None:
    found = replace(caged.survey_v2(), own=dict.fromkeys(CONTROLLERS, below_v2))
    assert not cgroups._is_delegated(below_v2)
    os.setxattr(below_v2, "trusted.delegate", b"1")
    assert cgroups._is_delegated(below_v2)
    processes = [Caged([str(below_v2)], caged.WAIT) for _ in range(2)]
    try:
        cgroups.step_aside(below_v2)
        assert not (below_v2 / "cgroup.procs").read_text()
        moved = (below_v2 / "platform" / "cgroup.procs").read_text().split()
        assert sorted(moved) == sorted(str(process.pid) for process in processes)
    finally:
        for process in processes:
            process.close()
    # From inside the child it is still the same cgroup that was given to us.
    inside = replace(found, own=dict.fromkeys(CONTROLLERS, below_v2 / "platform"))
    for survey in (found, inside):
        with pytest.raises(OSError, match="does not offer") as caught:
            cgroups._parent_v2(survey)
        assert str(below_v2) in str(caught.value)


def test_v2_without_controllers_is_no_use_and_says_so(settings: Settings) -> None:
    found = caged.survey_v2()
    if "memory" in (found.tops["memory"] / "cgroup.controllers").read_text():
        pytest.skip("this cgroup2 mount has controllers")
    made = cgroups.prepare(settings, identities(settings), found)
    assert not made
    assert made.reason.startswith("cgroup v2 does not offer memory and cpu and pids in ")


def test_pending_v2_bases_are_made_with_controllers(tmp_path: Path) -> None:
    """In a folder that looks like a cgroup2 mount: none here has the controllers."""
    if os.geteuid() != 0:
        pytest.skip("only root gives folders away")
    top = tmp_path / "cgroup"
    unit = top / "unit"
    unit.mkdir(parents=True)
    for folder in (top, unit):
        (folder / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    data = tmp_path / "data"
    data.mkdir()
    settings = Settings(data=str(data))
    who: Any = identities(settings)
    own, tops = dict.fromkeys(CONTROLLERS, unit), dict.fromkeys(CONTROLLERS, top)
    made = cgroups.prepare(settings, who, Survey(2, own, tops))
    assert made, made.reason
    (base,) = made.bases
    assert Path(base).parent == top  # the unit's own was not delegated
    assert (top / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    control = Path(base, "cgroup.subtree_control")
    assert control.read_text() == "+memory +cpu +pids"
    assert os.stat(base).st_uid == os.stat(control).st_uid == who.supervisor.uid


# ------------------------------------------------------------------------------- joining


def test_fast_joining_is_held_by_a_descriptor_and_no_mount() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts cgroups")
    mounts = Path("/proc/self/mountinfo").read_text()
    held = cgroups.favor_dynmods()
    if held is None:
        pytest.skip("this kernel has no such option, or no hierarchy for us")
    try:
        assert ":name=trivet:" in Path("/proc/self/cgroup").read_text()
        assert Path("/proc/self/mountinfo").read_text() == mounts
        assert not os.get_inheritable(held)
    finally:
        os.close(held)
