"""Rehearsal: a zygote plays the life of an environment, before the first one is forked.

An interpreter remembers what it did: how an attribute was found, what a line of code is applied
to. Where each environment has to learn it anew, each pays in time and in copied pages. What the
zygote has learned, all share. An environment that waits plays once more, for itself: the pages
that its function will write to are copied then, and not while somebody waits for an answer.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Callable

from trivet_worker.wire import EVENT, EVENT_HEAD, FRAME, INIT

# CPython adapts code when it has run eight times, and settles in a few more.
_ROUNDS = 16
_EVENTS = 2  # the first one of an environment takes other ways than the rest

_FOLDER = os.path.dirname(__file__)
_MODULE = "sample"
# Inside, where that folder is not to be seen: a small module of the library that nobody needs.
_ELSEWHERE = "/tmp"
_OTHER_MODULE = "colorsys"
_SOURCE = "def handler(event, context):\n    return {'event': event}\n"
_VALUE = "us-east-1" * 4
_ORDER = {
    "handler": f"{_MODULE}.handler",
    # As many as a function has, so that what they need is there as often.
    "environment": {"LANG": "en_US.UTF-8", **{f"AWS_{n}": _VALUE for n in range(30)}},
    "function": {
        "name": _MODULE,
        "version": "$LATEST",
        "memory_mb": 128,
        "log_group": "",
        "log_stream": "",
    },
}
_PAYLOAD = {"text": "Hello", "list": [1, 2.5, True, None], "object": {"key": "value"}}


_sample: list[ModuleType] = []  # as it was loaded last


def rehearse(serve: Callable[[int], None]) -> None:
    """`serve` is given the descriptor of a channel, and returns when that ends."""
    for _ in range(_ROUNDS):
        _play(serve, _FOLDER)


def rehearse_inside(serve: Callable[[int], None]) -> None:
    """Once more in an environment, without a file of ours and without the user's."""
    if not os.access(_ELSEWHERE, os.R_OK):
        return  # the function's log is no place for a failure of ours
    # It is no worse off without: at a lower level the library itself may be out of its sight.
    with contextlib.suppress(OSError, ImportError):
        sys.modules[_MODULE] = _sample[0]
        _play(serve, _ELSEWHERE)
        importlib.import_module(_OTHER_MODULE)
        del sys.modules[_OTHER_MODULE]
        compile(_SOURCE, _MODULE, "exec")


def _play(serve: Callable[[int], None], task_root: str) -> None:
    order = json.dumps({**_ORDER, "task_root": task_root}).encode()
    strings = (b"8f507cfc-example-4697-b07a-ac58fc914c95", b"arn:aws:lambda", b"", b"")
    event = EVENT_HEAD.pack(0, *map(len, strings)) + b"".join(strings)
    event += json.dumps(_PAYLOAD).encode()
    script = FRAME.pack(INIT, 0, len(order)) + order
    script += (FRAME.pack(EVENT, 1, len(event)) + event) * _EVENTS
    ours, theirs = socket.socketpair()
    with ours, theirs, _restored(task_root):
        ours.sendall(script)
        ours.shutdown(socket.SHUT_WR)
        serve(theirs.fileno())


@contextmanager
def _restored(task_root: str) -> Iterator[None]:
    """The process is afterwards what it was, without variables."""
    lists = sys.path[:], sys.argv[:], sys.meta_path[:]
    values = sys.stdout, sys.stderr, sys.dont_write_bytecode
    try:
        yield
    finally:
        sys.path[:], sys.argv[:], sys.meta_path[:] = lists
        sys.stdout, sys.stderr, sys.dont_write_bytecode = values
        os.environ.clear()
        _sample[:] = [sys.modules.pop(_MODULE)]
        sys.path_importer_cache.pop(task_root, None)
