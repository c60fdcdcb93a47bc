"""Wire: the messages between the supervisor and the provisioner.

SOCK_SEQPACKET, one `MESSAGE` each, descriptors beside it. The supervisor numbers networks, from 0
on and as small as it can, for a network's number is also its address; scratch space it numbers as
it likes. After a new provisioner's READY come KEEP, RULE and PERMIT for the networks that are in
use, then BEGIN, which ends all that a predecessor left besides; then anything.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

PROTOCOL = 1

# kind, detail, family (4 or 6), length of the prefix, number, value, address, first and last port
_MESSAGE = struct.Struct("<BBBBII16sHH")
SIZE = _MESSAGE.size

# supervisor -> provisioner
KEEP = 1  # detail: kind of network, value: mark.  This network is in use: let it live on
BEGIN = 2
NETWORK = 3  # detail: kind of network, value: mark, unlike any network's before it
RULE = 4  # number: a LISTED network, in use or about to be asked for.  It may reach these
PERMIT = 5  # the same for one address and all ports, for `value` seconds
RELEASE = 6  # number: a network that nobody is in any more
SCRATCH = 7  # value: MB.  Number: the supervisor's, for the answer

# provisioner -> supervisor
READY = 16  # value: PROTOCOL
GIVEN = 17  # detail: NETWORK or SCRATCH, number as asked.  fds: the namespace, or a detached mount
REFUSED = 18  # detail and number as GIVEN, value: errno
PERMITTED = 19  # number and address of a PERMIT: it holds now, unless it was refused

# Kinds of network.
NONE = 0  # loopback alone; the provisioner forgets it at once
INTERNET = 1  # all public addresses, and the private ones that the operator opened
LISTED = 2  # what RULE and PERMIT name


@dataclass(frozen=True, slots=True)
class Message:
    kind: int
    number: int = 0
    value: int = 0
    detail: int = 0
    family: int = 0
    prefix: int = 0
    address: bytes = b""  # 4 bytes or 16
    first_port: int = 0
    last_port: int = 0

    def pack(self) -> bytes:
        return _MESSAGE.pack(
            self.kind,
            self.detail,
            self.family,
            self.prefix,
            self.number,
            self.value,
            self.address,
            self.first_port,
            self.last_port,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Message:
        """Raises ValueError for another size, and for an address that cannot be."""
        if len(data) != SIZE:
            raise ValueError("a message of another size")
        kind, detail, family, prefix, number, value, address, first, last = _MESSAGE.unpack(data)
        bits = {0: 0, 4: 32, 6: 128}.get(family)
        if bits is None or prefix > bits or first > last:
            raise ValueError("no address that could be")
        return cls(kind, number, value, detail, family, prefix, address[: bits // 8], first, last)
