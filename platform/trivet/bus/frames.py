"""Frames: how an Event and its Reply are written into a stream.

An Event is one msgpack array. A Reply is a HEAD, any number of CHUNKs and an END, each behind a
fixed header that names the call; frames of many calls share one stream entry.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgpack

from trivet.core.invocations import Event
from trivet.core.retries import Attempt, Progress

SCHEMA = 1

# call number, kind, length of the body
FRAME = struct.Struct("<QBI")

HEAD = 1  # msgpack [function_error or None, executed_version]
CHUNK = 2  # bytes of the payload
END = 3  # the log tail, or nothing
FAILED = 4  # msgpack [error_type, status, message]: the platform could not run it


class MalformedEvent(Exception):
    """A stream entry that no publisher of ours wrote."""


class MalformedFrame(Exception):
    """An entry of replies that no supervisor of ours wrote."""


@dataclass(slots=True)
class Delivery:
    """An Event as a supervisor reads it from a stream."""

    entry_id: bytes
    function: str
    call: int  # the gateway's number for it
    reply_to: str  # the gateway
    request_id: str
    version_key: str
    expires_ms: int  # since the Unix epoch: not to be started later than this
    invoked_arn: str
    trace_id: str
    wants_log_tail: bool
    client_context: bytes
    payload: bytes
    progress: Progress | None = None  # of an event of the durable lane

    @property
    def is_durable(self) -> bool:
        """Which lane it came on."""
        return self.progress is not None

    def is_expired(self, now_ms: int) -> bool:
        """Whether its caller has given up on it. Nobody waits for a durable event."""
        return not self.is_durable and self.expires_ms < now_ms


def pack_event(
    event: Event, *, call: int, reply_to: str, version_key: str, invoked_arn: str, expires_ms: int
) -> bytes:
    packed: bytes = msgpack.packb(
        (
            SCHEMA,
            call,
            reply_to,
            event.id,
            version_key,
            expires_ms,
            invoked_arn,
            event.trace_id,
            event.wants_log_tail,
            event.client_context,
            event.payload,
        )
    )
    return packed


def unpack_event(function: str, entry_id: bytes, fields: list[bytes]) -> Delivery:
    """The Event in a stream entry. Raises MalformedEvent, whatever the bytes are."""
    try:
        schema, *values = msgpack.unpackb(fields[1], strict_map_key=True, use_list=False)
        delivery = Delivery(entry_id, function, *values)
        if schema != SCHEMA or not _is_typed(delivery):
            raise MalformedEvent(f"schema {schema!r} or a field of another type")
    except MalformedEvent:
        raise
    except Exception as error:  # msgpack raises a dozen kinds, TypeError and IndexError among them
        raise MalformedEvent(repr(error)) from error
    return delivery


def _is_typed(delivery: Delivery) -> bool:
    return (
        type(delivery.call) is int
        and type(delivery.reply_to) is str
        and type(delivery.request_id) is str
        and type(delivery.version_key) is str
        and type(delivery.expires_ms) is int
        and type(delivery.invoked_arn) is str
        and type(delivery.trace_id) is str
        and type(delivery.client_context) is bytes
        and type(delivery.payload) is bytes
    )


def unpack_durable(function: str, entry_id: bytes, fields: list[bytes]) -> Delivery:
    """The Event in an entry of the durable lane, with its Progress. Raises MalformedEvent."""
    delivery = unpack_event(function, entry_id, fields)
    if len(fields) > 2:
        delivery.progress = unpack_progress(fields[3])
    else:
        delivery.progress = Progress(entry_id.decode())
    return delivery


def pack_progress(progress: Progress) -> bytes:
    attempts = [
        (a.ended_ms, a.status, a.error_type, a.version, a.billed_ms, a.memory_mb)
        for a in progress.attempts
    ]
    packed: bytes = msgpack.packb(
        (SCHEMA, progress.origin, attempts, progress.backoffs, progress.aborted)
    )
    return packed


def unpack_progress(data: bytes) -> Progress:
    """The inverse of `pack_progress`. Raises MalformedEvent, whatever the bytes are."""
    try:
        schema, origin, attempts, backoffs, aborted = msgpack.unpackb(data, use_list=False)
        progress = Progress(origin, tuple(Attempt(*a) for a in attempts), backoffs, aborted)
        if schema != SCHEMA or progress.accepted_ms < 0:
            raise MalformedEvent(f"progress of schema {schema!r}")
    except MalformedEvent:
        raise
    except Exception as error:  # msgpack raises a dozen kinds, TypeError and ValueError among them
        raise MalformedEvent(repr(error)) from error
    return progress


def pack_reply(
    call: int, payload: bytes, function_error: str | None, version: str, log_tail: bytes
) -> bytes:
    """All frames of a Reply that is whole already."""
    head = msgpack.packb((function_error, version))
    return b"".join(
        (
            FRAME.pack(call, HEAD, len(head)),
            head,
            FRAME.pack(call, CHUNK, len(payload)),
            payload,
            FRAME.pack(call, END, len(log_tail)),
            log_tail,
        )
    )


def pack_failure(call: int, error_type: str, status: int, message: str) -> bytes:
    body: bytes = msgpack.packb((error_type, status, message))
    return FRAME.pack(call, FAILED, len(body)) + body


def unpack_frames(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(call, kind, body) of each frame in a stream entry."""
    offset, end = 0, len(data)
    while offset < end:
        try:
            call, kind, length = FRAME.unpack_from(data, offset)
        except struct.error as error:
            raise MalformedFrame(str(error)) from error
        offset += FRAME.size
        yield call, kind, data[offset : offset + length]
        offset += length


def unpack_body(body: bytes) -> Any:
    try:
        value: Any = msgpack.unpackb(body, use_list=False)
    except Exception as error:  # msgpack raises a dozen kinds
        raise MalformedFrame(repr(error)) from error
    return value
