"""Victims: the processes of a running platform, by the part they play."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.conftest import descendants

# What tells each from the others on its command line.
SERVICES = {
    "supervisor": "trivet.supervisor",
    "gateway": "trivet.gateway",
    "adapters": "trivet.adapters",
    "zygote": "--kind python",
    "express": "express.sock",
    "durable": "durable.sock",
}
ENVIRONMENT = "environment"
STANDBY = "standby"  # what one calls itself that is loaded and does not serve yet
PARTS = (*SERVICES, ENVIRONMENT)


def find(launcher: int, part: str) -> list[int]:
    """The pids that play it: one or none of a service, any number of environments."""
    family = descendants(launcher)
    if part == ENVIRONMENT:
        # They have no command line, unlike the template beside them; spares are among them.
        zygotes = find(launcher, "zygote")
        named = {pid for pid in family if _plays(pid, SERVICES["zygote"])}
        return sorted(pid for pid in family - named if _parent(pid) in zygotes)
    found = [pid for pid in family if _parent(pid) == launcher and _plays(pid, SERVICES[part])]
    # A zygote that stands by has no name of its own, but it is the younger one.
    return sorted(found, key=_started)[:1] if part == "zygote" else found


def _plays(pid: int, words: str) -> bool:
    try:
        if Path(f"/proc/{pid}/comm").read_text().strip() == STANDBY:
            return False
        return words.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return False


def _parent(pid: int) -> int:
    return _number(pid, 1)


def _started(pid: int) -> int:
    """When, in ticks."""
    return _number(pid, 19)


def _number(pid: int, field: int) -> int:
    """Of what follows its name in /proc/PID/stat; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[field])
    except OSError:
        return 0
