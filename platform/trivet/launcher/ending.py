"""Ending: parts end from the outside in, stage by stage, so that what is inside can finish."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trivet.launcher.link import GATEWAY, SUPERVISOR
from trivet.launcher.members import Member, Servant, Server, Service, State
from trivet.launcher.services import ADAPTERS

# Grace of each part at the end. The gateway finishes the calls in flight, up to the 29 s that
# AWS gives an HTTP integration; who waits longer for a function gets an error at the end.
_GRACE_S = {GATEWAY: 30.0, ADAPTERS: 10.0, SUPERVISOR: 10.0}
_SERVICE_GRACE_S = 10.0
_ZYGOTE_GRACE_S = 1.0  # it only kills what it started
_PROVISIONER_GRACE_S = 5.0  # it takes networks down, which the kernel does one by one
_SERVER_GRACE_S = 10.0  # its last flush to a slow disk


def grace_s(member: Member) -> float:
    """How long a part that is asked to end may take."""
    if isinstance(member, Servant):
        return _ZYGOTE_GRACE_S if member.is_zygote else _PROVISIONER_GRACE_S
    if isinstance(member, Server):
        return _SERVER_GRACE_S
    return _GRACE_S.get(member.name, _SERVICE_GRACE_S)


class Ending:
    """The end of everything: who is asked when."""

    def __init__(
        self, servers: Sequence[Server], services: Sequence[Service], servants: Sequence[Servant]
    ) -> None:
        by_name = {service.name: service for service in services}
        first = [by_name.pop(name) for name in (GATEWAY, ADAPTERS) if name in by_name]
        last = [by_name.pop(name) for name in (SUPERVISOR,) if name in by_name]
        stages: list[Iterable[Member]] = [
            *([service] for service in first),
            by_name.values(),
            last,
            [servant for servant in servants if servant.is_zygote],
            servants,  # the networks go after those who are in them
            servers,
        ]
        self._stages = [list(stage) for stage in stages]

    def __repr__(self) -> str:
        return f"<Ending {len(self._stages)} stages left>"

    def go_on(self) -> None:
        """When all of a stage are gone, ask the next one to end."""
        while self._stages:
            for member in self._stages[0]:
                if member.state in (State.STARTING, State.READY):
                    member.end(grace_s(member))
            if not all(member.is_over for member in self._stages[0]):
                return
            self._stages.pop(0)


def hurry(members: Iterable[Member]) -> None:
    """Have all of them end now."""
    for member in members:
        member.kill_leaving()
        if isinstance(member, Servant) and not member.is_zygote and member.is_alive:
            member.end(grace_s(member))  # killed, it would leave its networks behind
            continue
        member.state = State.ENDING if member.is_alive else State.GONE
        member.kill()
