"""Policies: what a resource policy says of a request, decided as IAM decides it.

Statements are JSON objects as AWS writes them. What this module cannot judge never helps a
request: an Allow with it does not apply, and a Deny with it does.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any

MAX_POLICY_BYTES = 20_480

INVOKE_URL = "lambda:InvokeFunctionUrl"
INVOKE = "lambda:InvokeFunction"
AUTH_TYPE_KEY = "lambda:FunctionUrlAuthType"
VIA_URL_KEY = "lambda:InvokedViaFunctionUrl"


_UNJUDGED = frozenset({"NotAction", "NotPrincipal", "NotResource"})


class Verdict(Enum):
    """What a policy says. Silence is a refusal, unless the caller's own policy allows."""

    ALLOWED = "allowed"
    DENIED = "denied"
    SILENT = "silent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody wants to do, and the circumstances that conditions may ask for."""

    action: str
    resource: str  # ARN
    account: str = ""  # of an AWS principal; empty: nobody is known to be asking
    principal: str = ""  # ARN of an AWS principal
    service: str = ""  # "s3.amazonaws.com"
    circumstances: Mapping[str, str] = field(default_factory=dict)


def document(statements: Iterable[Mapping[str, Any]]) -> str:
    """The policy of a function as GetPolicy gives it."""
    policy = {"Version": "2012-10-17", "Id": "default", "Statement": list(statements)}
    return compact(policy)


def compact(value: Mapping[str, Any]) -> str:
    """JSON as AWS writes it into answers."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def judge(statements: Iterable[Mapping[str, Any]], request: Request) -> Verdict:
    """What the policy made of `statements` says of `request`: a Deny outweighs every Allow."""
    verdict = Verdict.SILENT
    circumstances = {key.lower(): value for key, value in request.circumstances.items()}
    for statement in statements:
        is_deny = statement.get("Effect") != "Allow"
        if _concerns(statement, request, unknown=is_deny) and _holds(
            statement.get("Condition", {}), circumstances, unknown=is_deny
        ):
            if is_deny:
                return Verdict.DENIED
            verdict = Verdict.ALLOWED
    return verdict


def judge_url(
    statements: Iterable[Mapping[str, Any]],
    *,
    resource: str,
    auth_type: str,
    account: str = "",
    principal: str = "",
) -> Verdict:
    """What the policy says of a request to a function URL.

    It needs two permissions: to use the URL, and to invoke the function by way of it.
    """
    kept = list(statements)
    verdicts = {
        judge(
            kept,
            Request(
                action=action,
                resource=resource,
                account=account,
                principal=principal,
                circumstances={key: value, "lambda:FunctionArn": resource},
            ),
        )
        for action, key, value in (
            (INVOKE_URL, AUTH_TYPE_KEY, auth_type),
            (INVOKE, VIA_URL_KEY, "true"),
        )
    }
    if Verdict.DENIED in verdicts:
        return Verdict.DENIED
    return Verdict.SILENT if Verdict.SILENT in verdicts else Verdict.ALLOWED


# -------------------------------------------------------------------------- who may do what


def _concerns(statement: Mapping[str, Any], request: Request, *, unknown: bool) -> bool:
    if not _UNJUDGED.isdisjoint(statement):
        return unknown
    return (
        _names_principal(statement.get("Principal"), request)
        and _any_like(statement.get("Action"), request.action, ignore_case=True)
        and _any_like(statement.get("Resource"), request.resource)
    )


def _names_principal(named: Any, request: Request) -> bool:
    if named == "*":
        return True
    if not isinstance(named, Mapping):
        return False
    if request.service:
        return request.service in _several(named.get("Service"))
    return any(_is_principal(name, request) for name in _several(named.get("AWS")))


def _is_principal(name: str, request: Request) -> bool:
    if name == "*":
        return True
    if not request.account:
        return False
    whole_account = (request.account, f"arn:aws:iam::{request.account}:root")
    return name in whole_account or name == request.principal


# -------------------------------------------------------------------------- under which conditions


def _holds(
    conditions: Mapping[str, Mapping[str, Any]], circumstances: Mapping[str, str], *, unknown: bool
) -> bool:
    """Whether all of the conditions hold. One that cannot be judged counts as `unknown`."""
    for operator, wanted in conditions.items():
        holds = _OPERATORS.get(operator)
        for key, values in wanted.items():
            actual = circumstances.get(key.lower())
            if holds is None:
                if not unknown:
                    return False
            elif actual is None or not any(holds(str(v), actual) for v in _several(values)):
                return False
    return True


def _equal(wanted: str, actual: str) -> bool:
    return wanted == actual


def _equal_in_any_case(wanted: str, actual: str) -> bool:
    return wanted.lower() == actual.lower()


def _like(wanted: str, actual: str) -> bool:
    return _pattern(wanted).match(actual) is not None


def _arn_like(wanted: str, actual: str) -> bool:
    """Each of an ARN's six parts for itself: a star does not reach over a colon but the last."""
    wanted_parts, actual_parts = wanted.split(":", 5), actual.split(":", 5)
    return len(wanted_parts) == len(actual_parts) == 6 and all(
        _like(wanted, actual) for wanted, actual in zip(wanted_parts, actual_parts, strict=True)
    )


def _in_network(wanted: str, actual: str) -> bool:
    try:
        return ipaddress.ip_address(actual) in ipaddress.ip_network(wanted, strict=False)
    except ValueError:
        return False


_OPERATORS: Mapping[str, Callable[[str, str], bool]] = {
    "ArnEquals": _arn_like,  # IAM treats the two alike
    "ArnLike": _arn_like,
    "Bool": _equal_in_any_case,
    "IpAddress": _in_network,
    "StringEquals": _equal,
    "StringEqualsIgnoreCase": _equal_in_any_case,
    "StringLike": _like,
}


def _any_like(patterns: Any, text: str, *, ignore_case: bool = False) -> bool:
    text = text.lower() if ignore_case else text
    return any(
        _like(pattern.lower() if ignore_case else pattern, text) for pattern in _several(patterns)
    )


def _several(value: Any) -> list[Any]:
    """IAM lets a list of one be written without the list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


@lru_cache(maxsize=1_024)
def _pattern(text: str) -> re.Pattern[str]:
    """`text` with "*" for anything and "?" for one character, matched without backtracking."""
    return re.compile(fnmatch.translate(text.replace("[", "[[]")))
