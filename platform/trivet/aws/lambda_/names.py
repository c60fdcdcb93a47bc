"""Names: which function, and which version of it, a request means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trivet.aws.constraints import Violation, refusal
from trivet.aws.refusals import Refused
from trivet.aws.services import Services
from trivet.core.arns import LATEST, Place, parse_function_ref
from trivet.core.functions import Function
from trivet.errors import CallerError, FunctionNotFound

MAX_NAME_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class Named:
    """A function as a request names it; it may not exist."""

    name: str
    qualifier: str | None
    place: Place

    @property
    def arn(self) -> str:
        return self.place.function_arn(self.name, self.qualifier)

    def not_found(self) -> FunctionNotFound:
        return FunctionNotFound(f"Function not found: {self.arn}")


def named(services: Services, params: dict[str, Any], operation: str) -> Named:
    """What FunctionName and Qualifier say together. Raises what AWS answers when they clash."""
    text: str = params["FunctionName"]
    place = services.place
    ref = parse_function_ref(text)
    if ref is None:
        # AWS's pattern lets a few forms through of which no function can exist.
        arn = text if text.startswith("arn:") else place.function_arn(text)
        raise FunctionNotFound(f"Function not found: {arn}")
    if ref.region not in (None, place.region):
        raise FunctionNotFound(
            f"Functions from '{ref.region}' are not reachable in this region ('{place.region}')"
        )
    given = params.get("Qualifier")
    if given and ref.qualifier and given != ref.qualifier:
        raise CallerError(
            "The derived qualifier from the function name does not match the specified qualifier."
        )
    qualifier = given or ref.qualifier
    if ref.account not in (None, place.account):
        theirs = Place(place.region, str(ref.account)).function_arn(ref.name, qualifier)
        action = f"lambda:{operation}"
        raise Refused(
            "AccessDeniedException",
            f"User: arn:aws:iam::{place.account}:root is not authorized to perform: {action} on "
            f"resource: {theirs} because no resource-based policy allows the {action} action",
            status=403,
        )
    return Named(ref.name, qualifier, place)


def new_name(services: Services, params: dict[str, Any]) -> str:
    """The name of a function to be created."""
    text: str = params["FunctionName"]
    if ":" not in text and len(text) > MAX_NAME_CHARACTERS:
        words = f"Member must have length less than or equal to {MAX_NAME_CHARACTERS}"
        raise refusal("lambda", [Violation("functionName", f" '{text}'", words)])
    new = named(services, params, "CreateFunction")
    if new.qualifier is not None:
        raise CallerError(f"A function is created without a qualifier: {new.name}")
    return new.name


async def found(services: Services, wanted: Named) -> Function:
    """The function if it exists, and its qualifier means a version that exists."""
    function = services.functions.cached(wanted.name)
    if function is None:
        function = await services.functions.get(wanted.name)
    if function is None or wanted.qualifier not in (None, LATEST):
        raise wanted.not_found()
    return function
