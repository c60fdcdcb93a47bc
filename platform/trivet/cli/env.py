"""trivet env: exports for a shell, as in eval "$(trivet env)"."""

from __future__ import annotations

import json
import os
import shlex

from trivet.cli.environment import Environment, environment_of, keyless_environment
from trivet.cli.options import Data, Json
from trivet.cli.running import find_running, not_running
from trivet.errors import TrivetError
from trivet.settings import read_settings


def env(data: Data = None, as_json: Json = False) -> None:
    """Print what makes every AWS client of a shell use this platform: eval "$(trivet env)"

    With the platform down it fails, and what it prints still keeps the shell off real accounts.
    """
    settings = read_settings(flags={"data": data})
    running = None
    refusal: TrivetError | None = None
    try:
        running = find_running(settings)
        environment = environment_of(settings, running, os.environ)
        if running is None:
            refusal = not_running(settings)
    except TrivetError as error:
        environment = keyless_environment(settings, running, os.environ)
        refusal = error
    if as_json:
        print(json.dumps(environment.exports, indent=2))
    else:
        print(_script(environment, is_usable=refusal is None))
    if refusal is not None:
        raise refusal


def _script(environment: Environment, *, is_usable: bool) -> str:
    """Commands for any POSIX shell."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.exports.items()]
    lines.append(f"unset {' '.join(environment.unsets)}")
    if not is_usable:
        lines.append("false")  # so that the eval fails too
    return "\n".join(lines)
