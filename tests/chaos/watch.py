"""Watch: what a platform occupies on its machine, looked at from outside."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redis import Redis
from tests.chaos.victims import ENVIRONMENT, find
from tests.e2e.conftest import Running, descendants

from trivet.bus import keys

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One moment. The durable server's memory is told apart: it keeps what it is told to keep."""

    descriptors: int  # of launcher, services, zygotes and servers
    pss_kb: int  # of the same, the durable server excepted
    server_kb: int  # of the durable server: what it uses beyond its data
    processes: int
    cgroups: int
    mounts: int  # in the machine's own view
    networks: int  # namespaces in use by its processes
    links: int  # network interfaces of its own
    kept_bytes: int  # data of the durable server
    accepted: int  # events so far

    def figures(self) -> dict[str, int]:
        return {k: v for k, v in asdict(self).items() if k not in ("kept_bytes", "accepted")}


def look(running: Running, durable: Redis) -> Look:
    """`durable`: its server, past everything else."""
    launcher = int(running.state["pid"])
    family = descendants(launcher) | {launcher}
    lasting = family - {*find(launcher, ENVIRONMENT)}
    servers = {*find(launcher, "durable")}
    memory: Any = durable.info("memory")
    return Look(
        descriptors=sum(_count(f"/proc/{pid}/fd") for pid in lasting),
        pss_kb=sum(_pss_kb(pid) for pid in lasting - servers),
        server_kb=(memory["used_memory"] - memory["used_memory_dataset"]) // 1024,
        processes=len(family),
        cgroups=_cgroups(launcher, family),
        mounts=Path("/proc/self/mounts").read_text().count("\n"),
        networks=len({*_links(f"/proc/{pid}/ns/net" for pid in family)}),
        links=_own_links(family),
        kept_bytes=memory["used_memory_dataset"],
        accepted=_accepted(durable),
    )


def _accepted(durable: Redis) -> int:
    names: Any = durable.smembers(keys.LEDGERS)
    found: list[Any] = [durable.hget(keys.totals(name.decode()), "accepted") for name in names]
    return sum(int(count or 0) for count in found)


def _count(folder: str) -> int:
    with suppress(OSError):
        return len(os.listdir(folder))
    return 0


def _pss_kb(pid: int) -> int:
    with suppress(OSError, ValueError, IndexError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return 0


def _links(paths: Iterable[str]) -> Iterable[str]:
    for path in paths:
        with suppress(OSError):
            yield os.readlink(path)


def _own_links(family: set[int]) -> int:
    """Those named by its provisioner, which is told the name that all of them begin with."""
    for pid in family:
        with suppress(OSError, ValueError):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if "trivet.provisioner" in words:
                name = words[words.index("--name") + 1]
                return sum(
                    link.startswith(f"tv{name[:8]}") for link in os.listdir("/sys/class/net")
                )
    return 0


def _cgroups(launcher: int, family: set[int]) -> int:
    """Those below the ones that its processes are in, in every hierarchy: the platform names its
    own by its data folder."""
    roots = set()
    for pid in family:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                place = path.partition("/trivet-")[2].partition("/")[0]
                if place:
                    before = path.partition("/trivet-")[0]
                    roots.add((controllers, f"{before}/trivet-{place}"))
    count = 0
    for controllers, path in roots:
        hierarchy = _CGROUPS / controllers if controllers else _CGROUPS
        for _, folders, _ in os.walk(f"{hierarchy}{path}"):
            count += len(folders)
    return count
