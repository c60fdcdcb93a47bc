"""Refusals: errors that the door itself gives, under the names AWS uses for them."""

from __future__ import annotations

from trivet.errors import CallerError


class Refused(CallerError):
    """A caller's mistake that has a name of its own at AWS and no class of its own here."""

    def __init__(
        self, error_type: str, message: str, *, status: int = 400, **members: object
    ) -> None:
        super().__init__(message)
        self.members = members
        self.error_type = error_type
        self.status = status


def not_serializable(message: str) -> Refused:
    """The body or a member of it is not what the model says it is made of."""
    return Refused("SerializationException", message)
