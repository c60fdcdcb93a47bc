"""An environment seen from the host, where it can neither lie nor hide: what /proc says of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tests.jail.jails import Jail, Spec, needs_root, needs_uid
from tests.workers import driver

_SPECS = [
    pytest.param(Spec(kind, as_user), id=str(Spec(kind, as_user)))
    for kind in ("python", "node")
    for as_user in ((False, True) if os.geteuid() == 0 else (True,))
]
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")

# Name in /proc/PID/limits: soft and hard.
_LIMITS = {
    "Max open files": "1024",
    "Max core file size": "0",
    "Max locked memory": "65536",
    "Max msgqueue size": "0",
    "Max nice priority": "0",
    "Max realtime priority": "0",
    "Max pending signals": "1024",
}

_DEVICES = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")}
_PLACES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/var/task", "/opt")
_FOLDERS_OF_ETC = ("alternatives", "ca-certificates", "crypto-policies", "pki", "ssl")

pytestmark = [needs_root, pytest.mark.parametrize("jail", _SPECS, indirect=True)]


def _status(jail: Jail) -> dict[str, str]:
    lines = Path(f"/proc/{jail.victim.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_it_is_somebody_without_power(jail: Jail) -> None:
    status = _status(jail)
    own = jail.uid if needs_uid(jail.zygote) else driver.NOBODY
    assert status["Uid"].split() == [str(own)] * 4
    assert status["Gid"].split() == [str(own)] * 4
    assert status["Groups"] == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"


def test_its_calls_are_filtered_twice(jail: Jail) -> None:
    status = _status(jail)
    assert status["Seccomp"] == "2"
    assert status["Seccomp_filters"] == "2"


def test_it_holds_four_descriptors(jail: Jail) -> None:
    """A runtime adds what it opens itself, which leads to nothing of anybody else's."""
    folder = f"/proc/{jail.victim.pid}/fd"
    held = {int(name): os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
    kinds = {number: held[number].partition(":")[0] for number in range(4)}
    assert kinds == {0: "/dev/null", 1: "pipe", 2: "pipe", 3: "socket"}
    if jail.zygote.kind == "python":
        # Its two listeners, by TCP and by name, are the neighbour's own work.
        assert sorted(held) == [0, 1, 2, 3, 4, 5]
    inside = Path(f"/proc/{jail.victim.pid}/ns/net").stat().st_ino
    assert inside != os.stat("/proc/self/ns/net").st_ino


def test_it_is_nowhere_that_we_are(jail: Jail) -> None:
    def seen(pid: int | str) -> dict[str, str]:
        return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in _NAMESPACES}

    inside, ours, zygotes = seen(jail.victim.pid), seen("self"), seen(jail.zygote.process.pid)
    for name in _NAMESPACES:
        assert inside[name] not in (ours[name], zygotes[name]), name
    root = os.stat(f"/proc/{jail.victim.pid}/root")
    assert (root.st_dev, root.st_ino) != (os.stat("/").st_dev, os.stat("/").st_ino)


def test_two_share_no_namespace(jail: Jail) -> None:
    for name in _NAMESPACES:
        victim, stranger = jail.world.victim, jail.world.stranger
        assert os.readlink(f"/proc/{victim}/ns/{name}") != os.readlink(
            f"/proc/{stranger}/ns/{name}"
        )


def test_it_sees_only_what_it_should(jail: Jail) -> None:
    needed = [sys.prefix, sys.base_prefix, str(driver.NODE.parent), str(driver.BOOTSTRAP.parent)]
    resolved = [os.path.realpath(path) for path in needed]
    etc = [f"/etc/{name}" for name in _FOLDERS_OF_ETC]
    expected = (*_PLACES, *etc, *needed, *resolved, "/var/lib/ca-certificates")
    for line in Path(f"/proc/{jail.victim.pid}/mountinfo").read_text().splitlines():
        place, options = line.split()[4], set(line.split()[5].split(","))
        assert "nosuid" in options, line
        if place in _DEVICES:
            assert options >= {"ro", "noexec"}, line
            continue
        if place.startswith("/proc/"):  # a mask: of nothing, or of no device but the null one
            continue
        assert "nodev" in options, line
        if place in ("/tmp", "/proc"):
            continue
        assert "ro" in options, line
        assert place == "/" or any(f"{place}/".startswith(f"{each}/") for each in expected), line


def test_it_is_limited(jail: Jail) -> None:
    lines = Path(f"/proc/{jail.victim.pid}/limits").read_text().splitlines()
    for name, value in _LIMITS.items():
        (line,) = (line for line in lines if line.startswith(name))
        assert line.removeprefix(name).split()[:2] == [value, value], line


def test_it_has_no_terminal_and_leads_its_session(jail: Jail) -> None:
    stat = Path(f"/proc/{jail.victim.pid}/stat").read_text().rpartition(")")[2].split()
    session, terminal = int(stat[3]), int(stat[4])
    assert session == jail.victim.pid
    assert terminal == 0
