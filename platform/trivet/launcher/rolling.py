"""Rolling: restarts the parts of a running platform one after another, and loses no call.

A gateway's successor serves beside it, on the same listeners, before the old one is told to leave.
A supervisor drains first, while calls wait on their streams, and so do the adapters; what is to
come after them stands by meanwhile. Environments live on without their zygote, and networks
without their provisioner, so these are killed: their successors are told of what is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence

from trivet.launcher.link import GATEWAY, SUPERVISOR
from trivet.launcher.members import READY_WITHIN_S, Member, Servant, Service, State
from trivet.launcher.processes import Process

Tell = Callable[[str, str, float], None]
"""Takes a part's name, what became of it, and after how many seconds."""

BEGUN, DONE = "restarting", "restarted"

# A gateway answers what it has begun for 30 s. A supervisor lets functions end for 25 s, and then
# needs a moment to end the rest.
_GATEWAY_GRACE_S = 35.0
_GRACE_S = 35.0


class RestartFailed(Exception):
    """A part could not be restarted; the text says what is the case now."""


class Rolling:
    """One restart under way, of the members given, in their order."""

    def __init__(
        self,
        members: Sequence[Member],
        servants: Sequence[Servant],
        *,
        prepare: Callable[[Member], Process | None],
        tell: Tell,
        ended: Callable[[str], None],
    ) -> None:
        """`servants` are those of the supervisor, which come and go with it.

        `prepare` starts a standby. `ended` is told the failure, or "".
        """
        self._members = members
        self._servants = servants
        self._prepare = prepare
        self._tell = tell
        self._ended = ended
        self._steps = self._run()

    def __repr__(self) -> str:
        return f"<Rolling {' '.join(member.name for member in self._members)}>"

    def has_ended(self) -> bool:
        """Go on as far as possible now. Called in each turn of the launcher's loop."""
        try:
            next(self._steps)
        except StopIteration:
            self._ended("")
            return True
        except RestartFailed as failure:
            self.give_up(str(failure))
            return True
        return False

    def give_up(self, why: str) -> None:
        """What has not been restarted yet is not to be."""
        for member in (*self._members, *self._servants):
            if not member.spec.stands_by:
                member.dismiss()
        self._ended(why)

    def _run(self) -> Iterator[None]:
        for member in self._members:
            begun = time.monotonic()
            self._tell(member.name, BEGUN, 0.0)
            yield from self._settled(member)
            if member.name == GATEWAY:
                yield from self._overlapping(member)
            elif isinstance(member, Service):
                yield from self._in_turn(member)
            else:
                yield from self._at_once(member)
            self._tell(member.name, DONE, time.monotonic() - begun)

    def _overlapping(self, member: Member) -> Iterator[None]:
        former = member.process
        fresh = yield from self._standing_by(member)
        fresh.take_turn()
        deadline = time.monotonic() + READY_WITHIN_S
        while not fresh.is_ready:
            if fresh not in member.living or time.monotonic() > deadline:
                member.dismiss()
                raise RestartFailed(_unchanged(member, "did not become ready"))
            yield
        if member.standby is fresh:  # it may have had to take over already
            member.succeed(_GATEWAY_GRACE_S)
        while former in member.leaving:
            yield

    def _in_turn(self, member: Member) -> Iterator[None]:
        fresh = yield from self._standing_by(member)
        if member.name == SUPERVISOR:
            for servant in [s for s in self._servants if s.is_alive]:
                yield from self._standing_by(servant)
        if member.standby is fresh:
            for servant in self._servants if member.name == SUPERVISOR else ():
                if servant.is_alive:
                    servant.state = State.ENDING  # they will, with it
            member.end(_GRACE_S)
        yield from self._settled(member)

    def _at_once(self, member: Member) -> Iterator[None]:
        fresh = yield from self._standing_by(member)
        if member.standby is fresh:
            member.state = State.ENDING
            member.kill()
        yield from self._settled(member)

    def _standing_by(self, member: Member) -> Generator[None, None, Process]:
        """A new standby that has loaded what it needs: one from before may have older code."""
        member.dismiss()
        while member.standby is not None:
            yield
        fresh = self._prepare(member)
        deadline = time.monotonic() + READY_WITHIN_S
        while fresh is not None and not fresh.is_prepared:
            if fresh not in member.living or time.monotonic() > deadline:
                member.dismiss()
                fresh = None
                break
            yield
        if fresh is None:
            raise RestartFailed(_unchanged(member, "did not start"))
        return fresh

    def _settled(self, member: Member) -> Iterator[None]:
        """Until it serves."""
        deadline = time.monotonic() + _GRACE_S + READY_WITHIN_S
        while member.state is not State.READY:
            if time.monotonic() > deadline:
                raise RestartFailed(f"{member.name} does not become ready{_said(member)}")
            yield


def _unchanged(member: Member, what: str) -> str:
    return f"a new {member.name} {what}, so the old one serves on{_said(member)}"


def _said(member: Member) -> str:
    words = member.last_words()
    return f"; it said: {words}" if words else ""
