"""Permissions: the resource policy of a function, a statement at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trivet.aws.refusals import Refused
from trivet.aws.services import Caller, Operation, Services
from trivet.core.arns import LATEST
from trivet.core.functions import Function
from trivet.core.policies import (
    AUTH_TYPE_KEY,
    INVOKE,
    INVOKE_URL,
    MAX_POLICY_BYTES,
    VIA_URL_KEY,
    compact,
    document,
)
from trivet.errors import CallerError, Conflict, FunctionNotFound, PreconditionFailed
from trivet.store.functions import STALE_REVISION

from .functions import edited, revised
from .names import Named, found, named

_STALE_POLICY = (
    "The Revision Id provided does not match the latest Revision Id. "
    "Call the GetPolicy API to retrieve the latest Revision Id"
)
_NO_POLICY = "No policy is associated with the given resource."

_ACCOUNT = re.compile(r"\d{12}\Z", re.ASCII)
_SERVICE = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)*\.(?:amazonaws\.com(?:\.cn)?|amazon\.com)\Z")
_IDENTITY = re.compile(r"arn:aws[a-z-]*:(?:iam|sts)::\d{12}:\S+\Z", re.ASCII)


async def add_permission(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = named(services, params, "AddPermission")
    if wanted.qualifier == LATEST:
        raise CallerError("We currently do not support adding policies for $LATEST.")
    await _policied(services, wanted)
    statement = _statement(params, wanted.arn)
    sid = params["StatementId"]

    def edit(function: Function) -> Function:
        _check_revision(function, params, _STALE_POLICY)
        if sid in function.policy:
            raise Conflict(
                f"The statement id ({sid}) provided already exists. Please provide a new "
                "statement id, or remove the existing statement."
            )
        policy = {**function.policy, sid: statement}
        _check_length(policy)
        return replace(function, policy=policy)

    await edited(services, wanted, {}, edit, revised)
    return {"Statement": compact(statement)}


async def get_policy(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    function = await _policied(services, named(services, params, "GetPolicy"))
    if not function.policy:
        raise FunctionNotFound("The resource you requested does not exist.")
    return {"Policy": document(function.policy.values()), "RevisionId": function.revision}


async def remove_permission(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = named(services, params, "RemovePermission")
    await _policied(services, wanted)
    sid = params["StatementId"]

    def edit(function: Function) -> Function:
        if not function.policy:
            raise FunctionNotFound(_NO_POLICY)
        if sid not in function.policy:
            raise FunctionNotFound(f"Statement {sid} is not found in resource policy.")
        _check_revision(function, params, STALE_REVISION)
        left = {key: value for key, value in function.policy.items() if key != sid}
        return replace(function, policy=left)

    await edited(services, wanted, {}, edit, revised)
    return {}


async def _policied(services: Services, wanted: Named) -> Function:
    """The function, whose policy is also that of $LATEST. Aliases have policies of their own."""
    function = await found(services, replace(wanted, qualifier=None))
    if wanted.qualifier in (None, LATEST):
        return function
    if wanted.qualifier is not None and wanted.qualifier.isdecimal():
        raise wanted.not_found()
    raise FunctionNotFound(f"Cannot find alias arn: {wanted.arn}")


def _statement(params: Mapping[str, Any], resource: str) -> dict[str, Any]:
    action = params["Action"]
    for member, wanted in (("FunctionUrlAuthType", INVOKE_URL), ("InvokedViaFunctionUrl", INVOKE)):
        if member in params and action != wanted:
            raise CallerError(f"{member} is only supported for {wanted} action")
    statement: dict[str, Any] = {
        "Sid": params["StatementId"],
        "Effect": "Allow",
        "Principal": _principal(params["Principal"]),
        "Action": action,
        "Resource": resource,
    }
    conditions = _conditions(params)
    if conditions:
        statement["Condition"] = conditions
    return statement


def _principal(given: str) -> str | dict[str, str]:
    """As policies write it; IAM knows whether a user or role exists, and is not asked here."""
    if given == "*":
        return given
    if _ACCOUNT.match(given):
        return {"AWS": f"arn:aws:iam::{given}:root"}
    if _IDENTITY.match(given):
        return {"AWS": given}
    if _SERVICE.match(given):
        return {"Service": given}
    raise CallerError(
        "The provided principal was invalid. Please check the principal and try again."
    )


def _conditions(params: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    equals = {
        AUTH_TYPE_KEY: params.get("FunctionUrlAuthType"),
        "aws:PrincipalOrgID": params.get("PrincipalOrgID"),
        "AWS:SourceAccount": params.get("SourceAccount"),
        "lambda:EventSourceToken": params.get("EventSourceToken"),
    }
    via_url = params.get("InvokedViaFunctionUrl")
    conditions = {
        "StringEquals": equals,
        "Bool": {VIA_URL_KEY: None if via_url is None else str(via_url).lower()},
        "ArnLike": {"AWS:SourceArn": params.get("SourceArn")},
    }
    asked = {
        operator: {key: value for key, value in wanted.items() if value is not None}
        for operator, wanted in conditions.items()
    }
    return {operator: wanted for operator, wanted in asked.items() if wanted}


def _check_revision(function: Function, params: Mapping[str, Any], words: str) -> None:
    if params.get("RevisionId", function.revision) != function.revision:
        raise PreconditionFailed(words)


def _check_length(policy: Mapping[str, Any]) -> None:
    size = len(document(policy.values()).encode())
    if size > MAX_POLICY_BYTES:
        raise Refused(
            "PolicyLengthExceededException",
            f"The final policy size ({size}) is bigger than the limit ({MAX_POLICY_BYTES}).",
        )


OPERATIONS: Mapping[str, Operation] = {
    "AddPermission": add_permission,
    "GetPolicy": get_policy,
    "RemovePermission": remove_permission,
}
