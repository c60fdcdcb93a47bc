"""The README is a transcript: every command in it is run as written, and prints what it says."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Step:
    command: str
    expected: str


def steps(text: str) -> Iterator[Step]:
    """The commands of all `console` blocks: `$ ` begins one, `> ` goes on with it."""
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        command: list[str] = []
        output: list[str] = []
        for line in block.splitlines():
            if line.startswith("$ "):
                if command:
                    yield Step("\n".join(command), "\n".join(output))
                command, output = [line[2:]], []
            elif line.startswith(">") and not output:
                command.append(line[2:])
            else:
                output.append(line)
        yield Step("\n".join(command), "\n".join(output))


def matches(expected: str, printed: str) -> bool:
    pattern = ".*?".join(re.escape(part) for part in expected.split("..."))
    return re.fullmatch(pattern, printed.strip("\n"), re.DOTALL) is not None


@pytest.fixture
def shell() -> Iterator[subprocess.Popen[str]]:
    """A shell as a newcomer has it: in the clone, with no AWS settings and ports that are free."""
    # Not below pytest's own folder, which is closed to the services' users.
    clone = Path(tempfile.mkdtemp(prefix="trivet-readme-"))
    clone.chmod(0o755)
    for name in ("run", "platform", "workers", "adapters", ".venv"):
        (clone / name).symlink_to(ROOT / name)
    data = clone / "data"
    data.mkdir(mode=0o755)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "TRIVET_"))}
    env |= {f"TRIVET_{name}_PORT": "0" for name in ("AWS", "HTTP", "CONSOLE")}
    env |= {"TRIVET_DATA": str(data), "NO_COLOR": "1"}
    with subprocess.Popen(
        ["bash", "--noprofile", "--norc"],
        cwd=clone,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        yield process
        if process.stdin and not process.stdin.closed:
            process.stdin.write(f"./run down; rm -rf {clone}\n")
            process.stdin.close()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_readme_s_transcript_holds_to_the_letter(shell: subprocess.Popen[str]) -> None:
    """P1"""
    assert shell.stdin
    assert shell.stdout
    count = 0
    for step in steps((ROOT / "README.md").read_text()):
        end = f"--- end of step {count} ---"
        shell.stdin.write(f"{step.command}\necho; echo '{end}'\n")
        shell.stdin.flush()
        printed = ""
        for line in shell.stdout:
            if line.rstrip("\n") == end:
                break
            printed += line
        assert matches(step.expected, printed), f"$ {step.command}\n{printed}"
        count += 1
    assert count > 10
