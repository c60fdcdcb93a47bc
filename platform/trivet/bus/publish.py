"""Publish: the gateway's half of the express lane. An Event goes out, its Reply comes back.

At most once: a call is answered, or withdrawn before anyone took it, or failed because the part
of the platform that held it died. It is never sent twice.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import hiredis
import structlog

from trivet.bus import frames, keys
from trivet.bus.resp import RECONNECT_S, Address, Connection, connected, pack
from trivet.bus.scripts import load, script
from trivet.core.invocations import Event, Reply
from trivet.errors import PlatformError, Throttled, TrivetError, Unavailable

log = structlog.get_logger()

PUBLISH = script("publish")
WITHDRAW = script("withdraw")

# The stream of replies outlives a gateway by this long, and no longer.
REPLIES_LIFETIME_S = 60
# What was read is trimmed off that stream in batches: it holds little more than what is unread.
TRIM_EVERY = 64
TRIM_BYTES = 262_144
SWEEP_S = 0.25
# A ring can be lost with the supervisor that heard it. A call unanswered for this long rings again.
RING_AGAIN_S = 0.25
TOLD_WITHIN_S = 1.0  # that a function was changed; beyond that supervisors hear it later
RECONNECT_WAIT_S = 2.0  # a call may wait this long for an express server that restarts
# On top of function timeout, init and queueing: by then a supervisor has answered, or is gone.
GRACE_S = 10.0


@dataclass(slots=True, eq=False)
class _Call:
    number: int
    event: Event
    future: asyncio.Future[Reply]
    began: float  # loop time
    fails_at: float  # loop time
    entry_id: bytes | None = None
    is_given_up: bool = False  # its caller has left: it must not run for nobody
    head: tuple[str | None, str] | None = None
    chunks: list[bytes] = field(default_factory=list)


class Calls:
    """Synchronous invocations in flight from this gateway."""

    def __init__(
        self, gateway: str, address: Address, *, admission_wait_ms: int, max_concurrency: int
    ) -> None:
        self._gateway = gateway
        self._address = address
        self._admission_wait_s = admission_wait_ms / 1000
        self._max_concurrency = max_concurrency
        self._in_flight: dict[int, _Call] = {}
        # Calls in the order they came, until they are old enough to be withdrawn.
        self._admitting: deque[_Call] = deque()
        self._number = 0
        self._loop = asyncio.get_running_loop()
        self._out: Connection | None = None
        self._connected = asyncio.Event()

    def __repr__(self) -> str:
        state = "connected" if self._out else "away"
        return f"<Calls {len(self._in_flight)} in flight, {state}>"

    async def invoke(
        self, event: Event, *, version_key: str, invoked_arn: str, limit_ms: int
    ) -> Reply:
        """Publish `event` and wait for its Reply.

        `invoked_arn` is what the function sees as its own. `limit_ms` bounds what the function
        itself may take, initialising included. Raises Throttled, Unavailable and PlatformError.
        """
        if len(self._in_flight) >= self._max_concurrency:
            raise Throttled("Rate Exceeded.", Reason="ConcurrentInvocationLimitExceeded")
        out = self._out or await self._reconnected()
        if out.is_stalled:
            raise Unavailable("The express lane does not answer; try again in a moment.")
        self._number = number = self._number + 1
        now = self._loop.time()
        call = _Call(
            number,
            event,
            self._loop.create_future(),
            now,
            now + self._admission_wait_s + limit_ms / 1000 + GRACE_S,
        )
        self._in_flight[number] = call
        self._admitting.append(call)
        packed = frames.pack_event(
            event,
            call=number,
            reply_to=self._gateway,
            version_key=version_key,
            invoked_arn=invoked_arn,
            expires_ms=int((time.time() + self._admission_wait_s) * 1000),
        )
        function = event.function
        command = pack(
            (
                b"EVALSHA",
                PUBLISH.sha,
                b"2",
                keys.express_stream(function),
                keys.rung_flag(function),
                packed,
            )
        )
        out.send(command, lambda reply: self._on_published(call, reply))
        try:
            return await call.future
        finally:
            self._in_flight.pop(number, None)
            if not call.future.done() or call.future.cancelled():
                call.is_given_up = True
                self._withdraw(call)

    def admitting(self) -> set[str]:
        """Functions with calls that may still wait for somebody to take them."""
        return {call.event.function for call in self._admitting if not call.future.done()}

    @property
    def published(self) -> int:
        """Events since the start."""
        return self._number

    @property
    def batches(self) -> int:
        """Writes that carried them, since the lane was last connected."""
        return self._out.writes if self._out else 0

    async def _reconnected(self) -> Connection:
        try:
            with anyio.fail_after(RECONNECT_WAIT_S):
                await self._connected.wait()
        except TimeoutError:
            raise Unavailable("The express lane is away; try again in a moment.") from None
        if self._out is None:  # and gone again
            raise Unavailable("The express lane is away; try again in a moment.")
        return self._out

    def _on_published(self, call: _Call, reply: Any) -> None:
        if isinstance(reply, Exception):
            # After a lost connection nobody can tell whether the event was added. The server has
            # no disk: a server that is gone took the event with it.
            log.warning("event.refused", request_id=call.event.id, error=str(reply))
            self._fail(call, Unavailable("The express lane did not take the event; try again."))
            return
        call.entry_id, ring = reply
        if ring:
            self._ring(call.event.function)
        if call.is_given_up:
            self._withdraw(call)

    def _ring(self, function: str) -> None:
        if self._out is not None:
            self._out.send(pack(_on_bell(keys.RING, function)), _ignored)

    async def tell_changed(self, function: str) -> None:
        """Let supervisors know that `function` was updated or deleted.

        They know before they are given whatever is accepted once this returns. A server that is
        away, or slow, is not waited for: who comes back reads all records anew.
        """
        if self._out is None:
            return
        with anyio.move_on_after(TOLD_WITHIN_S):
            try:
                await self._out.call(*_on_bell(keys.CHANGED, function))
            except (OSError, hiredis.HiredisError) as error:
                _ignored(error)

    # ------------------------------------------------------------------ replies

    def _on_frames(self, data: bytes) -> None:
        for number, kind, body in frames.unpack_frames(data):
            call = self._in_flight.get(number)
            if call is None:
                continue
            if kind == frames.HEAD:
                call.head = frames.unpack_body(body)
            elif kind == frames.CHUNK:
                call.chunks.append(body)
            elif kind == frames.END:
                self._finish(call, body)
            elif kind == frames.FAILED:
                error_type, status, message = frames.unpack_body(body)
                self._fail(call, _failure(error_type, status, message))

    def _finish(self, call: _Call, log_tail: bytes) -> None:
        if call.future.done() or call.head is None:
            return
        function_error, version = call.head
        chunks = call.chunks
        call.future.set_result(
            Reply(
                request_id=call.event.id,
                payload=chunks[0] if len(chunks) == 1 else b"".join(chunks),
                function_error=function_error,
                executed_version=version,
                log_tail=log_tail,
            )
        )

    def _fail(self, call: _Call, error: TrivetError) -> None:
        if not call.future.done():
            call.future.set_exception(error)

    # ------------------------------------------------------------------ what keeps it going

    async def run(self) -> None:
        """Keep both connections to the express server, for as long as the gateway lives."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_connected)
            tasks.start_soon(self._sweep)

    async def _keep_connected(self) -> None:
        while True:
            try:
                async with connected(self._address) as out, connected(self._address) as replies:
                    await self._serve(out, replies)
            except OSError:
                await anyio.sleep(RECONNECT_S)
            except hiredis.HiredisError as error:
                # LOADING, NOAUTH and their like: say it, and try again.
                log.warning("express.refused", error=str(error))
                await anyio.sleep(10 * RECONNECT_S)

    async def _serve(self, out: Connection, replies: Connection) -> None:
        await self._open(out)
        # Each is useless without the other: a gateway that publishes must hear the replies.
        out.lost.add_done_callback(lambda _: replies.close())
        self._out = out
        self._connected.set()
        try:
            await self._read_replies(replies)
        finally:
            self._connected.clear()
            self._out = None
            self._fail_all()

    async def _open(self, out: Connection) -> None:
        await load(out, PUBLISH, WITHDRAW)
        # A supervisor writes replies only into a stream that exists: not to a gateway long dead.
        stream = keys.replies(self._gateway)
        await out.call("XADD", stream, "*", "f", b"")
        await out.call("EXPIRE", stream, REPLIES_LIFETIME_S)

    async def _read_replies(self, replies: Connection) -> None:
        stream = keys.replies(self._gateway)
        last = b"0"
        read = read_bytes = 0
        while True:
            reply = await replies.call(
                "XREAD", "COUNT", 128, "BLOCK", 10_000, "STREAMS", stream, last
            )
            if not reply:
                continue
            for entry_id, fields in reply[0][1]:
                try:
                    self._on_frames(fields[1])
                except (frames.MalformedFrame, TypeError, ValueError) as error:
                    log.error("reply.malformed", entry=entry_id, reason=str(error))
                last = entry_id
                read += 1
                read_bytes += len(fields[1])
            if read >= TRIM_EVERY or read_bytes >= TRIM_BYTES:
                read = read_bytes = 0
                replies.send(pack(("XTRIM", stream, "MINID", last)), _ignored)

    def _fail_all(self) -> None:
        """The express server went, and with it every event and every reply it held."""
        for call in list(self._in_flight.values()):
            self._fail(call, Unavailable("The express lane was lost during the invocation."))
        self._admitting.clear()

    async def _sweep(self) -> None:
        """Withdraw what waited too long, ring again, and fail what nobody will answer."""
        ring_at = 0.0
        while True:
            await anyio.sleep(SWEEP_S)
            now = self._loop.time()
            self._withdraw_late(now)
            if self._out is not None and self._out.is_stalled:
                self._fail_unheard()
            if now >= ring_at:
                ring_at = now + RING_AGAIN_S
                late = now - RING_AGAIN_S
                waiting = {c.event.function for c in self._admitting if c.began < late}
                for function in waiting:
                    self._ring(function)
                for call in list(self._in_flight.values()):
                    if now > call.fails_at:
                        self._fail(call, PlatformError("The platform lost this invocation."))
                self._renew()

    def _renew(self) -> None:
        """Keep the stream of replies; it expired if this process stood still for long."""
        out, stream = self._out, keys.replies(self._gateway)
        if out is None:
            return

        def on_renewed(reply: Any) -> None:
            if reply == 0:
                out.send(pack(("XADD", stream, "*", "f", b"")), _ignored)

        out.send(pack(("EXPIRE", stream, REPLIES_LIFETIME_S)), on_renewed)

    def _fail_unheard(self) -> None:
        """The server has stopped: who has not heard that a call was published need not wait for
        it. One that was published all the same is withdrawn when that is heard."""
        for call in list(self._in_flight.values()):
            if call.entry_id is None:
                call.is_given_up = True
                self._fail(call, Unavailable("The express lane does not answer; try again."))

    def _withdraw_late(self, now: float) -> None:
        # Those that are done go at once: each holds its event and its reply.
        self._admitting = admitting = deque(c for c in self._admitting if not c.future.done())
        late = now - self._admission_wait_s
        while admitting and (admitting[0].future.done() or admitting[0].began < late):
            call = admitting.popleft()
            if not call.future.done():
                self._withdraw(call)

    def _withdraw(self, call: _Call) -> None:
        """Take its event back, unless a supervisor has read it."""
        if call.entry_id is None or self._out is None:
            return
        stream = keys.express_stream(call.event.function)
        command = pack((b"EVALSHA", WITHDRAW.sha, b"1", stream, keys.GROUP, call.entry_id))
        self._out.send(command, partial(self._on_withdrawn, call))

    def _on_withdrawn(self, call: _Call, reply: Any) -> None:
        if reply == 1:
            reason = "ConcurrentInvocationLimitExceeded"
            self._fail(call, Throttled("Rate Exceeded.", Reason=reason))


def _failure(error_type: str, status: int, message: str) -> TrivetError:
    if error_type == Throttled.error_type:
        return Throttled(message, Reason="ConcurrentInvocationLimitExceeded")
    if status == Unavailable.status:
        return Unavailable(message)
    return PlatformError(message)


def _on_bell(field: bytes, function: str) -> tuple[str | bytes, ...]:
    # Names on the bell are hints: a few hundred of them are more than anyone reads late.
    return (b"XADD", keys.BELL, b"MAXLEN", b"~", b"500", b"*", field, function)


def _ignored(reply: Any) -> None:
    if isinstance(reply, Exception) and not isinstance(reply, ConnectionError):
        log.warning("express.refused", error=str(reply))
