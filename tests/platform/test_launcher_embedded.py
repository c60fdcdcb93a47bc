"""The launcher's embedded servers: which program, what it keeps, what it says when it cannot."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.platform.launched import DEADLINE_S, Launched

from trivet.launcher import embedded
from trivet.settings import Settings


@pytest.fixture
def launched() -> Iterator[Launched]:
    launched = Launched()
    try:
        yield launched
    finally:
        launched.close()


def told_by(launched: Launched, lane: str, command: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(launched.run / f"{lane}.sock"))
        client.sendall(command + b"\r\n")
        return client.recv(65_536)


def test_the_durable_lane_survives_a_kill_and_the_express_lane_keeps_nothing(
    launched: Launched,
) -> None:
    launched.up()
    for lane, expected in (("durable", b"$5\r\nwhite\r\n"), ("express", b"$-1\r\n")):
        assert told_by(launched, lane, b"SET colour white") == b"+OK\r\n"
        pid = launched.server_pid(lane)
        os.kill(pid, signal.SIGKILL)
        launched.new_server_pid(lane, pid)
        assert told_by(launched, lane, b"GET colour") == expected


def test_no_server_evicts_and_only_the_durable_one_writes(launched: Launched) -> None:
    launched.up()
    for lane, appendonly in (("durable", b"yes"), ("express", b"no")):
        told = told_by(launched, lane, b"CONFIG GET appendonly appendfsync maxmemory-policy save")
        words = [word for word in told.split(b"\r\n") if word[:1] not in (b"*", b"$", b"")]
        values = dict(zip(words[::2], words[1::2], strict=False))
        assert values[b"appendonly"] == appendonly
        assert values[b"maxmemory-policy"] == b"noeviction"
        if lane == "durable":
            assert values[b"appendfsync"] == b"always"


def test_durable_data_that_cannot_be_read_stops_the_start_and_is_left_alone(
    launched: Launched,
) -> None:
    process = launched.up()
    for number in range(20):
        told_by(launched, "durable", b"SET key%d value" % number)
    process.send_signal(signal.SIGTERM)
    assert launched.ended(process) == 0
    (log,) = (launched.settings.data_path / "durable").rglob("*.incr.aof")
    broken = log.read_bytes().replace(b"key7", b"\0\0\0\0").replace(b"*3", b"*X", 5)
    log.write_bytes(broken)
    told = launched.told(again := launched.start())
    assert told["error"].startswith("the durable data cannot be used: Bad file format")
    assert again.wait(DEADLINE_S) == 78
    assert log.read_bytes() == broken


def test_a_lane_with_a_url_gets_no_server() -> None:
    settings = Settings(data="/nowhere", express_url="redis://localhost/0")
    (only,) = embedded.embedded_servers(settings, None)
    assert only.lane == "durable"
    assert not embedded.embedded_servers(replace(settings, durable_url="redis://localhost/1"), None)


def test_the_wheels_server_is_found() -> None:
    assert os.access(embedded.bundled_server() or "", os.X_OK)


def program(path: Path, version: str) -> None:
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    path.chmod(0o755)


def test_an_installed_server_serves_if_it_is_new_enough(tmp_path: Path) -> None:
    assert embedded.installed_server(str(tmp_path)) is None
    program(tmp_path / "redis-server", "6.2.14")
    assert embedded.installed_server(str(tmp_path)) is None
    program(tmp_path / "redis-server", "7.0.15")
    assert embedded.installed_server(str(tmp_path)) == str(tmp_path / "redis-server")


def test_the_reason_is_the_servers_last_warning() -> None:
    log = (
        "7:M 23 Nov 2026 15:00:00.123 * Server initialized\n"
        "7:M 23 Nov 2026 15:00:00.124 # Bad file format reading the append only file x.aof\n"
    )
    assert embedded.reason(log) == "Bad file format reading the append only file x.aof"
    assert embedded.reason("Can't open it\n") == "Can't open it"
    assert embedded.reason("") == "it said nothing"
