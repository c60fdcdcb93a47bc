"""Rehearsal: a zygote plays the life of an environment, before the first one is forked.

An interpreter remembers what it did: how an attribute was found, what a line of code is applied
to. Where each environment has to learn it anew, each pays in time and in copied pages. What the
zygote has learned, all share.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

from trivet_worker.wire import EVENT, EVENT_HEAD, FRAME, INIT

# CPython adapts code when it has run eight times, and settles in a few more.
_ROUNDS = 16
_EVENTS = 2  # the first one of an environment takes other ways than the rest

_FOLDER = os.path.dirname(__file__)
_MODULE = "sample"
_ORDER = {
    "handler": f"{_MODULE}.handler",
    "task_root": _FOLDER,
    "environment": {"LANG": "en_US.UTF-8"},
    "function": {
        "name": _MODULE,
        "version": "$LATEST",
        "memory_mb": 128,
        "log_group": "",
        "log_stream": "",
    },
}
_PAYLOAD = {"text": "Hello", "list": [1, 2.5, True, None], "object": {"key": "value"}}


def rehearse(serve: Callable[[int], None]) -> None:
    """`serve` is given the descriptor of a channel, and returns when that ends."""
    order = json.dumps(_ORDER).encode()
    strings = (b"8f507cfc-example-4697-b07a-ac58fc914c95", b"arn:aws:lambda", b"", b"")
    event = EVENT_HEAD.pack(0, *map(len, strings)) + b"".join(strings)
    event += json.dumps(_PAYLOAD).encode()
    script = FRAME.pack(INIT, 0, len(order)) + order
    script += (FRAME.pack(EVENT, 1, len(event)) + event) * _EVENTS
    for _ in range(_ROUNDS):
        ours, theirs = socket.socketpair()
        with ours, theirs, _restored():
            ours.sendall(script)
            ours.shutdown(socket.SHUT_WR)
            serve(theirs.fileno())


@contextmanager
def _restored() -> Iterator[None]:
    """The process is afterwards what it was: a zygote, without variables."""
    lists = sys.path[:], sys.argv[:], sys.meta_path[:]
    values = sys.stdout, sys.stderr, sys.dont_write_bytecode
    try:
        yield
    finally:
        sys.path[:], sys.argv[:], sys.meta_path[:] = lists
        sys.stdout, sys.stderr, sys.dont_write_bytecode = values
        os.environ.clear()
        sys.modules.pop(_MODULE, None)
        sys.path_importer_cache.pop(_FOLDER, None)
