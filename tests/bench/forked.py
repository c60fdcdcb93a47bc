"""A process that forks for each line it reads; the children run a handler and answer.

This is as little as a cold start by fork can be: no isolation, no limits, no log. It has imported
what a zygote has, so that it is as large: forking costs by the size. A line is the number of
children to fork at once, a space, and the event. When all of them are gone it says so by an empty
line.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from trivet_worker import runtime, zygote


def main() -> None:
    runtime.preload()
    assert zygote
    for line in sys.stdin:
        count, _, event = line.partition(" ")
        children = []
        for _ in range(int(count)):
            child = os.fork()
            if child == 0:
                _answer(event)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        os.write(1, b"\n")


def _answer(event: str) -> None:
    module: dict[str, Any] = {}
    exec(compile(Path(sys.argv[1]).read_bytes(), sys.argv[1], "exec"), module)
    answer = json.dumps(module["handler"](json.loads(event), None))
    os.write(1, answer.encode() + b"\n")  # at once, for there are others
    os._exit(0)


if __name__ == "__main__":
    main()
