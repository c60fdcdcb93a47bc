"""Environments: one warm process bound to one function version, one invocation at a time."""

from __future__ import annotations

import json
import time
from typing import Protocol

from trivet.core.functions import FunctionVersion
from trivet.core.lifecycle import Signal, State, moved
from trivet.core.variables import environment_variables, log_group
from trivet.supervisor.bodies import Body
from trivet.supervisor.journal import Journal
from trivet_worker import wire


class Owner(Protocol):
    """Who is told what an environment did, and decides: the fleet it belongs to."""

    def initialised(self, environment: Environment) -> None: ...

    def init_failed(self, environment: Environment, payload: bytes) -> None: ...

    def answered(self, environment: Environment, is_error: bool, payload: bytes) -> None: ...

    def broke_protocol(self, environment: Environment) -> None: ...

    def lost(self, environment: Environment) -> None: ...

    def exited(self, environment: Environment, status: int | None) -> None: ...


class Environment:
    """The supervisor's view of one process. Implements `bodies.Tenant`."""

    def __init__(
        self, owner: Owner, version: FunctionVersion, body: Body, journal: Journal, init: bytes
    ) -> None:
        self.owner = owner
        self.version = version
        self.journal = journal
        self.state = State.STARTING
        self.is_fresh = True  # no invocation yet: the first one reports the init
        self.asked_ns = time.monotonic_ns()
        self.init_ns = 0
        self.idle_since = 0.0  # loop time
        self.peak_kib = 0
        self._began_init_ns = self.asked_ns
        self._attempt = 0
        self._body = body
        self._init = init
        self._buffer = bytearray()

    def __repr__(self) -> str:
        return f"<Environment {self._body.number} {self.version.function} {self.state.value}>"

    @property
    def peak_mb(self) -> int:
        return -(-self.peak_kib // 1024)

    @property
    def is_refused(self) -> bool:
        """A zygote said that it cannot be started."""
        return self._body.is_refused

    def move(self, signal: Signal) -> None:
        self.state = moved(self.state, signal)

    def embodied(self) -> None:
        if self.state is not State.STARTING:
            return
        self.move(Signal.STARTED)
        self._began_init_ns = time.monotonic_ns()
        self._body.send(wire.FRAME.pack(wire.INIT, 0, len(self._init)) + self._init)

    def invoke(self, head: bytes, payload: bytes) -> None:
        """Send one event; `head` is wire.EVENT_HEAD and its strings."""
        self.move(Signal.INVOKED)
        self._attempt += 1
        length = len(head) + len(payload)
        frame = wire.FRAME.pack(wire.EVENT, self._attempt, length)
        self._body.send(b"".join((frame, head, payload)))

    def received(self, data: bytes) -> None:
        if not data:
            # It closed its own channel: nothing more can come of it. One that never began has not:
            # its zygote is about to say why.
            if self.state is not State.STARTING:
                self.owner.lost(self)
                self.kill()
            return
        if self.state in (State.DYING, State.DEAD):
            return  # nothing more of it is to be believed, nor kept
        buffer = self._buffer
        buffer += data
        while len(buffer) >= wire.FRAME.size:
            kind, attempt, length = wire.FRAME.unpack_from(buffer)
            if not wire.USAGE.size <= length <= wire.MAX_FRAME_BYTES:
                self._break()
                return
            end = wire.FRAME.size + length
            if len(buffer) < end:
                return
            body = bytes(buffer[wire.FRAME.size : end])
            del buffer[:end]
            if not self._on_frame(kind, attempt, body):
                return

    def _on_frame(self, kind: int, attempt: int, body: bytes) -> bool:
        """False once nothing more of this environment is to be believed."""
        state = self.state
        if state in (State.DYING, State.DEAD):
            return False
        (self.peak_kib,) = wire.USAGE.unpack_from(body)
        payload = body[wire.USAGE.size :]
        if state is State.BUSY and attempt == self._attempt and kind in (wire.RESULT, wire.ERROR):
            self.owner.answered(self, kind == wire.ERROR, payload)
            return True
        if state is State.INITIALISING and kind in (wire.INITIALISED, wire.INIT_FAILED):
            self.init_ns = time.monotonic_ns() - self._began_init_ns
            if kind == wire.INITIALISED:
                self.move(Signal.INITIALISED)
                self.owner.initialised(self)
            else:
                self.owner.init_failed(self, payload)
            return True
        self._break()
        return False

    def _break(self) -> None:
        self._buffer.clear()
        if self.state not in (State.DYING, State.DEAD):
            self.owner.broke_protocol(self)

    def wrote_log(self) -> bool:
        return self.journal.read()

    def kill(self) -> None:
        if self.state not in (State.DYING, State.DEAD):
            self.move(Signal.KILLED)
            self._body.kill()

    def exited(self, status: int | None) -> None:
        self.journal.close()
        self.owner.exited(self, status)
        self.move(Signal.EXITED)


def pack_init(version: FunctionVersion, *, region: str, task_root: str, log_stream: str) -> bytes:
    """The INIT body, as wire.py says."""
    variables = environment_variables(
        version, region=region, log_stream=log_stream, task_root=task_root
    )
    return json.dumps(
        {
            "handler": version.handler,
            "task_root": task_root,
            "environment": variables,
            "function": {
                "name": version.function,
                "version": version.version,
                "memory_mb": version.memory_mb,
                "log_group": log_group(version.function),
                "log_stream": log_stream,
            },
        }
    ).encode()
