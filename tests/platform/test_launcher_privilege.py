"""The launcher's view: another uid reaches what lies in a closed home, and nothing else there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.platform.launched import DEADLINE_S, Launched

from trivet.launcher import privilege
from trivet.launcher.privilege import Needs
from trivet.launcher.refusals import Unusable

STRANGER = 64_199

# Enters the view of argv's needs, then looks around as another uid with each of its commands.
LOOK = """
import json, os, sys
sys.path[:0] = json.loads(sys.argv[1])
from pathlib import Path
from trivet.launcher import privilege, processes
from trivet.launcher.identities import Identity
from trivet.launcher.processes import ServiceSpec

needs = privilege.Needs(*(tuple(map(Path, paths)) for paths in json.loads(sys.argv[2])))
privilege.enter(privilege.view(needs))
uid = int(sys.argv[3])
for command in sys.argv[4:]:
    argv = ("/bin/sh", "-c", command)
    spec = ServiceSpec(name="x", argv=argv, identity=Identity(uid, uid))
    os.waitpid(processes.start(spec, log=1), 0)
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that only root may pass, with a file that is nobody's business."""
    launched = Launched()
    home = launched.folder / "home"
    home.mkdir(mode=0o700)
    (home / "secret").write_text("secret")
    yield home
    launched.close()


def look(read: list[Path], write: list[Path], *commands: str) -> list[str]:
    """What a stranger's `commands` print, in the view of these needs."""
    # What the looking interpreter itself needs, wherever it lives.
    own = [Path(sys.prefix), Path(sys.base_prefix), *privilege.source_folders()]
    needs = json.dumps([[*map(str, [*own, *read])], [*map(str, write)]])
    told = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps(sys.path), needs, str(STRANGER), *commands],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    return told.stdout.splitlines()


def folder(path: Path, text: str = "") -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(text)
    return path


def test_what_all_can_reach_needs_no_view() -> None:
    assert not privilege.view(Needs((Path("/usr"), Path("/bin/sh")))).is_needed


def test_the_view_covers_the_outermost_closed_folder_only(home: Path) -> None:
    inner = home / "inner"
    inner.mkdir(mode=0o700)
    tool = folder(inner / "first")
    data = folder(home / "tool" / "data")
    view = privilege.view(Needs((tool, home / "tool"), (data,)))
    assert view.covers == (home,)
    assert view.binds == (home / "tool", tool, data)


def test_a_tool_that_cannot_be_read_is_refused_with_the_fix(home: Path) -> None:
    tool = folder(home / "tool")
    tool.chmod(0o700)
    with pytest.raises(Unusable) as caught:
        privilege.check_readable(Needs((tool,)))
    assert caught.value.hint == f"chmod -R go+rX {tool}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs a view, and can make one")
class TestAsRoot:
    def test_a_stranger_reads_what_is_needed_and_nothing_beside_it(self, home: Path) -> None:
        tool = folder(home / "deep" / "tool", "hammer")
        folder(home / "deep" / "other", "saw")
        told = look(
            [tool],
            [],
            f"cat {tool}/file; echo",
            f"cat {home}/secret {home}/deep/other/file 2>/dev/null || echo hidden",
            f"ls {home} {home}/deep | tr '\\n' ' '; echo",
        )
        assert told == ["hammer", "hidden", f"{home}: deep  {home}/deep: tool "]

    def test_it_writes_only_where_it_must(self, home: Path) -> None:
        clone = folder(home / "clone")
        data = folder(clone / "data" / "run")
        os.chown(data, STRANGER, STRANGER)
        clone.chmod(0o777)
        told = look(
            [clone],
            [data],
            f"echo kept > {data}/new && echo written",
            f"(echo x > {clone}/new) 2>/dev/null || echo refused",
            f"(echo x > {home}/new) 2>/dev/null || echo refused",
        )
        assert told == ["written", "refused", "refused"]
        assert (data / "new").read_text() == "kept\n"
        assert not (clone / "new").exists()

    def test_links_lead_on_inside_a_closed_home(self, home: Path) -> None:
        folder(home / "versions" / "3.11.7", "python")
        (home / "versions" / "3.11").symlink_to("3.11.7")
        (home / "current").symlink_to(home / "versions" / "3.11")
        told = look([home / "current"], [], f"cat {home}/current/file {home}/versions/3.11/file")
        assert told == ["pythonpython"]

    def test_a_python_in_a_closed_home_runs_for_a_stranger(self, home: Path) -> None:
        venv.create(home / "clone" / ".venv", symlinks=True)
        python = home / "clone" / ".venv" / "bin" / "python"
        program = "import json, os, sys; print(os.getuid(), sys.prefix)"
        told = look([home / "clone" / ".venv", python], [], f"{python} -I -c '{program}'")
        assert told == [f"{STRANGER} {home}/clone/.venv"]

    def test_the_machine_itself_stays_as_it_is(self, home: Path) -> None:
        before = Path("/proc/self/mounts").read_text()
        look([folder(home / "tool")], [], "true")
        assert Path("/proc/self/mounts").read_text() == before
        assert sorted(path.name for path in home.iterdir()) == ["secret", "tool"]

    def test_a_platform_serves_with_its_data_in_a_closed_home(self) -> None:
        launched = Launched()
        home = launched.folder / "home"
        home.mkdir(mode=0o700)
        launched.settings = replace(launched.settings, data=str(home / "clone" / "data"))
        try:
            process = launched.up()
            process.send_signal(signal.SIGTERM)
            assert launched.ended(process) == 0
        finally:
            launched.close()
