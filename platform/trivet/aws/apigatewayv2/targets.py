"""Targets: what a request names, found or refused: an API, a function, a page of a list."""

from __future__ import annotations

import re
import secrets
import string
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from trivet.aws.services import Services
from trivet.core.arns import LATEST, parse_function_ref
from trivet.store.apis import Api

from .absent import absent
from .refusals import bad_request, no_api

_INVOCATION = re.compile(
    r"arn:aws[a-zA-Z-]*:apigateway:(?P<region>[a-z0-9-]+):lambda:path/2015-03-31/functions/"
    r"(?P<function>.+)/invocations\Z"
)
_NUMBER = re.compile(r"\d{1,9}\Z", re.ASCII)


def existing(services: Services, params: Mapping[str, Any]) -> Api:
    api = services.apis.get(params["ApiId"])
    if api is None:
        raise no_api(services.place, params["ApiId"])
    return api


async def changed(services: Services, params: Mapping[str, Any], edit: Callable[[Api], Api]) -> Api:
    api = await services.apis.change(params["ApiId"], edit)
    if api is None:
        raise no_api(services.place, params["ApiId"])
    return api


def function_of(services: Services, uri: str) -> str:
    """Name of the function that an ARN means: its own, or API Gateway's for invoking it."""
    invocation = _INVOCATION.match(uri)
    arn = uri if invocation is None else invocation["function"]
    ref = parse_function_ref(arn)
    place = services.place
    if (
        ref is None
        or not arn.startswith("arn:")
        or (ref.region, ref.account) != (place.region, place.account)
        or (invocation is not None and invocation["region"] != place.region)
    ):
        raise bad_request(f"Invalid function ARN or invalid uri: {uri}")
    if ref.qualifier not in (None, LATEST):
        raise absent("Published versions and aliases of functions")
    return ref.name


def page(items: Iterable[dict[str, Any]], params: Mapping[str, Any]) -> dict[str, Any]:
    """One page of a list; the token is the position at which the next one begins."""
    every = list(items)
    token, size = params.get("NextToken", "0"), params.get("MaxResults", str(len(every) or 1))
    if not (_NUMBER.match(token) and _NUMBER.match(size) and int(size) > 0):
        raise bad_request("Invalid NextToken or MaxResults")
    end = int(token) + int(size)
    answer: dict[str, Any] = {"Items": every[int(token) : end]}
    if end < len(every):
        answer["NextToken"] = str(end)
    return answer


def new_id(length: int = 10) -> str:
    """As AWS makes them: lower-case letters and digits, the first one a letter."""
    letters = string.ascii_lowercase + string.digits
    first = secrets.choice(string.ascii_lowercase)
    return first + "".join(secrets.choice(letters) for _ in range(length - 1))


def instant_ms() -> int:
    return time.time_ns() // 1_000_000
