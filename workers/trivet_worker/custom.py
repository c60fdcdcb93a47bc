"""Custom: from a jailed, blank process to the user's own runtime, a program named `bootstrap`.

It runs after the last drop of privilege. Its variables must be there when the program starts, so
the order is read here and not by the zygote. From then on the Runtime API is all that connects.
"""

from __future__ import annotations

import json
import os
from typing import Any, NoReturn

from trivet_worker.runtime import Channel, ChannelClosed
from trivet_worker.wire import CHANNEL_FD, INIT, INIT_FAILED, RUNTIME_PORT

_PLACES = ("/var/task/bootstrap", "/opt/bootstrap")


def run() -> NoReturn:
    """Become the program. What keeps it from starting is reported as AWS does."""
    channel = Channel(CHANNEL_FD)
    try:
        kind, attempt, body = channel.receive()
        if kind != INIT:
            raise ChannelClosed("the first frame must be INIT")
        channel.send(INIT_FAILED, attempt, json.dumps(_execute(json.loads(body))).encode())
    except ChannelClosed:
        pass  # nobody is left to tell
    os._exit(1)


def _execute(order: dict[str, Any]) -> dict[str, str]:
    """Returns only what went wrong."""
    variables = {**order["environment"], "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{RUNTIME_PORT}"}
    os.set_inheritable(CHANNEL_FD, False)  # closes as the program starts
    problem = f"Couldn't find valid bootstrap(s): [{' '.join(_PLACES)}]"
    for path in _PLACES:
        try:
            os.execve(path, [path], variables)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            problem = f"fork/exec {path}: {os.strerror(error.errno or 0).lower()}"
            break
    return {"errorType": "Runtime.InvalidEntrypoint", "errorMessage": f"Error: {problem}"}
