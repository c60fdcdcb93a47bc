"""The way in for `./run bench`: puts the root of the tree on the path and hands over."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # In place of this folder, whose files are no top-level modules.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from tests.bench.verbs import main

    main()
