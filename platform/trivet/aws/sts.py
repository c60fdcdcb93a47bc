"""STS: who am I. Every client's first question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .services import Caller, Operation, Services


async def get_caller_identity(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    account = services.place.account
    if caller.session is not None:
        return {
            "UserId": caller.session.user_id,
            "Account": account,
            "Arn": caller.session.arn(account),
        }
    return {
        "UserId": caller.access_key,
        "Account": account,
        "Arn": f"arn:aws:iam::{account}:user/trivet",
    }


OPERATIONS: Mapping[str, Operation] = {"GetCallerIdentity": get_caller_identity}
