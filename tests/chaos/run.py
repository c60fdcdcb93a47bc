"""The way in for `./run chaos` and `./run soak`: puts the root of the tree on the path."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":
    # In place of this folder, whose files are no top-level modules.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    verb = sys.argv.pop(1)
    import_module(f"tests.chaos.{verb}").main()
