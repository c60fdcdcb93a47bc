"""The provisioner's process: one loop that obeys until the supervisor or the launcher ends.

python -I -m trivet.provisioner --commands FD --parent FD --name HEX --network-range NETWORK
    [--egress none] [--open NETWORK:PORT-PORT]... [--scratch-folder FOLDER]
"""

from __future__ import annotations

import argparse
import array
import errno
import ipaddress
import logging
import os
import re
import select
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from trivet.provisioner import kernel, wire
from trivet.provisioner.networks import Kept, Networks
from trivet.provisioner.scratch import Scratch
from trivet.provisioner.spans import Span
from trivet.provisioner.wire import Message

log = logging.getLogger("trivet.provisioner")

# Nobody has asked for anything for so long: there is time to sweep.
_QUIET_MS = 100


@dataclass(slots=True)
class Provisioner:
    """Obeys the supervisor; says what it could not do, and goes on."""

    commands: socket.socket
    networks: Networks
    scratch: Scratch | None
    is_begun: bool = False
    # What came before BEGIN.
    _kept: list[Kept] = field(default_factory=list)
    _early: list[Message] = field(default_factory=list)

    def greet(self) -> None:
        self._send(Message(wire.READY, value=wire.PROTOCOL))

    def obey(self, message: Message) -> None:
        """Raises ConnectionError when the supervisor is gone."""
        if not self.is_begun:
            self._prepare(message)
        elif message.kind == wire.NETWORK:
            number, kind, mark = message.number, message.detail, message.value
            self._give(message, lambda: self.networks.make(number, kind, mark))
        elif message.kind == wire.SCRATCH:
            self._give(message, lambda: self._scratch_of(message.value))
        else:
            try:
                self._adjust(message)
            except OSError as error:
                log.warning("network %d: %s", message.number, error)
            if message.kind == wire.PERMIT:
                self._send(replace(message, kind=wire.PERMITTED))

    def sweep(self) -> None:
        try:
            self.networks.sweep()
        except OSError as error:
            log.warning("networks that were released are still there: %s", error)

    def _prepare(self, message: Message) -> None:
        if message.kind == wire.KEEP:
            self._kept.append(Kept(message.number, message.detail, message.value))
            return
        if message.kind != wire.BEGIN:
            self._early.append(message)
            return
        self.is_begun = True
        try:
            self.networks.begin(self._kept)
        except OSError as error:
            log.error("what a predecessor left is still there: %s", error)
        for early in self._early:
            self.obey(early)

    def _adjust(self, message: Message) -> None:
        if message.kind == wire.RELEASE:
            self.networks.release(message.number)
        elif message.family != 4:
            return  # no network has IPv6
        elif message.kind == wire.RULE:
            network = ipaddress.IPv4Network((message.address, message.prefix), strict=False)
            span = Span(network, message.first_port, message.last_port)
            self.networks.allow(message.number, span)
        elif message.kind == wire.PERMIT:
            self.networks.permit(message.number, message.address, message.value)

    def _scratch_of(self, size_mb: int) -> int:
        if self.scratch is None:
            raise OSError(errno.EOPNOTSUPP, "no folder for scratch space")
        return self.scratch.make(size_mb)

    def _give(self, message: Message, make: Callable[[], int]) -> None:
        try:
            descriptor = make()
        except OSError as error:
            log.warning("%s", error)
            value = error.errno or errno.EIO
            self._send(Message(wire.REFUSED, message.number, value, message.kind))
            return
        try:
            self._send(Message(wire.GIVEN, message.number, detail=message.kind), descriptor)
        finally:
            os.close(descriptor)

    def _send(self, message: Message, descriptor: int = -1) -> None:
        beside = [] if descriptor < 0 else [descriptor]
        socket.send_fds(self.commands, [message.pack()], beside)


def main(argv: list[str]) -> None:
    options = _options(argv)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    kernel.keep_capabilities(kernel.CAP_SYS_ADMIN, kernel.CAP_NET_ADMIN, kernel.CAP_DAC_OVERRIDE)
    os.chdir("/")
    commands = socket.socket(fileno=options.commands)
    parent = socket.socket(fileno=options.parent)
    for end in (commands, parent):
        end.set_inheritable(False)
    ended = _signals()
    networks = Networks(
        options.name, options.network_range, options.open, egress=options.egress != "none"
    )
    scratch = Scratch(options.scratch_folder) if options.scratch_folder else None
    try:
        _serve(Provisioner(commands, networks, scratch), parent, ended)
    finally:
        networks.end()
        if scratch is not None:
            scratch.end()


def _serve(provisioner: Provisioner, parent: socket.socket, ended: int) -> None:
    commands = provisioner.commands
    poll = select.poll()
    poll.register(commands, select.POLLIN)
    poll.register(parent, select.POLLRDHUP)
    poll.register(ended, select.POLLIN)
    try:
        provisioner.greet()
        while True:
            wait_ms = _QUIET_MS if provisioner.networks.is_to_be_swept else None
            ready = dict(poll.poll(wait_ms))
            if not ready:
                provisioner.sweep()
                continue
            if ended in ready or parent.fileno() in ready:
                return
            data, beside, _, _ = commands.recvmsg(wire.SIZE + 1, socket.CMSG_SPACE(64))
            _close_all(beside)
            if not data:
                return
            try:
                message = Message.unpack(data)
            except ValueError:
                continue
            provisioner.obey(message)
    except ConnectionError:
        return  # the supervisor is gone; the launcher starts a new provisioner for the next


def _close_all(beside: list[tuple[int, int, bytes]]) -> None:
    """Nobody sends us descriptors; who does all the same shall not fill our table of them."""
    for level, kind, data in beside:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors = array.array("i")
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
            for descriptor in descriptors:
                os.close(descriptor)


def _signals() -> int:
    """A descriptor that is readable once SIGTERM or SIGINT came."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer)
    return reader


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="trivet.provisioner")
    parser.add_argument("--commands", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--name", type=_hash, required=True)
    parser.add_argument("--network-range", type=ipaddress.IPv4Network, required=True)
    parser.add_argument("--egress", choices=("none", "some"), default="some")
    parser.add_argument("--open", type=_span, action="append", default=[])
    parser.add_argument("--scratch-folder", default="")
    return parser.parse_args(argv)


def _hash(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{6,16}", text):
        raise ValueError(text)
    return text


def _span(text: str) -> Span:
    match = re.fullmatch(r"([0-9.]+/\d+):(\d+)-(\d+)", text)
    if match is None:
        raise ValueError(text)
    return Span(ipaddress.IPv4Network(match[1]), int(match[2]), int(match[3]))


if __name__ == "__main__":
    main(sys.argv[1:])
