"""Link: the launcher's end of the control connection with a service, and its two messages.

The launcher may be root, so it reads nothing but one fixed shape. `trivet.control` is the
service's end.
"""

from __future__ import annotations

import socket
import struct

# How a service finds its end.
VARIABLE = "TRIVET_CONTROL_FD"

# kind, a number whose meaning the kind gives
MESSAGE = struct.Struct("<BxxxI")

READY = 1  # service -> launcher. Number: wire.ISOLATION_* bits, from the supervisor
# launcher -> service. Number: 0. Then the peer's name; beside it the service's end of a direct link
# with that peer, SOCK_SEQPACKET. A peer that was started again comes again.
PEER = 2

# Names of peers. A zygote's goes on with the name of its runtime.
GATEWAY = "gateway"
SUPERVISOR = "supervisor"
PROVISIONER = "provisioner"
ZYGOTE_OF = "zygote "

MAX_MESSAGE_BYTES = 256


class Link:
    """The launcher's end. Every call returns at once."""

    def __init__(self) -> None:
        """Makes the pair; `service_end` is to be inherited by the service, then closed here."""
        self.socket, self.service_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)

    def __repr__(self) -> str:
        return f"<Link {'closed' if self.socket.fileno() < 0 else self.socket.fileno()}>"

    def send_peer(self, name: str, end: socket.socket) -> None:
        """Give the service its end of the direct link with the peer `name`.

        Raises OSError when the service is gone, or has no room now.
        """
        message = MESSAGE.pack(PEER, 0) + name.encode()
        socket.send_fds(self.socket, [message], [end.fileno()])

    def receive_ready(self) -> int | None:
        """The number of a READY message; None when there is nothing, or nothing we know.

        Raises EOFError when the service is gone.
        """
        try:
            message = self.socket.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return None
        except ConnectionError:
            message = b""
        if not message:
            raise EOFError
        if len(message) != MESSAGE.size:
            return None
        kind, number = MESSAGE.unpack(message)
        return int(number) if kind == READY else None

    def close(self) -> None:
        self.socket.close()
        self.service_end.close()
