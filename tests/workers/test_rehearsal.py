"""What a Python zygote does once so that its environments need not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import trivet_worker
from trivet_worker import wire

_WORKERS = Path(trivet_worker.__file__).parent.parent

# In a process of its own, as a zygote is: without variables, and before anything is registered.
_SCRIPT = """
import os, sys, json
sys.path.insert(0, {workers!r})
os.environ.clear()
before = sys.path[:], sys.argv[:], sys.meta_path[:], sys.stdout, sys.stderr
from trivet_worker import hooks
with hooks.deferred():
    from trivet_worker import runtime
    served = []
    serve = runtime._serve_to_the_end
    runtime._serve_to_the_end = lambda descriptor: served.append(serve(descriptor))
    answers = []
    send = runtime.Channel.send
    runtime.Channel.send = lambda self, *sent: (answers.append(sent[0]), send(self, *sent))
    runtime.preload()
after = sys.path[:], sys.argv[:], sys.meta_path[:], sys.stdout, sys.stderr
assert before == after
print(json.dumps([dict(os.environ), "sample" in sys.modules, sorted(set(answers)), len(served),
    len(hooks._deferred), sys.dont_write_bytecode]))
"""


def test_a_rehearsal_succeeds_and_leaves_the_zygote_as_it_was() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", _SCRIPT.format(workers=str(_WORKERS))],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    variables, is_left, answers, rounds, deferred, writes_none = json.loads(done.stdout)
    assert variables == {}
    assert not is_left
    assert answers == [wire.INITIALISED, wire.RESULT]  # and no failure among them
    assert rounds > 8  # CPython adapts code that has run eight times
    assert deferred >= 2  # those of threading and logging, at least
    assert not writes_none
    assert done.stderr == ""
