"""Every failure we can name, whose fault it was, and what AWS would answer.

A user's own exception is not here: that is a Reply with `function_error`, not our failure.
"""

from __future__ import annotations


class TrivetError(Exception):
    """Base of all of them. `status` and `error_type` are what the AWS API answers."""

    status = 500
    error_type = "ServiceException"

    def __init__(self, message: str, *, hint: str = "", **members: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint  # a command that mends it, for the command line
        self.members = members  # further members of AWS's error shape, "Reason" for one


class CallerError(TrivetError):
    """The caller asked for something that cannot be: a 4xx."""

    status = 400
    error_type = "InvalidParameterValueException"


class PlatformError(TrivetError):
    """Trivet or its machine failed, not the caller and not the function: a 5xx."""


class Forbidden(CallerError):
    """No policy lets this caller do it."""

    status = 403
    error_type = "AccessDeniedException"


class FunctionNotFound(CallerError):
    status = 404
    error_type = "ResourceNotFoundException"


class Conflict(CallerError):
    status = 409
    error_type = "ResourceConflictException"


class PreconditionFailed(CallerError):
    status = 412
    error_type = "PreconditionFailedException"


class InvalidRequestContent(CallerError):
    error_type = "InvalidRequestContentException"


class RequestTooLarge(CallerError):
    status = 413
    error_type = "RequestTooLargeException"


class ValidationFailed(CallerError):
    """A member breaks a constraint of AWS's model."""

    error_type = "ValidationException"


class Throttled(CallerError):
    """Nobody had room for this invocation in time."""

    status = 429
    error_type = "TooManyRequestsException"


class NotImplementedHere(CallerError):
    """An operation, or a setting of one, that Trivet does not have yet."""

    status = 501
    error_type = "NotImplementedException"


class Unavailable(PlatformError):
    """A part of the platform is away for a moment; the same call may succeed soon."""

    status = 503
    error_type = "ServiceUnavailableException"


class SettingsError(TrivetError):
    """The settings cannot be used; `trivet up` ends with this line and exit code 78."""
