"""Links: pairs of devices with what belongs to them, as requests of which many are sent at once.

pyroute2 knows these too, at half a millisecond of the processor for each; a network needs ten. The
numbers are those of linux/rtnetlink.h, if_link.h, if_addr.h and neighbour.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Container

from trivet.provisioner import netlink
from trivet.provisioner.netlink import attribute, nest, text

LOOPBACK = 1  # its index, in every namespace

_NEW_LINK, _DELETE_LINK, _NEW_ADDRESS, _NEW_ROUTE, _NEW_NEIGHBOUR = 16, 17, 20, 24, 28
_CHANGE = netlink.REQUEST
_MAKE = netlink.REQUEST | netlink.CREATE | netlink.EXCLUSIVE

_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, which of the flags to change
_ADDRESS = struct.Struct("=BBBBI")  # family, bits of the prefix, flags, scope, index
# Family, bits of destination and source, tos, table, who made it, scope, type, flags.
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_NUMBER = struct.Struct("=I")

_IPV4 = socket.AF_INET
_UP = 1
_MAIN_TABLE, _STATIC, _UNICAST = 254, 4, 1
_EVERYWHERE, _ON_LINK = 0, 253
_GATEWAY_IS_THERE = 4
_PERMANENT = 0x80

_GET_INDEX, _ASK_DRIVER = 0x8933, 0x8946
_INTERFACE = struct.Struct("=16si20x")
_INTERFACE_AND_POINTER = struct.Struct("@16sP16x")
_HAS_CARRIER = 0xA  # of linux/ethtool.h


class Links:
    """A socket to the devices of the namespace in which it is made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)

    def send(self, *requests: bytes, suffering: Container[int] = ()) -> None:
        """Do these one by one, whatever becomes of those before.

        Raises OSError, with the first errno that is not one of `suffering`.
        """
        self._socket.send(b"".join(requests))
        for number in netlink.failures(self._socket):
            if number not in suffering:
                raise OSError(number, f"netlink: {os.strerror(number)}")

    def index(self, name: str) -> int:
        """Raises OSError: no such device."""
        asked = _INTERFACE.pack(name.encode(), 0)
        return int(_INTERFACE.unpack(fcntl.ioctl(self._socket, _GET_INDEX, asked))[1])

    def connect(self, name: str) -> None:
        """Let it send from now on. Both ends of its pair are up.

        The kernel hears of the later one in its own time, and until then the earlier one drops
        what it is to send. Whoever asks for the state of the device gets it done at once.
        """
        question = (ctypes.c_uint32 * 2)(_HAS_CARRIER, 0)
        asked = _INTERFACE_AND_POINTER.pack(name.encode(), ctypes.addressof(question))
        fcntl.ioctl(self._socket, _ASK_DRIVER, asked)

    def close(self) -> None:
        self._socket.close()


def pair(
    name: str, hardware: bytes, peer_name: str, peer_hardware: bytes, peer_namespace: int
) -> bytes:
    """Two devices, of which what goes into one comes out of the other; both are down."""
    peer = _device(peer_name, peer_hardware) + _number(28, peer_namespace)
    kind = nest(18, text(1, "veth"), nest(2, attribute(1, _LINK.pack(0, 0, 0, 0, 0) + peer)))
    return _link(_NEW_LINK, _MAKE, _device(name, hardware) + kind)


def up(index: int) -> bytes:
    return netlink.message(_NEW_LINK, _CHANGE, _LINK.pack(0, 0, index, _UP, _UP))


def put_into_group(name: str, group: int) -> bytes:
    return _link(_NEW_LINK, _CHANGE, text(3, name) + _number(27, group))


def delete_group(group: int) -> bytes:
    """The kernel waits once for all of them, tens of milliseconds: as long as for a single one."""
    return _link(_DELETE_LINK, _CHANGE, _number(27, group))


def address(index: int, own: bytes) -> bytes:
    """Of the device alone, not of a network."""
    body = _ADDRESS.pack(_IPV4, 32, 0, 0, index)
    return netlink.message(_NEW_ADDRESS, _MAKE, body + attribute(2, own) + attribute(1, own))


def route_to(destination: bytes, index: int) -> bytes:
    """To one address, behind the device."""
    head = _ROUTE.pack(_IPV4, 32, 0, 0, _MAIN_TABLE, _STATIC, _ON_LINK, _UNICAST, 0)
    body = head + attribute(1, destination) + _number(4, index)
    return netlink.message(_NEW_ROUTE, _MAKE, body)


def default_route(gateway: bytes, index: int) -> bytes:
    """By a gateway that is behind the device, whatever addresses that has."""
    head = _ROUTE.pack(
        _IPV4, 0, 0, 0, _MAIN_TABLE, _STATIC, _EVERYWHERE, _UNICAST, _GATEWAY_IS_THERE
    )
    body = head + attribute(5, gateway) + _number(4, index)
    return netlink.message(_NEW_ROUTE, _MAKE, body)


def neighbour(index: int, address: bytes, hardware: bytes) -> bytes:
    """Nobody is asked who has the address."""
    head = _NEIGHBOUR.pack(_IPV4, index, _PERMANENT, 0, 0)
    body = head + attribute(1, address) + attribute(2, hardware)
    return netlink.message(_NEW_NEIGHBOUR, _MAKE, body)


def _link(kind: int, flags: int, attributes: bytes) -> bytes:
    return netlink.message(kind, flags, _LINK.pack(0, 0, 0, 0, 0) + attributes)


def _device(name: str, hardware: bytes) -> bytes:
    """One queue each way: one for every processor takes longer to make, and one tenant to fill."""
    return text(3, name) + attribute(1, hardware) + _number(31, 1) + _number(32, 1)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, _NUMBER.pack(value))
