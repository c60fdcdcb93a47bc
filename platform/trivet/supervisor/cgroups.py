"""Cgroups: one environment's limits, its frost and its real use, v1 and v2 behind one interface.

    tree = inherited_cgroups()                # None: the launcher made no bases
    cgroup = tree.make("100017")              # in a thread: it takes milliseconds
    cgroup.limit(128, cpu="weight")

The process joins by itself, while it is still root. All calls raise OSError when the kernel
refuses; none but `make` waits for anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, NamedTuple

from trivet.launcher.cgroups import VARIABLE

Cpu = Literal["weight", "quota"]

# AWS: a function of this size has one vCPU to itself.
_MB_PER_CPU = 1769

_MB = 1 << 20
_PERIOD_US = 100_000


class Write(NamedTuple):
    """One value for one file of a controller's cgroup."""

    controller: str
    file: str
    value: int | str
    is_optional: bool = False  # not every kernel has the file


class Cgroup(ABC):
    """The cgroups of one environment: one folder in v2, in v1 one per controller."""

    _freeze_file: str
    _frozen: bytes
    _thawed: bytes
    _peak_file: str
    _oom_file: str
    # What is read or written while somebody waits, and is therefore opened before.
    _hot_files: tuple[tuple[str, str], ...]
    # memory.stat's words for file cache on both its lists, the files and shared memory that
    # some process has mapped, and shared memory.
    _stat_names: tuple[str, str, str, str]

    def __init__(self, name: str, folders: Mapping[str, str]) -> None:
        self.name = name
        self._folders = folders
        self._open: dict[str, int] = {}
        self._memory_mb = 0
        self._owes_quota = False
        self._is_limited = False
        self._is_frozen = False
        self._peak_bytes = 0
        self._cache_bytes = 0
        self._times_seen_full = 0

    def __repr__(self) -> str:
        return f"<Cgroup {self.name} {self._memory_mb} MB{' frozen' if self._is_frozen else ''}>"

    # ------------------------------------------------------------------------- limits

    def prepare(self) -> None:
        """Set what is the same for all, and open what is needed later in a hurry."""
        self._write_all(self._common())
        for controller, file in self._hot_files:
            with contextlib.suppress(FileNotFoundError):  # not every kernel has them all
                self._file(controller, file)

    def limit(
        self, memory_mb: int, *, extra_mb: int = 0, cpu: Cpu, most_processes: int = 1024
    ) -> None:
        """Limit memory, swap included, to both sizes; processes; and the share of CPU, which is
        by `memory_mb`. No quota yet: what initialises is not throttled."""
        if self._is_limited:
            self._write_all(self._unlimited())
        self._is_limited = True
        self._memory_mb = memory_mb
        self._owes_quota = cpu == "quota"
        self._write_all(self._limits((memory_mb + extra_mb) * _MB, memory_mb, most_processes))

    def throttle(self) -> None:
        """From now on no more CPU than the memory gives, if that is what `limit` was told."""
        if self._owes_quota:
            self._owes_quota = False
            self._write_all(self._quota(_PERIOD_US * self._memory_mb // _MB_PER_CPU))

    # -------------------------------------------------------------------------- frost

    @property
    def is_frozen(self) -> bool:
        """Whether it was frozen here, and not thawed since."""
        return self._is_frozen

    def freeze(self) -> None:
        """No process in it runs from now on. SIGKILL ends them then too, in v1 once thawed."""
        if not self._is_frozen:
            os.pwrite(self._file("freezer", self._freeze_file), self._frozen, 0)
            self._is_frozen = True

    def thaw(self) -> None:
        if self._is_frozen:
            os.pwrite(self._file("freezer", self._freeze_file), self._thawed, 0)
            self._is_frozen = False

    # ---------------------------------------------------------------------------- use

    def peak_kib(self) -> int:
        """The most memory that its processes held at once, without file cache that none of them
        has mapped. Ask often: cache that came and went since the last call is counted."""
        used = self._most_used()
        # Less than what is known already can teach nothing, and is what is nearly always read.
        if used > self._peak_bytes:
            cache, times_full = self._unmapped_cache(), self._times_full()
            # Cache that has gone since then made room for what is counted, or, if memory was
            # never full, was there beside it.
            beside = cache if times_full > self._times_seen_full else max(cache, self._cache_bytes)
            now = self._measure_anew()
            self._peak_bytes = max(self._peak_bytes, used - beside, now - cache)
            self._cache_bytes, self._times_seen_full = cache, times_full
        return -(-self._peak_bytes // 1024)

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed because of the memory limit."""
        return self._count(self._oom_file, b"oom_kill")

    def _most_used(self) -> int:
        """Bytes at most, cache included, since `_measure_anew` at the latest."""
        return int(self._read("memory", self._peak_file))

    @abstractmethod
    def _measure_anew(self) -> int:
        """Bytes in use now. From here on `_most_used` is about the time after this."""

    @abstractmethod
    def _times_full(self) -> int:
        """How often something had to go before more could be had."""

    def _unmapped_cache(self) -> int:
        """Bytes of file cache that no process holds."""
        stat = dict(line.split() for line in self._read("memory", "memory.stat").splitlines())
        active, inactive, mapped, shared = (
            int(stat.get(name.encode(), 0)) for name in self._stat_names
        )
        # Mapped shared memory cannot be told from mapped files. Shared memory is never cache.
        return active + inactive - min(active + inactive, max(0, mapped - shared))

    # ------------------------------------------------------------------------ the end

    def kill(self) -> bool:
        """Kill all in it at once, frozen or not. False where only root could: then whoever has
        root kills its first process, and it is to be thawed."""
        return False

    def remove(self) -> bool:
        """Remove it. False while something lives in it: call again later."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        gone = {folder: _is_removed(folder) for folder in self._folders.values()}
        if gone[self._folders["freezer"]]:
            self._is_frozen = False
        return all(gone.values())

    # ------------------------------------------------------------------------- shared

    @abstractmethod
    def _common(self) -> tuple[Write, ...]: ...

    @abstractmethod
    def _unlimited(self) -> tuple[Write, ...]:
        """What `_limits` and `_quota` set and a new one does not have, undone."""

    @abstractmethod
    def _limits(self, memory_bytes: int, memory_mb: int, processes: int) -> tuple[Write, ...]: ...

    @abstractmethod
    def _quota(self, quota_us: int) -> tuple[Write, ...]: ...

    def _write_all(self, writes: tuple[Write, ...]) -> None:
        for write in writes:
            try:
                path = f"{self._folders[write.controller]}/{write.file}"
                descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(descriptor, str(write.value).encode())
                finally:
                    os.close(descriptor)
            except OSError:
                if not write.is_optional:
                    raise

    def _count(self, file: str, name: bytes) -> int:
        found = re.search(rb"^%s (\d+)" % name, self._read("memory", file), re.MULTILINE)
        return int(found[1]) if found else 0

    def _read(self, controller: str, file: str) -> bytes:
        return os.pread(self._file(controller, file), 8192, 0)

    def _file(self, controller: str, file: str) -> int:
        """A descriptor, opened once: a read then costs a tenth of opening."""
        found = self._open.get(file)
        if found is None:
            path = f"{self._folders[controller]}/{file}"
            try:
                found = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except PermissionError:
                found = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._open[file] = found
        return found


class _Version1(Cgroup):
    _freeze_file, _frozen, _thawed = "freezer.state", b"FROZEN", b"THAWED"
    _peak_file = "memory.max_usage_in_bytes"
    _oom_file = "memory.oom_control"
    _hot_files = (
        ("freezer", "freezer.state"),
        ("memory", "memory.max_usage_in_bytes"),
        ("memory", "memory.usage_in_bytes"),
        ("memory", "memory.failcnt"),
        ("memory", "memory.stat"),
        ("memory", "memory.oom_control"),
    )
    _stat_names = ("total_active_file", "total_inactive_file", "total_mapped_file", "total_shmem")

    def _common(self) -> tuple[Write, ...]:
        return (Write("memory", "memory.swappiness", 0, is_optional=True),)

    def _unlimited(self) -> tuple[Write, ...]:
        return (
            # It may never be less than the other, so it steps aside first.
            Write("memory", "memory.memsw.limit_in_bytes", -1, is_optional=True),
            Write("cpu", "cpu.cfs_quota_us", -1),
        )

    def _limits(self, memory_bytes: int, memory_mb: int, processes: int) -> tuple[Write, ...]:
        return (
            Write("memory", "memory.limit_in_bytes", memory_bytes),
            Write("memory", "memory.memsw.limit_in_bytes", memory_bytes, is_optional=True),
            Write("pids", "pids.max", processes),
            Write("cpu", "cpu.shares", max(2, 1024 * memory_mb // _MB_PER_CPU)),
        )

    def _quota(self, quota_us: int) -> tuple[Write, ...]:
        return (
            Write("cpu", "cpu.cfs_period_us", _PERIOD_US),
            Write("cpu", "cpu.cfs_quota_us", quota_us),
            Write("cpu", "cpu.cfs_burst_us", quota_us, is_optional=True),
        )

    def _measure_anew(self) -> int:
        os.pwrite(self._file("memory", self._peak_file), b"0", 0)
        return int(self._read("memory", "memory.usage_in_bytes"))

    def _times_full(self) -> int:
        return int(self._read("memory", "memory.failcnt"))


class _Version2(Cgroup):
    _freeze_file, _frozen, _thawed = "cgroup.freeze", b"1", b"0"
    _peak_file = "memory.peak"
    _oom_file = "memory.events"
    _hot_files = (
        ("freezer", "cgroup.freeze"),
        ("memory", "memory.peak"),
        ("memory", "memory.current"),
        ("memory", "memory.stat"),
        ("memory", "memory.events"),
    )
    _stat_names = ("active_file", "inactive_file", "file_mapped", "shmem")

    def __init__(self, name: str, folders: Mapping[str, str]) -> None:
        super().__init__(name, folders)
        self._seen_bytes = 0  # of a peak that cannot be reset

    def _common(self) -> tuple[Write, ...]:
        return (
            Write("memory", "memory.swap.max", 0, is_optional=True),
            # Whichever process of it is chosen, all die: none goes on without the others.
            Write("memory", "memory.oom.group", 1, is_optional=True),
        )

    def _unlimited(self) -> tuple[Write, ...]:
        return (Write("cpu", "cpu.max", f"max {_PERIOD_US}"),)

    def _limits(self, memory_bytes: int, memory_mb: int, processes: int) -> tuple[Write, ...]:
        return (
            Write("memory", "memory.max", memory_bytes),
            Write("pids", "pids.max", processes),
            Write("cpu", "cpu.weight", min(10_000, max(1, 100 * memory_mb // _MB_PER_CPU))),
        )

    def _quota(self, quota_us: int) -> tuple[Write, ...]:
        return (
            Write("cpu", "cpu.max", f"{quota_us} {_PERIOD_US}"),
            Write("cpu", "cpu.max.burst", quota_us, is_optional=True),
        )

    def _most_used(self) -> int:
        try:
            used = super()._most_used()
        except FileNotFoundError:  # before Linux 5.19
            return int(self._read("memory", "memory.current"))
        # Where it cannot be reset it says nothing new until it grows.
        if used == self._seen_bytes:
            return int(self._read("memory", "memory.current"))
        return used

    def _measure_anew(self) -> int:
        # Linux from 6.12 on resets it for this descriptor.
        try:
            os.pwrite(self._file("memory", self._peak_file), b"0", 0)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                self._seen_bytes = int(self._read("memory", self._peak_file))
        return int(self._read("memory", "memory.current"))

    def _times_full(self) -> int:
        return self._count(self._oom_file, b"max")

    def kill(self) -> bool:
        try:
            self._write_all((Write("freezer", "cgroup.kill", 1),))
        except FileNotFoundError:  # before Linux 5.14
            return False
        return True


class CgroupTree:
    """The bases, below which this process may make and remove what it likes."""

    def __init__(self, version: int, paths: Mapping[str, str]) -> None:
        self.version = version
        self._paths = paths
        self._kind: type[Cgroup] = _Version2 if version == 2 else _Version1

    def __repr__(self) -> str:
        return f"<CgroupTree v{self.version} {self._paths['memory']}>"

    def make(self, name: str) -> Cgroup:
        """Empty and without a limit of memory, in all hierarchies or in none.

        Blocks; raises OSError.
        """
        cgroup = self._kind(name, {c: f"{base}/{name}" for c, base in self._paths.items()})
        # One that is left over has limits, counters and perhaps processes: never use it again.
        if not cgroup.remove():
            raise FileExistsError(f"something still lives in the cgroup {name}")
        try:
            for base in dict.fromkeys(self._paths.values()):
                os.mkdir(f"{base}/{name}", 0o755)
            cgroup.prepare()
        except OSError:
            cgroup.remove()
            raise
        return cgroup


def inherited_cgroups() -> CgroupTree | None:
    """The bases that the launcher made; None when it made none."""
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    given = json.loads(text)
    return CgroupTree(given["version"], given["paths"])


def _is_removed(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
