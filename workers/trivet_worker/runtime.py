"""Runtime: the Python side of an execution environment, from INIT to the last event.

It runs hostile code in its own process and knows it. What comes from the supervisor is trusted;
whatever the function breaks (descriptor 3 first of all) ends this process and nothing else.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import logging
import os
import random
import resource
import select
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

from trivet_worker import faults, handlers, hooks, rehearsal, results
from trivet_worker.context import LambdaContext
from trivet_worker.faults import (
    RESPONSE_TOO_LARGE,
    UNMARSHAL_ERROR,
    Fault,
    Payload,
    payload_of,
    report,
)
from trivet_worker.handlers import Handler
from trivet_worker.wire import (
    CHANNEL_FD,
    ERROR,
    EVENT,
    EVENT_HEAD,
    FRAME,
    INIT,
    INIT_FAILED,
    INITIALISED,
    MAX_RESPONSE_BYTES,
    RESULT,
    USAGE,
)

# What handlers import most, while it costs little: 0.5 MB of memory and 30 us of fork together,
# against 8 ms of imports in every environment that needs it. TLS and asyncio would cost 7 MB.
_PRELOADED = ("base64", "collections", "datetime", "functools", "re", "uuid")

# An environment that has no function by then is a spare, and has time.
_SPARE_AFTER_MS = 20

_READ_BYTES = 65_536  # one read for a small event, head and body

_SUCCESS = 0
_FAILURE = 1

_TRACE_VARIABLE = "_X_AMZN_TRACE_ID"


class ChannelClosed(Exception):
    """Descriptor 3 has ended, is no longer what it was, or says what it must not."""


class Channel:
    """The framed connection to the supervisor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unread = b""

    def receive(self) -> tuple[int, int, bytes]:
        """The next frame: kind, attempt, body. Waits for it."""
        data = self._unread
        while len(data) < FRAME.size:
            data += self._read()
        kind, attempt, length = FRAME.unpack_from(data)
        end = FRAME.size + length
        if len(data) < end:
            data = self._complete(data, end)
        self._unread = data[end:]
        return kind, attempt, data[FRAME.size : end]

    def send(self, kind: int, attempt: int, body: bytes) -> None:
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        head = FRAME.pack(kind, attempt, USAGE.size + len(body)) + USAGE.pack(peak_kib)
        try:
            sent = os.writev(self._descriptor, (head, body))
            if sent < len(head) + len(body):
                rest = memoryview(head + body)[sent:]
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            raise ChannelClosed(str(error)) from None

    def _read(self) -> bytes:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except OSError as error:
            raise ChannelClosed(str(error)) from None
        if not data:
            raise ChannelClosed("the supervisor has closed it")
        return data

    def _complete(self, data: bytes, size: int) -> bytes:
        """A large frame, read into one buffer of its size."""
        frame = bytearray(size)
        frame[: len(data)] = data
        rest = memoryview(frame)[len(data) :]
        try:
            while rest:
                count = os.readv(self._descriptor, (rest,))
                if not count:
                    raise ChannelClosed("the supervisor has closed it")
                rest = rest[count:]
        except OSError as error:
            raise ChannelClosed(str(error)) from None
        return bytes(frame)


class Function:
    """A loaded function: turns an event frame into an answer frame."""

    def __init__(self, handler: Handler, description: Mapping[str, Any]) -> None:
        self._handler = handler
        self._description = description

    def answer(self, body: bytes) -> tuple[int, bytes]:
        request_id = ""
        try:
            deadline_ms, *lengths = EVENT_HEAD.unpack_from(body)
            parts = []
            start = EVENT_HEAD.size
            for length in lengths:
                parts.append(body[start : start + length])
                start += length
            request_id = parts[0].decode()
            _Invocation.request_id = request_id
            _set_trace(parts[2].decode())
            context = LambdaContext(
                self._description, request_id, parts[1].decode(), deadline_ms, parts[3]
            )
            result = results.to_json(self._handler(_parse(body[start:]), context))
        except Fault as fault:
            return _failed(fault.payload(request_id))
        except Exception as error:
            return _failed(payload_of(error, request_id))
        if len(result) > MAX_RESPONSE_BYTES:
            return _failed(RESPONSE_TOO_LARGE)
        return RESULT, result


def preload() -> None:
    """Import, set up and try, in the zygote, what its environments would each have to."""
    for name in _PRELOADED:
        importlib.import_module(name)
    _do_without_site()
    _set_up_logging()
    rehearsal.rehearse(_serve_to_the_end)


def _do_without_site() -> None:
    """What `site` would have done that is wanted: `exit`, `help` and their like. The interpreter
    runs without it, since a *.pth file could hold anybody's code, and a zygote may be root."""
    import site

    site.setquit()
    site.setcopyright()
    site.sethelper()
    # The program of a virtual environment is no interpreter where its folder is not seen.
    sys.executable = sys._base_executable  # type: ignore[attr-defined]  # which typeshed lacks


def _serve_to_the_end(descriptor: int) -> None:
    with contextlib.suppress(ChannelClosed):
        _serve(Channel(descriptor))
    _Invocation.request_id = ""


def _settle_in() -> None:
    """What a fork leaves to be done, where the hooks of modules were kept from it."""
    hooks.register()
    random.seed()  # or all environments would draw the same numbers
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined]  # as its own hook does


def _use_the_wait() -> None:
    waiting = select.poll()
    waiting.register(CHANNEL_FD, select.POLLIN)
    if not waiting.poll(_SPARE_AFTER_MS):
        rehearsal.rehearse_inside(_serve_to_the_end)


def run() -> NoReturn:
    """Serve the channel until it ends or the function ends the process."""
    status = _FAILURE
    _settle_in()
    _use_the_wait()
    try:
        status = _serve(Channel(CHANNEL_FD))
    except ChannelClosed:
        os._exit(_FAILURE)  # nobody is left to wait for what user code would still do
    except SystemExit as request:
        status = _exit_status(request)
    except BaseException:
        traceback.print_exc()  # a KeyboardInterrupt, say: it ends a process on AWS too
    finally:
        _leave(status)


def _serve(channel: Channel) -> int:
    kind, attempt, body = channel.receive()
    if kind != INIT:
        raise ChannelClosed("the first frame must be INIT")
    try:
        function = _initialise(json.loads(body))
    except Fault as fault:
        kind, body = INIT_FAILED, _failed(fault.payload())[1]
    except Exception as error:
        kind, body = INIT_FAILED, _failed(payload_of(error))[1]
    else:
        kind, body = INITIALISED, b""
    _flush()
    channel.send(kind, attempt, body)
    if kind == INIT_FAILED:
        return _FAILURE
    gc.freeze()  # what initialisation made lives as long as the environment
    while True:
        kind, attempt, body = channel.receive()
        if kind != EVENT:
            # A second INIT above all: the function is what it was started as.
            raise ChannelClosed("only events may follow")
        kind, body = function.answer(body)
        _flush()
        channel.send(kind, attempt, body)


def _initialise(order: Mapping[str, Any]) -> Function:
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    sys.argv[:] = [""]
    sys.path[:] = handlers.search_path(order["task_root"])
    # Finders that an installation put there lead to the platform's own packages.
    sys.meta_path[:] = [finder for finder in sys.meta_path if isinstance(finder, type)]
    # The inherited ones were made for other files. One write per line is cheap, and a crash
    # loses no complete line.
    sys.stdout = _text_stream(1, "strict")
    sys.stderr = _text_stream(2, "backslashreplace")
    sys.dont_write_bytecode = True  # the code is read-only: each import would try in vain
    level = os.environ.get("AWS_LAMBDA_LOG_LEVEL", "").upper().replace("TRACE", "DEBUG")
    if level in logging._nameToLevel:
        logging.getLogger().setLevel(level)
    handlers.forget_replaced_modules(order["task_root"])
    return Function(handlers.load(order["handler"]), order["function"])


def _text_stream(descriptor: int, errors: str) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", errors, line_buffering=True)


class _Invocation:
    """What is known to the whole process of the invocation that runs now."""

    request_id = ""
    is_traced = False


class LambdaLoggerFilter(logging.Filter):
    """Gives each record the request id of its invocation."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.aws_request_id = _Invocation.request_id
        record.tenant_id = None
        return True


class StandardLogSink:
    """Where log records go: standard output, whatever the function has made of it."""

    def log(self, msg: str) -> None:
        sys.stdout.write(msg)


class LambdaLoggerHandler(logging.Handler):
    """The root logger's handler, under the name that user code looks for."""

    def __init__(self) -> None:
        super().__init__()
        self.log_sink = StandardLogSink()

    def emit(self, record: logging.LogRecord) -> None:
        self.log_sink.log(self.format(record))


def _set_up_logging() -> None:
    logging.Formatter.converter = time.gmtime  # as AWS's runtime does
    handler = LambdaLoggerHandler()
    form = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s\n"
    handler.setFormatter(logging.Formatter(form, "%Y-%m-%dT%H:%M:%S"))
    handler.addFilter(LambdaLoggerFilter())
    logging.getLogger().addHandler(handler)


def _parse(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except Exception as error:
        raise Fault(UNMARSHAL_ERROR, f"Unable to unmarshal input: {error}") from None


def _failed(payload: Payload) -> tuple[int, bytes]:
    report(payload)
    return ERROR, faults.to_json(payload)


def _set_trace(trace_id: str) -> None:
    if trace_id:
        _Invocation.is_traced = True
        os.environ[_TRACE_VARIABLE] = trace_id
    elif _Invocation.is_traced:
        _Invocation.is_traced = False
        os.environ.pop(_TRACE_VARIABLE, None)


def _flush() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:  # the function closed or replaced the first
        with contextlib.suppress(Exception):
            sys.stderr.flush()


def _exit_status(request: SystemExit) -> int:
    """The status that the interpreter gives for a SystemExit."""
    code: object | None = request.code
    if code is None:
        return _SUCCESS
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return _FAILURE


def _leave(status: int) -> NoReturn:
    """End as an interpreter does: other threads first, then what user code registered."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter itself calls
        atexit._run_exitfuncs()
        _flush()
    finally:
        os._exit(status)
