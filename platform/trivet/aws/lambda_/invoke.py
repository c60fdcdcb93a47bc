"""Invoke: a function run for a caller who waits, or accepted to be run later."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

import orjson

from trivet.aws.refusals import Refused
from trivet.aws.services import Caller, Operation, Services
from trivet.core.arns import LATEST
from trivet.core.functions import Function
from trivet.core.invocations import Event
from trivet.core.lineage import MOST_PASSES, TERMINATE, extended, is_trace, passes
from trivet.errors import (
    CallerError,
    InvalidRequestContent,
    NotImplementedHere,
    RequestTooLarge,
)
from trivet_worker.wire import MAX_REQUEST_BYTES

from .names import found, named

MAX_EVENT_BYTES = 1_048_576  # AWS: 1 MB since October 2025
MAX_CLIENT_CONTEXT_BYTES = 3_583  # of base64


async def invoke(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    kind = params.get("InvocationType", "RequestResponse")
    wanted = named(services, params, "Invoke")
    _refuse_absent(params)
    payload = params.get("Payload") or b"{}"
    _check_payload(payload, kind)
    client_context = _client_context(params.get("ClientContext", ""))
    # AWS names the version here, also where the caller did not.
    version = wanted if wanted.qualifier else replace(wanted, qualifier=LATEST)
    function = await found(services, version)
    if kind == "DryRun":
        return {"StatusCode": 204}
    event = Event(
        id=caller.request_id,
        function=function.name,
        source="invoke",
        payload=payload,
        client_context=client_context,
        wants_log_tail=params.get("LogType") == "Tail",
        invoked_arn=wanted.arn,
        trace_id=_trace(caller, function),
    )
    if kind != "Event":
        _refuse_loop(event, function)
    if kind == "Event":
        await services.publisher.publish(event)
        return {"StatusCode": 202}
    reply = await services.platform.invoke(event)
    answer: dict[str, Any] = {
        "StatusCode": 200,
        "Payload": reply.payload,
        "ExecutedVersion": reply.executed_version,
    }
    if reply.function_error is not None:
        answer["FunctionError"] = reply.function_error
    if event.wants_log_tail:
        answer["LogResult"] = base64.b64encode(reply.log_tail).decode()
    return answer


def _trace(caller: Caller, function: Function) -> str:
    """The caller's trace; a function's call is written into its lineage."""
    trace = caller.trace if is_trace(caller.trace) else ""
    return trace if caller.session is None else extended(trace, function.name)


def _refuse_loop(event: Event, function: Function) -> None:
    """Raise where the function calls itself over and over. Events are stopped where they end."""
    if not event.trace_id or function.recursive_loop != TERMINATE:
        return
    if passes(event.trace_id, function.name) >= MOST_PASSES:
        raise Refused(
            "RecursiveInvocationException",
            "Lambda has detected your function being invoked in a recursive loop with other "
            "Amazon Web Services resources and stopped your function's invocation.",
        )


def _refuse_absent(params: Mapping[str, Any]) -> None:
    if "DurableExecutionName" in params:
        raise NotImplementedHere("Trivet does not have durable functions yet.")
    if "TenantId" in params:
        raise CallerError("The invoked function is not enabled with tenancy configuration.")


def _check_payload(payload: bytes, kind: str) -> None:
    limit = MAX_EVENT_BYTES if kind == "Event" else MAX_REQUEST_BYTES
    if len(payload) > limit:
        raise RequestTooLarge(
            f"{len(payload)} byte payload is too large for the {kind} invocation type "
            f"(limit {limit} bytes)"
        )
    try:
        orjson.loads(payload)
    except orjson.JSONDecodeError:
        _check_slowly(payload)


def _check_slowly(payload: bytes) -> None:
    """Half a surrogate pair is JSON to AWS and to functions, though orjson refuses it."""
    try:
        json.loads(payload.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise _no_json("it is nested too deeply") from None
    except ValueError as error:
        raise _no_json(str(error)) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a value of JSON")


def _no_json(reason: str) -> InvalidRequestContent:
    return InvalidRequestContent(
        f"Could not parse request body into json: Could not parse payload into json: {reason}"
    )


def _client_context(text: str) -> bytes:
    """The client context as JSON, or nothing."""
    if not text:
        return b""
    if len(text) > MAX_CLIENT_CONTEXT_BYTES:
        raise InvalidRequestContent(
            f"Client context must be no larger than {MAX_CLIENT_CONTEXT_BYTES} bytes of base64."
        )
    try:
        context = base64.b64decode(text, validate=True)
        if isinstance(orjson.loads(context), dict):
            return context
    except (binascii.Error, ValueError):
        pass
    raise InvalidRequestContent("Client context must be a valid Base64-encoded JSON object.")


OPERATIONS: Mapping[str, Operation] = {"Invoke": invoke}
