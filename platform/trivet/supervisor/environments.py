"""Environments: one warm process bound to one function version, one invocation at a time."""

from __future__ import annotations

import time
from typing import Protocol

import structlog

from trivet.core.functions import FunctionVersion
from trivet.core.lifecycle import Signal, State, moved
from trivet.supervisor.bodies import Body
from trivet.supervisor.journal import Journal
from trivet_worker import wire

log = structlog.get_logger()


class Owner(Protocol):
    """Who is told what an environment did, and decides: the fleet it belongs to."""

    def initialised(self, environment: Environment) -> None: ...

    def init_failed(self, environment: Environment, payload: bytes) -> None: ...

    def answered(self, environment: Environment, is_error: bool, payload: bytes) -> None: ...

    def broke_protocol(self, environment: Environment) -> None: ...

    def lost(self, environment: Environment) -> None: ...

    def exited(self, environment: Environment, status: int | None) -> None: ...


class Resting(Protocol):
    """Who decides when an idle environment freezes."""

    def rested(self, environment: Environment) -> None: ...

    def woken(self, environment: Environment) -> None: ...


class Environment:
    """The supervisor's view of one process. Implements `bodies.Tenant`."""

    def __init__(
        self,
        owner: Owner,
        version: FunctionVersion,
        body: Body,
        journal: Journal,
        init: bytes,
        frost: Resting,
    ) -> None:
        self.owner = owner
        self.version = version
        self.journal = journal
        self.state = State.STARTING
        self.is_fresh = True  # no invocation yet: the first one reports the init
        self.asked_ns = time.monotonic_ns()
        self.init_ns = 0
        self.idle_since = 0.0  # loop time
        self._said_kib = 0  # its peak, as it says itself
        self._frost = frost
        self._began_init_ns = self.asked_ns
        self._attempt = 0
        self._body = body
        self._init = init
        self._buffer = bytearray()

    def __repr__(self) -> str:
        return f"<Environment {self._body.number} {self.version.function} {self.state.value}>"

    def peak_mb(self) -> int:
        """The most memory it ever used: as the kernel counts it, or else as it says itself."""
        counted_kib = self._body.peak_kib()
        if counted_kib is None:
            return -(-self._said_kib // 1024)
        # Its files in memory have room of their own, and count here too.
        return min(-(-counted_kib // 1024), self.version.memory_mb)

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether the kernel killed a process of it for want of memory, be it not the first."""
        return self._body.oom_kills() > 0

    @property
    def age_s(self) -> float:
        return (time.monotonic_ns() - self.asked_ns) / 1e9

    @property
    def is_refused(self) -> bool:
        """A zygote said that it cannot be started."""
        return self._body.is_refused

    def move(self, signal: Signal) -> None:
        before = self.state
        self.state = moved(before, signal)
        if before is State.IDLE:
            self._frost.woken(self)

    def rest(self) -> None:
        """Nothing waits for it."""
        self._frost.rested(self)

    def freeze(self) -> None:
        """None of its threads runs until the next event."""
        try:
            self._body.freeze()
        except OSError as error:
            log.warning("environment.unfrozen", environment=repr(self), error=str(error))
            return
        self.move(Signal.FROZEN)

    def embodied(self) -> None:
        if self.state is not State.STARTING:
            return
        self.move(Signal.STARTED)
        self._began_init_ns = time.monotonic_ns()
        self._body.send(wire.FRAME.pack(wire.INIT, 0, len(self._init)) + self._init)

    def invoke(self, head: bytes, payload: bytes) -> None:
        """Send one event; `head` is wire.EVENT_HEAD and its strings."""
        if self.state is State.FROZEN:
            self._body.thaw()
        self.move(Signal.INVOKED)
        self._attempt += 1
        if self._attempt == 1:
            self._body.throttle()
        length = len(head) + len(payload)
        frame = wire.FRAME.pack(wire.EVENT, self._attempt, length)
        self._body.deliver(b"".join((frame, head, payload)))

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
        (self._said_kib,) = wire.USAGE.unpack_from(body)
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

    def wrote_log(self) -> float | None:
        return self.journal.read()

    def kill(self) -> None:
        if self.state not in (State.DYING, State.DEAD):
            self.move(Signal.KILLED)
            self._body.kill()

    def exited(self, status: int | None) -> None:
        self.journal.close()
        self.owner.exited(self, status)
        self.move(Signal.EXITED)
