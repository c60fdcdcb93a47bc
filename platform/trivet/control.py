"""Control: a service's end of its link with the launcher.

    control = Control.inherited()
    control.on_closed(exit_at_once)
    control.on_zygote(pool.attach)              # supervisor only
    control.on_peer("gateway", doors.attach)    # a direct link with another part
    control.ready({"isolation": bits})

Everything but `inherited` wants a running event loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from functools import partial

from trivet.errors import PlatformError
from trivet.launcher.link import MAX_MESSAGE_BYTES, MESSAGE, PEER, READY, VARIABLE, ZYGOTE_OF

_Take = Callable[[socket.socket], None]


class Control:
    """What a service tells the launcher, and hears from it."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(False)
        self._is_watching = False
        self._closed = asyncio.Event()
        self._when_closed: Callable[[], None] | None = None
        self._take_zygote: Callable[[str, socket.socket], None] | None = None
        self._take_peer: dict[str, _Take] = {}
        # Links that arrived before anybody asked for them, by the peer's name.
        self._early: dict[str, socket.socket] = {}

    def __repr__(self) -> str:
        return f"<Control {'closed' if self._closed.is_set() else 'open'}>"

    @classmethod
    def inherited(cls) -> Control:
        """The link that the launcher left open for this process."""
        try:
            descriptor = int(os.environ.pop(VARIABLE))
            os.set_inheritable(descriptor, False)
            return cls(socket.socket(fileno=descriptor))
        except (KeyError, ValueError, OSError) as error:
            message = "this program is a part of Trivet, which `trivet up` starts"
            raise PlatformError(message) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def ready(self, details: Mapping[str, int] | None = None) -> None:
        """Say that this service serves; the supervisor with {"isolation": wire.ISOLATION_*}.

        It is said again whenever the isolation of environments has changed.
        """
        self._watch()
        number = (details or {}).get("isolation", 0)
        try:
            self._socket.send(MESSAGE.pack(READY, number))
        except ConnectionError:
            self._close()

    def on_zygote(self, take: Callable[[str, socket.socket], None]) -> None:
        """Call `take(runtime, socket)` for each zygote, also for those that came before now.

        The socket is SOCK_SEQPACKET, non-blocking, and from then on the taker's to close. A
        zygote that died is replaced: the same runtime comes again with a new socket.
        """
        self._take_zygote = take
        self._hand_over()
        self._watch()

    def on_peer(self, name: str, take: Callable[[socket.socket], None]) -> None:
        """Call `take(socket)` for each direct link with the part `name`, as `on_zygote` does.

        Names: "gateway" and "provisioner" in the supervisor, "supervisor" in the gateway.
        """
        self._take_peer[name] = take
        self._hand_over()
        self._watch()

    def on_closed(self, call: Callable[[], None]) -> None:
        """Call `call()` when the launcher is gone: this service must end at once."""
        self._when_closed = call
        self._watch()

    @property
    def closed(self) -> asyncio.Event:
        """Set when the launcher is gone."""
        self._watch()
        return self._closed

    def close(self) -> None:
        """Stop listening to the launcher; its death then calls nobody."""
        self._when_closed = None
        self._close()

    def _watch(self) -> None:
        if not self._is_watching and not self._closed.is_set():
            self._is_watching = True
            asyncio.get_running_loop().add_reader(self._socket, self._receive)

    def _receive(self) -> None:
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(self._socket, MAX_MESSAGE_BYTES, 4)
            except BlockingIOError:
                return
            except ConnectionError:
                message, descriptors = b"", []
            if not message:
                return self._close()
            self._heard(message, descriptors)

    def _heard(self, message: bytes, descriptors: list[int]) -> None:
        kind, _ = MESSAGE.unpack_from(message)
        if kind != PEER or len(descriptors) != 1:
            for descriptor in descriptors:
                os.close(descriptor)
            return
        end = socket.socket(fileno=descriptors[0])
        end.set_inheritable(False)
        end.setblocking(False)
        name = message[MESSAGE.size :].decode()
        if name in self._early:
            self._early.pop(name).close()  # that one's other end is gone
        self._early[name] = end
        self._hand_over()

    def _hand_over(self) -> None:
        for name in list(self._early):
            if take := self._taker(name):
                take(self._early.pop(name))

    def _taker(self, name: str) -> _Take | None:
        if name.startswith(ZYGOTE_OF) and self._take_zygote is not None:
            return partial(self._take_zygote, name.removeprefix(ZYGOTE_OF))
        return self._take_peer.get(name)

    def _close(self) -> None:
        if self._closed.is_set():
            return
        if self._is_watching:
            asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for end in self._early.values():
            end.close()
        self._early.clear()
        self._closed.set()
        if self._when_closed is not None:
            self._when_closed()
