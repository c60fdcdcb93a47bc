"""Coverage: which lines and branches of the jailer no test of the workers reaches.

`python -m tests.workers.coverage` runs their tests, with all zygotes and environments recorded (see
recorder.py), and says what was missed: a statement that never ran, a condition that was always true
or always false, a loop that was never entered or never ended by itself. What a single expression
decides (`x if y else z`, `y and z`) is not looked into. Needs root.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.workers import driver, recorder
from tests.workers.recorder import LINES

MODULES = (
    *("doors", "filters", "heritage", "isolation", "kernel", "landlock", "link"),
    *("making", "pools", "template", "trials", "view", "zygote"),
)
PATHS = [str(driver.WORKERS / f"trivet_worker/{name}.py") for name in MODULES]
TESTS = [
    str(Path(__file__).with_name(f"test_{name}.py"))
    for name in ("zygote", "isolation", "places", "bare_machine", "jailer", "fuzz")
]

NEVER, ALWAYS, NOT_ONCE = "never runs", "is always true", "is never true"


@dataclass(frozen=True)
class Gap:
    """What was not reached, told by the text of the line, which outlives its number."""

    module: str
    text: str
    kind: str


# What cannot be reached on a machine of ours, and why. What is reached after all must go.
_OTHER_LIBRARY = "a C library unlike all that we know, where no environment could be forked"
EXEMPT = {
    Gap("kernel", "if not 0 <= place < _THREAD_WORDS:", NOT_ONCE): _OTHER_LIBRARY,
    Gap("kernel", "raise OSError(errno.ENOSYS, _NO_PLACE)", NEVER): _OTHER_LIBRARY,
    Gap("kernel", "for capability in range(64):", ALWAYS): "no kernel knows 64 of them",
}
# What depends on what else asks for memory meanwhile, as recording does.
EITHER = {Gap("pools", "for _ in repeat(None, _MOST_BATCHES):", ALWAYS)}


def gaps(module: str, source: str, arcs: set[tuple[int, int]]) -> Iterator[tuple[int, Gap]]:
    """With their lines. `arcs` are pairs of lines that followed each other; 0 is in and out."""
    lines = source.splitlines()
    for node in _statements(ast.parse(source)):
        for kind in _missed(node, arcs):
            yield node.lineno, Gap(module, lines[node.lineno - 1].strip(), kind)


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not is_text:
            yield node


def _missed(node: ast.stmt, arcs: set[tuple[int, int]]) -> Iterator[str]:
    head = _head(node)
    if not any(after in head for _, after in arcs):
        yield NEVER
    elif isinstance(node, (ast.If, ast.While, ast.For)):
        body = range(node.body[0].lineno, (node.body[-1].end_lineno or 0) + 1)
        ways = {after for before, after in arcs if before in head and after not in head}
        if not any(after in body for after in ways):
            yield NOT_ONCE
        is_endless = isinstance(node, ast.While) and isinstance(node.test, ast.Constant)
        if not is_endless and all(after in body for after in ways):
            yield ALWAYS


def _head(node: ast.stmt) -> range:
    """The lines of a statement without those of the statements in it."""
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
    inner = getattr(node, "body", None)
    return range(first, inner[0].lineno if inner else (node.end_lineno or 0) + 1)


def run(tests: Sequence[str]) -> tuple[int, list[set[tuple[int, int]]]]:
    """pytest's exit status, and the arcs of each of MODULES."""
    size = recorder.size_of(PATHS)
    memory = os.memfd_create("arcs", 0)
    os.ftruncate(memory, size)
    driver.recording = (memory, Path(recorder.__file__).read_text(), PATHS)
    recorder.record(memory, PATHS)  # for what tests call in this process
    status = int(pytest.main(["-q", "-p", "no:cacheprovider", "-n0", "--timeout=120", *tests]))
    sys.settrace(None)
    data = os.pread(memory, size, 0)
    os.close(memory)
    found: list[set[tuple[int, int]]] = [set() for _ in PATHS]
    place = data.find(1)
    while place >= 0:
        module, arc = divmod(place, LINES * LINES)
        found[module].add(divmod(arc, LINES))
        place = data.find(1, place + 1)
    return status, found


def main(tests: Sequence[str]) -> int:
    status, found = run(tests or TESTS)
    missed = dict.fromkeys(EXEMPT, False)
    unexpected = 0
    for module, path, arcs in zip(MODULES, PATHS, found, strict=True):
        for line, gap in gaps(module, Path(path).read_text(), arcs):
            if gap in missed:
                missed[gap] = True
            elif gap not in EITHER:
                unexpected += 1
                print(f"{module}.py:{line} {gap.kind}: {gap.text}")
    for gap in (gap for gap, is_missed in missed.items() if not is_missed):
        unexpected += 1
        print(f"{gap.module}.py is reached after all, or gone: {gap.text} ({gap.kind})")
    return status or min(unexpected, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
