"""Leaks: what is there of ours on this machine, so that a test can be seen to leave nothing."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.jail.jails import is_ours

_CGROUPS = Path("/sys/fs/cgroup")

Things = Counter[str]


def all_things() -> Things:
    """Everything of ours that a test could leave behind, by kind and name."""
    family = _family()
    things: Things = Counter()
    things.update(_processes(family))
    things.update(_of_ourselves())
    for pid in family:
        if not is_ours(_uid(pid)):
            things.update(_descriptors(pid))
            things.update(_mounts(pid))
    things.update(_cgroups())
    things.update(_shared_memory())
    return things


def _family() -> set[int]:
    """Our descendants, and whoever runs under one of our uids wherever it went."""
    parents = {pid: _parent(pid) for pid in _pids()}
    found = {pid for pid in parents if is_ours(_uid(pid))}
    me = os.getpid()
    for pid in parents:
        line = []
        while pid and pid != me and pid not in line:
            line.append(pid)
            pid = parents.get(pid, 0)
        if pid == me:
            found.update(line)
    return found


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _uid(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def _processes(family: set[int]) -> Iterator[str]:
    for pid in family:
        yield f"process {pid} of {_uid(pid)}"
        for kind in ("net", "mnt", "pid", "ipc", "uts", "cgroup", "user"):
            try:
                yield f"namespace {os.readlink(f'/proc/{pid}/ns/{kind}')}"
            except OSError:
                continue


def _of_ourselves() -> Iterator[str]:
    yield from _descriptors(os.getpid())
    yield from _mounts(os.getpid())
    for folder, folders, files in os.walk(tempfile.gettempdir()):
        for name in (*folders, *files):
            yield f"file {folder}/{name}"


def _descriptors(pid: int) -> Iterator[str]:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            yield f"descriptor {name} of {pid}: {os.readlink(f'/proc/{pid}/fd/{name}')}"
        except OSError:
            continue  # the listing's own


def _mounts(pid: int) -> Iterator[str]:
    try:
        lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        yield f"mount in {pid}: {line.split()[4]}"


def _cgroups() -> Iterator[str]:
    """Those that are named like our uids, under whatever base."""
    for folder, folders, _ in os.walk(_CGROUPS):
        for name in folders:
            if name.isdigit() and is_ours(int(name)):
                yield f"cgroup {folder}/{name}"


def _shared_memory() -> Iterator[str]:
    """System V objects of ours; environments have their own, unless that layer is left out."""
    for kind in ("shm", "sem", "msg"):
        names, *lines = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()
        owner = names.split().index("uid")
        for line in map(str.split, lines):
            if is_ours(int(line[owner])):
                yield f"{kind} {line[0]}"
