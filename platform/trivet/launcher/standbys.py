"""Standbys: processes that have loaded everything, so that a death and a restart cost no import."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trivet.launcher import announce
from trivet.launcher.members import Member, State
from trivet.launcher.processes import Process


class Standbys:
    """Sees to it that each part that wants one has one, and that who leaves does leave."""

    def __init__(
        self, members: Sequence[Member], *, watch: Callable[[Member, Process], None]
    ) -> None:
        """`watch(member, process)` hears of each that was started."""
        self._members = members
        self._watch = watch
        self._is_over = False

    def __repr__(self) -> str:
        return f"<Standbys {sum(member.standby is not None for member in self._members)}>"

    def dues(self) -> list[float]:
        """When attention is wanted here."""
        leaving = [p.due for m in self._members for p in m.leaving if p.due is not None]
        return leaving + [m.standby_due or 0.0 for m in self._members if self._is_owed(m)]

    def tend(self, now: float) -> None:
        """Start what is due, and kill who was to have left by now."""
        for member in self._members:
            member.kill_leaving(now)
            if self._is_owed(member) and now >= (member.standby_due or 0.0):
                self.prepare(member)

    def prepare(self, member: Member) -> Process | None:
        """Start a standby of `member`; None if it cannot be started."""
        try:
            process = member.stand_by()
        except OSError as error:
            member.standby_died()
            announce.say_loudly(f"{member.name} has no standby: it could not be started ({error})")
            return None
        self._watch(member, process)
        return process

    def end(self) -> None:
        """Nobody will take over any more."""
        self._is_over = True
        for member in self._members:
            member.dismiss()

    def _is_owed(self, member: Member) -> bool:
        is_due = member.standby_due is not None and member.standby is None
        return is_due and member.state is State.READY and not self._is_over
