"""Turns: a process that has loaded all it needs, and waits to be told that its turn has come.

    python -I -m trivet.launcher.turns trivet.gateway     waits, then is the gateway

To load a service takes most of the time until it serves, so one that stands by halves a gap. The
launcher gives the turn; when it is gone, there is none to come.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys

# How a process finds its end.
VARIABLE = "TRIVET_TURN_FD"

_ARRIVED = b"a"  # process -> launcher: all is loaded
_GO = b"g"  # launcher -> process: serve

# The name under which a process that stands by is listed; later it has that of its part.
STANDBY = "standby"


class Turn:
    """The launcher's end. Every call returns at once."""

    def __init__(self) -> None:
        """Makes the pair; `process_end` is to be inherited by the process, then closed here."""
        self.socket, self.process_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)

    def __repr__(self) -> str:
        return f"<Turn {'closed' if self.socket.fileno() < 0 else self.socket.fileno()}>"

    def give(self) -> None:
        """Let the process serve, as soon as all is loaded."""
        with contextlib.suppress(OSError):  # it died; whoever reaps it knows what to do
            self.socket.send(_GO)

    def hear(self) -> bool:
        """Whether the process says that it has loaded all. Raises EOFError when it is gone."""
        try:
            message = self.socket.recv(len(_ARRIVED))
        except BlockingIOError:
            return False
        except ConnectionError:
            message = b""
        if not message:
            raise EOFError
        return message == _ARRIVED

    def close(self) -> None:
        self.socket.close()
        self.process_end.close()


def main() -> None:
    """The process's side: load the module named first, wait, and run its `main`."""
    part = sys.argv[1]
    _call_oneself(STANDBY)
    module = importlib.import_module(f"{part}.__main__")
    _await_turn()
    _call_oneself(part.rpartition(".")[2])
    arguments = sys.argv[2:]
    sys.exit(module.main(arguments) if arguments else module.main())


def _await_turn() -> None:
    end = socket.socket(fileno=int(os.environ.pop(VARIABLE)))
    with end, contextlib.suppress(ConnectionError):
        end.send(_ARRIVED)
        if end.recv(len(_GO)) == _GO:
            return
    sys.exit(0)  # the launcher is gone, or has found another


def _call_oneself(name: str) -> None:
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(name)


if __name__ == "__main__":
    main()
