"""trivet version: what is installed here."""

from __future__ import annotations

import json
import platform

from trivet.cli.options import Json


def version(as_json: Json = False) -> None:
    """Print the version."""
    from importlib.metadata import version as installed  # 25 ms that every other verb would pay

    versions = {"trivet": installed("trivet"), "python": platform.python_version()}
    if as_json:
        print(json.dumps(versions))
    else:
        print(f"trivet {versions['trivet']}  (Python {versions['python']})")
