"""A process that forks for each line it reads; the child runs a handler and answers.

This is as little as a cold start by fork can be: no isolation, no limits, no log.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            module: dict[str, Any] = {}
            exec(compile(Path(sys.argv[1]).read_bytes(), sys.argv[1], "exec"), module)
            print(json.dumps(module["handler"](json.loads(line), None)), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
