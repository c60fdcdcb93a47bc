"""The limit prototype, full event: two processes, workers, a server of the same make."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from trivet.launcher.embedded import server_program

PORT = "18100"


@contextmanager
def limit(prototype: Path, workers: int) -> Iterator[str]:
    """Its hello-world's URL."""
    with tempfile.TemporaryDirectory(prefix="trivet-bench-") as folder, ExitStack() as stack:
        socket = Path(folder) / "s"

        def start(*command: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                command, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        program, python, proto = server_program(), sys.executable, str(prototype.resolve())
        server = start(program, "--port", "0", "--unixsocket", str(socket), "--save", "")
        while not socket.exists():
            assert server.poll() is None
        start(python, proto, "supervisor", "--workers", str(workers), "--redis", str(socket))
        # Its gateway loses what it publishes before its supervisor made the group.
        with redis.Redis(unix_socket_path=str(socket)) as client:
            while not client.exists("inv:hello"):
                pass
        start(python, proto, "gateway", "--full", "--port", PORT, "--redis", str(socket))
        yield f"http://127.0.0.1:{PORT}/hello-world?name=Alice"
