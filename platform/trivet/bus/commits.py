"""Commits: acts on the durable server that must happen, whatever becomes of a connection.

Each is kept until the server has answered it, and sent again over the next connection. The scripts
behind them know what they did before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
import structlog

from trivet.bus.resp import Connection

log = structlog.get_logger()

Then = Callable[[Any], None]


class Commits:
    """What was sent, or is to be sent, and has no answer yet; in order."""

    def __init__(self) -> None:
        self._out: Connection | None = None
        self._waiting: dict[int, tuple[bytes, int, Then]] = {}
        self._number = 0
        self._all_answered = asyncio.Event()
        self._all_answered.set()

    def __repr__(self) -> str:
        return f"<Commits {len(self._waiting)} waiting>"

    def __len__(self) -> int:
        return len(self._waiting)

    def send(
        self, commands: bytes, count: int, then: Then, *, over: Connection | None = None
    ) -> None:
        """Send `count` packed commands; `then` gets the last one's answer, once there is one.

        `over` a connection of the caller's choice, or the one that was given to `connected`. What
        the server refuses is logged, and not sent again.
        """
        self._number += 1
        self._waiting[self._number] = (commands, count, then)
        self._all_answered.clear()
        out = over or self._out
        if out is not None:
            self._transmit(out, self._number)

    def _transmit(self, out: Connection, number: int) -> None:
        commands, count, then = self._waiting[number]
        remaining = count

        def on_reply(reply: Any) -> None:
            nonlocal remaining
            remaining -= 1
            if remaining or number not in self._waiting:
                return
            if isinstance(reply, ConnectionError):
                # By another way, if only this one was lost; else the next connection sends it.
                if self._out is not None and self._out is not out and self._out.is_open:
                    self._transmit(self._out, number)
                return
            if isinstance(reply, hiredis.ReplyError) and _is_passing(reply):
                asyncio.get_running_loop().call_later(AGAIN_S, self._again, number)
                return
            del self._waiting[number]
            if isinstance(reply, Exception):
                log.error("commit.refused", error=str(reply))
            else:
                then(reply)
            if not self._waiting:
                self._all_answered.set()

        out.send_several(commands, [on_reply] * count)

    def _again(self, number: int) -> None:
        if self._out is not None and number in self._waiting:
            self._transmit(self._out, number)

    def connected(self, out: Connection) -> None:
        """A new connection, with the scripts loaded: send again what has no answer."""
        self._out = out
        for number in list(self._waiting):
            self._transmit(out, number)

    def lost(self) -> None:
        self._out = None

    async def answered(self) -> None:
        """Returns when every commit so far is on disk."""
        await self._all_answered.wait()


AGAIN_S = 1.0
_PASSING = ("OOM", "MISCONF", "LOADING", "BUSY", "NOSCRIPT", "MASTERDOWN", "READONLY", "NOREPLICAS")


def _is_passing(error: hiredis.ReplyError) -> bool:
    """Whether the server may take the same command later: what has ended must not be lost."""
    return str(error).startswith(_PASSING)
