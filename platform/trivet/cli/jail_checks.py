"""Jail checks: what isolates functions on this machine, each tried, and the command that mends it.

Nothing here keeps the platform from working, so nothing is a problem, unless `isolation_minimum`
asks for more than a running platform has.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trivet.cli.checks import Finding, ok, problem, text_of, warning
from trivet.cli.running import find_running
from trivet.cli.screen import command
from trivet.errors import TrivetError
from trivet.settings import Settings

_TRIED_WITHIN_S = 20.0

_KINDS = {
    "mount": 0x0002_0000,
    "PID": 0x2000_0000,
    "network": 0x4000_0000,
    "IPC": 0x0800_0000,
    "UTS": 0x0400_0000,
    "cgroup": 0x0200_0000,
}
# Each in turn, by a process of its own: what was tried cannot be undone. AppArmor may grant a user
# namespace and then no right in it, which only a mount tells.
_TRY_NAMESPACES = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
told = {}
def tried(name, failed):
    told[name] = os.strerror(ctypes.get_errno()) if failed else ""
if os.geteuid():
    tried("user", libc.unshare(0x10000000))
for name, flag in json.loads(sys.argv[1]).items():
    tried(name, libc.unshare(flag))
tried("a mount in it", libc.mount(b"none", b"/", None, ctypes.c_ulong(0x44000), None))
print(json.dumps(told))
"""
# In a network namespace of its own, so that it finds nobody's names and leaves nothing.
_TRY_NETWORK = """
import ctypes, ipaddress, os, sys
libc = ctypes.CDLL(None, use_errno=True)
try:
    if libc.unshare(0x40000000):
        raise OSError(ctypes.get_errno(), "unshare")
    from trivet.provisioner import wire
    from trivet.provisioner.networks import Networks
    networks = Networks("d0c70d", ipaddress.IPv4Network(sys.argv[1]), [], egress=True)
    networks.begin([])
    os.close(networks.make(0, wire.INTERNET, 1))
    networks.end()
except Exception as error:
    print(str(error) or type(error).__name__)
"""
_TRY_SCRATCH = """
import os, sys, tempfile
try:
    from trivet.provisioner.scratch import Scratch
    with tempfile.TemporaryDirectory(prefix=".trivet-doctor-", dir=sys.argv[1]) as folder:
        scratch = Scratch(folder)
        os.close(scratch.make(64))
        scratch.end()
except Exception as error:
    print(str(error) or type(error).__name__)
"""

# Root uses no data folder that belongs to somebody else.
_AS_ROOT = "sudo {} up --data /var/lib/trivet"
_IN_DOCKER = "docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt seccomp=unconfined"


def namespaces(settings: Settings) -> Iterator[Finding]:
    told = json.loads(_tried(_TRY_NAMESPACES, json.dumps(_KINDS)))
    is_root = os.geteuid() == 0
    refused = {name: reason for name, reason in told.items() if reason}
    if not refused:
        how = "as root" if is_root else "through a user namespace"
        yield ok("namespaces", f"{', '.join(_KINDS)}: all can be made {how}")
        return
    reasons = ", ".join(f"{name}: {reason}" for name, reason in refused.items())
    fix = f"{_IN_DOCKER} ..." if is_root else _userns_fix()
    yield warning("namespaces", f"functions are only processes, for lack of {reasons}", fix)


def _tried(program: str, *arguments: str) -> str:
    """What a process of our own interpreter says of what it tried."""
    told = subprocess.run(
        [sys.executable, "-I", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=_TRIED_WITHIN_S,
        check=False,
    )
    if told.returncode:
        raise OSError(told.stderr.strip().rpartition("\n")[2] or f"status {told.returncode}")
    return told.stdout.strip()


_USERNS_SWITCHES = (
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ("user.max_user_namespaces", "0", "15000"),
)


def _userns_fix() -> str:
    for name, bad, good in _USERNS_SWITCHES:
        if text_of(_switch(name)) == bad:
            return f"sudo sysctl -w {name}={good}"
    return _AS_ROOT.format(command())


def user_namespaces(settings: Settings) -> Iterator[Finding]:
    if not Path("/proc/self/ns/user").exists():
        yield warning("userns", "the kernel has no user namespaces", _AS_ROOT.format(command()))
        return
    shut = [name for name, bad, _ in _USERNS_SWITCHES if text_of(_switch(name)) == bad]
    if shut and os.geteuid() != 0:
        yield warning("userns", f"closed by {shut[0]}", _userns_fix())
    else:
        yield ok("userns", "not needed by root" if os.geteuid() == 0 else "open to every user")


def _switch(name: str) -> Path:
    return Path("/proc/sys", *name.split("."))


# ------------------------------------------------------------------------ what the kernel has


_FILTERED_MACHINES = ("x86_64", "aarch64")


def seccomp(settings: Settings) -> Iterator[Finding]:
    machine = platform.machine()
    if "errno" not in text_of(Path("/proc/sys/kernel/seccomp/actions_avail")).split():
        fix = "grep SECCOMP_FILTER /boot/config-$(uname -r)  # boot a kernel that has it"
        yield warning("seccomp", "the kernel filters no system calls", fix)
    elif machine not in _FILTERED_MACHINES:
        known = " and ".join(_FILTERED_MACHINES)
        text = f"there is no filter of system calls for {machine}, only for {known}"
        yield warning("seccomp", text, "uname -m")
    else:
        yield ok("seccomp", f"system calls can be filtered ({machine})")


_LANDLOCK_CREATE_RULESET = 444  # one number on every architecture
_ONLY_THE_VERSION = 1


def landlock(settings: Settings) -> Iterator[Finding]:
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _ONLY_THE_VERSION)
    if version > 0:
        yield ok("landlock", f"version {version}")
        return
    if ctypes.get_errno() == errno.EOPNOTSUPP:
        modules = text_of(Path("/sys/kernel/security/lsm")) or "yama,integrity,apparmor,bpf"
        fix = (
            f"""sudo sed -i 's/^GRUB_CMDLINE_LINUX="/&lsm=landlock,{modules} /' /etc/default/grub"""
            " && sudo update-grub && sudo reboot"
        )
        yield warning("landlock", "it is turned off at boot", fix)
    else:
        fix = "grep LANDLOCK /boot/config-$(uname -r)  # boot a kernel that has it"
        yield warning("landlock", "the kernel does not have it", fix)


def cgroups(settings: Settings) -> Iterator[Finding]:
    """Whether the platform could make cgroups from here."""
    from trivet.launcher.hierarchies import survey

    unbounded = "memory, CPU and processes of a function have no bounds"
    found = survey()
    if found.reason:
        fix = "sudo mount -t cgroup2 none /sys/fs/cgroup"
        yield warning("cgroup", f"{found.reason}: {unbounded}", fix)
        return
    kind = f"v{found.version}"
    if os.geteuid() != 0:
        yield warning("cgroup", f"{kind}, for root only: {unbounded}", _AS_ROOT.format(command()))
        return
    shut = sorted({str(folder) for folder in found.own.values() if not os.access(folder, os.W_OK)})
    offered = text_of(found.tops["memory"] / "cgroup.controllers").split()
    missing = [name for name in ("memory", "cpu", "pids") if name not in offered]
    if shut:
        fix = "docker run --cgroupns private --security-opt writable-cgroups=true ..."
        yield warning("cgroup", f"{kind}, but {shut[0]} cannot be written: {unbounded}", fix)
    elif found.version == 2 and missing:
        fix = "sudo systemctl edit trivet  # [Service] Delegate=yes"
        yield warning("cgroup", f"v2 without {', '.join(missing)}: {unbounded}", fix)
    else:
        yield ok("cgroup", f"{kind}: memory, CPU and processes can be bounded")


# ------------------------------------------------------------------- what the provisioner needs


def networks(settings: Settings) -> Iterator[Finding]:
    if os.geteuid() != 0:
        text = "without root functions have no way out of their own network"
        yield warning("network", text, _AS_ROOT.format(command()))
    elif reason := _tried(_TRY_NETWORK, settings.network_range):
        fix = "sudo modprobe -a veth nf_tables nft_masq nft_ct"
        yield warning("network", f"functions reach nothing outside: {reason}", fix)
    else:
        yield ok("network", f"functions reach the outside from {settings.network_range}")


def firewall(settings: Settings) -> Iterator[Finding]:
    """A firewall that drops what it does not know stands in the way of functions."""
    if os.geteuid() != 0 or settings.egress == "none":
        return
    dropping = _dropping_chains()
    if dropping is None:
        yield ok("firewall", "none can be seen: neither nft nor iptables is installed")
    elif not dropping:
        yield ok("firewall", "it lets functions out")
    for name, fix in dropping or ():
        text = f"{name} drops what is forwarded, and so all traffic of functions"
        yield warning("firewall", text, fix)


def _dropping_chains() -> list[tuple[str, str]] | None:
    """Chains that drop by default what this host forwards, each with a command that opens it.

    None when there is no program to ask.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    found: list[tuple[str, str]] = []
    nft, iptables = (shutil.which(name, path=path) for name in ("nft", "iptables"))
    if nft:
        found += dropping_in_nft(json.loads(_said([nft, "-j", "list", "chains"]) or "{}"))
    elif iptables:
        found += dropping_in_iptables(_said([iptables, "-S", "FORWARD"]))
    return found if nft or iptables else None


def _said(argv: Sequence[str]) -> str:
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=_TRIED_WITHIN_S, check=False
    ).stdout


def dropping_in_nft(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """From what `nft -j list chains` says."""
    for entry in told.get("nftables", ()):
        chain = entry.get("chain", {})
        if chain.get("hook") == "forward" and chain.get("policy") == "drop":
            where = f"{chain['family']} {chain['table']} {chain['name']}"
            rule = f"sudo nft insert rule {where}"
            yield (
                f"nftables chain {where}",
                f"""{rule} iifname '"tv*"' accept; {rule} oifname '"tv*"' accept""",
            )


def dropping_in_iptables(told: str) -> Iterator[tuple[str, str]]:
    """From what `iptables -S FORWARD` says."""
    if "-P FORWARD DROP" in told.splitlines():
        rule = "sudo iptables -I FORWARD"
        yield "iptables chain FORWARD", f"{rule} -i tv+ -j ACCEPT; {rule} -o tv+ -j ACCEPT"


def scratch(settings: Settings) -> Iterator[Finding]:
    """Whether /tmp of functions can be on disk."""
    if settings.scratch == "memory":
        yield ok("scratch", "in memory, as set")
        return
    if os.geteuid() != 0:
        text = "without root /tmp of functions is in memory"
        yield warning("scratch", text, _AS_ROOT.format(command()))
        return
    place = settings.data_path
    while not place.is_dir():
        place = place.parent
    if reason := _tried(_TRY_SCRATCH, str(place)):
        fix = "sudo modprobe loop && sudo apt-get install e2fsprogs"
        yield warning("scratch", f"/tmp of functions is in memory: {reason}", fix)
    else:
        yield ok("scratch", "/tmp of functions is on disk")


# ------------------------------------------------------------------------- what came of it


def isolation(settings: Settings) -> Iterator[Finding]:
    """The level that a running platform has."""
    from trivet.core.isolation import Level, level, missing

    try:
        running = find_running(settings)
    except TrivetError:
        return  # the platform's own line says it
    if running is None or "isolation_bits" not in running.details:
        return
    bits = int(running.details["isolation_bits"])
    text, reached = str(running.details["isolation"]), level(bits)
    if reached is Level.L3:
        yield ok("isolation", text)
        return
    text = f"{text}. For {Level(reached + 1).name} functions lack {', '.join(missing(bits))}"
    again = f"{command()} down; {command()} up --detach  # after the lines above"
    if os.geteuid() != 0 and reached is Level.L2:  # which is as far as it goes
        again = f"{command()} down; {_AS_ROOT.format(command())}"
    complain = problem if reached < Level[settings.isolation_minimum] else warning
    yield complain("isolation", text, again)


OF_THE_JAIL = (
    *(namespaces, user_namespaces, seccomp, landlock, cgroups),
    *(networks, firewall, scratch, isolation),
)
