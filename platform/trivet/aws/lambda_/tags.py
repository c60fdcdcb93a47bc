"""Tags: names and values that a user pins to a function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trivet.aws.services import Caller, Operation, Services
from trivet.core.functions import Function, tagged
from trivet.errors import CallerError, FunctionNotFound

from .functions import edited
from .limits import check_tags
from .names import Named, found, named


async def list_tags(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    function = await found(services, _tagged(services, params, "ListTags"))
    return {"Tags": dict(function.tags)}


async def tag_resource(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = _tagged(services, params, "TagResource")

    def edit(function: Function) -> Function:
        tags = {**function.tags, **params["Tags"]}
        check_tags(tags)
        return tagged(function, tags)

    await edited(services, wanted, {}, edit)
    return {}


async def untag_resource(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = _tagged(services, params, "UntagResource")
    gone = frozenset(params["TagKeys"])

    def edit(function: Function) -> Function:
        tags = {key: value for key, value in function.tags.items() if key not in gone}
        return tagged(function, tags)

    await edited(services, wanted, {}, edit)
    return {}


def _tagged(services: Services, params: Mapping[str, Any], operation: str) -> Named:
    """The function that an ARN means. Other resources that can have tags are not here."""
    resource: str = params["Resource"]
    if ":function:" not in resource:
        raise FunctionNotFound("The resource you requested does not exist.")
    wanted = named(services, {"FunctionName": resource}, operation)
    if wanted.qualifier is not None:
        raise CallerError(
            "Tags on function aliases and versions are not supported. "
            "Please specify a function ARN."
        )
    return wanted


OPERATIONS: Mapping[str, Operation] = {
    "ListTags": list_tags,
    "TagResource": tag_resource,
    "UntagResource": untag_resource,
}
