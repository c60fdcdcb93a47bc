"""Fetching: Node.js runtimes from the package index, by hash, each in a folder of its own."""

from __future__ import annotations

import importlib.resources
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from trivet.cli.screen import command, say
from trivet.errors import PlatformError, Unavailable

# What of a runtime says which lock it was fetched by, as `./run` writes it too.
LOCK_COPY = "lock.txt"


def lock_of(name: str) -> Path | None:
    """The lock of a runtime ("nodejs22.x"): one version, and the hashes of its wheels."""
    package = Path(str(importlib.resources.files("trivet")))
    file = f"{name.removesuffix('.x')}.txt"
    # In an installed package, and in a clone.
    places = (package / "locks" / file, package.parent.parent / "deploy" / "locks" / file)
    return next((place for place in places if place.is_file()), None)


def is_fetched(lock: Path, place: Path) -> bool:
    copy = place / LOCK_COPY
    return copy.is_file() and copy.read_bytes() == lock.read_bytes()


def fetch(lock: Path, place: Path, *, quiet: bool) -> None:
    """Fetch what `lock` names to the folder `place`, which appears whole or not at all.

    Raises PlatformError when it cannot be fetched, or is not what the lock says.
    """
    with tempfile.TemporaryDirectory(prefix=f"{place.name}.", dir=place.parent) as folder:
        draft = Path(folder) / "new"
        _install(lock, draft, quiet=quiet)
        shutil.copyfile(lock, draft / LOCK_COPY)
        if place.exists():
            place.rename(Path(folder) / "old")
        draft.rename(place)


def _install(lock: Path, target: Path, *, quiet: bool) -> None:
    # By hash, and wheels only: no package's code runs.
    options = ("--require-hashes", "--only-binary", ":all:", "--no-deps")
    words = [*_installer(), *options, "--target", str(target), "-r", str(lock)]
    shows_progress = sys.stderr.isatty() and not quiet
    ended = subprocess.run(
        words if shows_progress else [*words, "--quiet"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if shows_progress else subprocess.DEVNULL,
        stderr=None if shows_progress else subprocess.PIPE,
        text=True,
        check=False,
        umask=0o022,  # environments run it under uids of their own
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USER": "0"},
    )
    if ended.returncode:
        told = [line for line in (ended.stderr or "").splitlines() if line.strip()]
        if not quiet:
            for line in told:
                say(f"  | {line}")
        message = f"the runtime of {lock.name} could not be fetched; is there a network?"
        hint = f"{command()} runtime add {lock.stem}.x"
        raise PlatformError(message, hint=hint)


def _installer() -> Sequence[str]:
    if importlib.util.find_spec("pip") is not None:
        return (sys.executable, "-m", "pip", "install", "--no-input")
    program = shutil.which("uv")
    if program is None:
        raise Unavailable("there is neither pip nor uv", hint=f"{sys.executable} -m ensurepip")
    return (program, "pip", "install", "--python", sys.executable)
