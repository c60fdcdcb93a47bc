"""Events: many at once, accepted for asynchronous invocation."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

import orjson

from trivet.aws.lambda_.names import named
from trivet.aws.services import Caller, Operation, Services
from trivet.core.invocations import Event
from trivet.errors import InvalidRequestContent, TrivetError


async def publish_events(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    """Each event is accepted or refused by itself; the answer comes when all are on disk."""
    given = params["Events"]
    if len(given) == 1:  # as most come; a task of its own would cost as much as the rest
        results = [await _published(services, given[0])]
    else:
        results = await asyncio.gather(*(_published(services, each) for each in given))
    failed = sum("ErrorCode" in result for result in results)
    return {"FailedCount": failed, "Results": results}


async def _published(services: Services, given: Mapping[str, Any]) -> dict[str, Any]:
    event_id = given.get("Id") or str(uuid.uuid4())
    try:
        wanted = named(services, {"FunctionName": given["Function"]}, "PublishEvents")
        event = Event(
            id=event_id,
            function=wanted.name,
            source="publish",
            payload=json_payload(given.get("Payload", "{}")),
            invoked_arn=wanted.arn,
        )
        is_new = await services.publisher.publish(event, once=given.get("Once", ""))
    except TrivetError as error:
        return {"Id": event_id, "ErrorCode": error.error_type, "ErrorMessage": error.message}
    return {"Id": event_id} if is_new else {"Id": event_id, "Duplicate": True}


def json_payload(text: str) -> bytes:
    """A payload as a caller wrote it. Raises InvalidRequestContent for what is no JSON."""
    try:
        payload = text.encode()
        orjson.loads(payload)
    except ValueError as error:
        message = f"Could not parse request body into json: {error}"
        raise InvalidRequestContent(message) from None
    return payload


OPERATIONS: Mapping[str, Operation] = {"PublishEvents": publish_events}
