"""Quarters: all that a body lives in and that is not its own: slot, room and door.

They are taken together before a process starts, and given back together, once, after it ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import cast

from trivet.core.egress import NONE, Egress, narrowed, parse
from trivet.core.functions import FunctionVersion
from trivet.settings import Settings
from trivet.supervisor.cgroups import Cgroup, Cpu
from trivet.supervisor.doors import Caller, Door, Doors
from trivet.supervisor.rooms import Room, Rooms
from trivet.supervisor.slots import Slot, Slots
from trivet_worker import wire

DEFAULT_SCRATCH_MB = 512  # AWS's, and that of cells

# Only a zygote that is root can put what a provisioner made around an environment.
_ROOMY = wire.ISOLATION_UID | wire.ISOLATION_NETWORK | wire.ISOLATION_MOUNT

Got = Callable[["Quarters | None"], None]


class Premises:
    """Where quarters come from, and what all of them have in common."""

    def __init__(
        self,
        settings: Settings,
        slots: Slots,
        *,
        rooms: Rooms | None = None,
        doors: Doors | None = None,
    ) -> None:
        self.slots = slots
        self.rooms = rooms
        self.doors = doors
        self.cpu = cast(Cpu, settings.cpu)
        self._scratch = settings.scratch
        self._most = parse(settings.egress)

    def __repr__(self) -> str:
        return f"<Premises {self.slots} {self.rooms} {self.doors}>"

    def egress(self, version: FunctionVersion | None) -> Egress:
        """What it may reach; without a version, what the platform allows at most."""
        if version is None or not version.egress:
            return self._most
        try:
            return narrowed(self._most, parse(version.egress))
        except ValueError:
            return NONE  # whoever stored it let a mistake pass, which must not open anything

    def suit_anyone(self, version: FunctionVersion) -> bool:
        """Whether quarters that were taken for nobody in particular are right for this one."""
        is_usual = version.ephemeral_mb == DEFAULT_SCRATCH_MB
        return is_usual and self.egress(version) == self._most

    def take(self, isolation: int, version: FunctionVersion | None, got: Got) -> None:
        """Call `got` with quarters, at once or soon; with None when there are none to be had.

        `isolation`: the wire.ISOLATION_* of the zygote that starts the process.
        """
        rooms = self.rooms
        scratch_mb = DEFAULT_SCRATCH_MB if version is None else version.ephemeral_mb

        def complete(slot: Slot, room: Room | None) -> None:
            if self._scratch == "disk" and (room is None or room.scratch < 0):
                Quarters(self, slot, room, isolation, scratch_mb).leave()
                got(None)
            else:
                got(Quarters(self, slot, room, isolation, scratch_mb))

        def with_slot(slot: Slot | None) -> None:
            if slot is None:
                got(None)
            elif rooms is None or isolation & _ROOMY != _ROOMY:
                complete(slot, None)
            else:
                rooms.take(self.egress(version), scratch_mb, lambda room: complete(slot, room))

        if isolation & wire.ISOLATION_UID:
            self.slots.take(with_slot)
        else:
            with_slot(Slot(0))  # the whole tree runs as one user, who cannot become another


class Quarters:
    """One body's. After `leave` it holds nothing, and is not used again."""

    def __init__(
        self, premises: Premises, slot: Slot, room: Room | None, isolation: int, scratch_mb: int
    ) -> None:
        self._premises = premises
        self._slot = slot
        self._room = room
        self._door: Door | None = None
        self._unopened: dict[int, int] = {}  # wire.DOOR_*: descriptor, of a cell without a tenant
        # Not yet sent to the zygote, in the order of their bits.
        self._fds: dict[int, int] = {}
        self._is_left = False
        if room is not None:
            for bit, fd in ((wire.WITH_NETWORK, room.network), (wire.WITH_SCRATCH, room.scratch)):
                if fd >= 0:
                    self._fds[bit] = fd
        given = sum(self._fds)
        self.scratch_in_memory = not given & wire.WITH_SCRATCH
        self.cgroup: Cgroup | None = None
        if isolation & wire.ISOLATION_CGROUP and slot.cgroup is not None:
            self.cgroup = slot.cgroup
            given |= wire.WITH_CGROUP
        self.given = given | scratch_mb << 8  # as SPAWN has it

    def __repr__(self) -> str:
        return f"<Quarters {self.uid} {self.cgroup} {self._room}>"

    @property
    def uid(self) -> int:
        return self._slot.uid

    def hand_over(self) -> list[int]:
        """The descriptors that `given` names, now the caller's."""
        fds, self._fds = list(self._fds.values()), {}
        return fds

    def limit(self, version: FunctionVersion) -> None:
        """Bound what lives here by what the function was given. Raises OSError."""
        if self.cgroup is not None:
            # Files in memory are charged as memory, and must not take it from the function.
            extra_mb = version.ephemeral_mb if self.scratch_in_memory else 0
            self.cgroup.limit(version.memory_mb, extra_mb=extra_mb, cpu=self._premises.cpu)

    def has_doors(self, doors: Mapping[int, int]) -> None:
        """Descriptors by wire.DOOR_*, of the sockets that were bound inside."""
        self._unopened = dict(doors)

    def open_door(self, version: FunctionVersion) -> None:
        """Let what lives here, which is of `version`, reach the gateway."""
        aws = self._unopened.pop(wire.DOOR_AWS, -1)
        names = self._unopened.pop(wire.DOOR_NAMES, -1)
        doors = self._premises.doors
        if doors is None or (aws < 0 and names < 0):
            _close(aws, names)
            return
        caller = Caller(
            function=version.function,
            version=version.version,
            role_arn=version.role,
            network_number=self._room.network_number if self._room else -1,
            egress=self._premises.egress(version),
        )
        self._door = doors.open(caller, aws=aws, names=names)

    def leave(self) -> None:
        """What lived here has ended, or never began."""
        if self._is_left:
            return
        self._is_left = True
        if self._door is not None:
            self._door.close()
        _close(*self._unopened.values(), *self._fds.values())
        self._unopened, self._fds = {}, {}
        if self._room is not None and self._premises.rooms is not None:
            self._premises.rooms.leave(self._room)
        self._premises.slots.give_back(self._slot)


def _close(*fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)
