"""Context: the second argument of a Python handler, with the names and habits of AWS's."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, TypeVar

from trivet_worker.faults import CONTEXT_UNMARSHAL_ERROR, Fault

_W3C_FIELDS = ("traceparent", "tracestate", "baggage")


class _Record:
    """An object whose fields are listed once, and None unless given."""

    __slots__: list[str] = []

    def __repr__(self) -> str:
        fields = ",".join(f"{name}={getattr(self, name)}" for name in self.__slots__)
        return f"{type(self).__name__}([{fields}])"


class CognitoIdentity(_Record):
    """Who called through Amazon Cognito: nobody, here."""

    __slots__ = ["cognito_identity_id", "cognito_identity_pool_id"]


class Client(_Record):
    """The application on a caller's device, as it describes itself."""

    __slots__ = [  # noqa: RUF023  # the order in which AWS's repr shows them
        "installation_id",
        "app_title",
        "app_version_name",
        "app_version_code",
        "app_package_name",
    ]


class ClientContext(_Record):
    """What the caller said about itself beside the event."""

    custom: Any
    env: Any
    client: Any

    __slots__ = ["custom", "env", "client"]  # noqa: RUF023  # AWS's order, as above


R = TypeVar("R", bound=_Record)


def _record(kind: type[R], values: Mapping[str, Any]) -> R:
    record = kind()
    for name in kind.__slots__:
        setattr(record, name, values.get(name))
    return record


class LambdaContext:
    """One invocation, as its handler sees it."""

    def __init__(
        self,
        function: Mapping[str, Any],
        request_id: str,
        arn: str,
        deadline_ms: int,
        client_context: bytes = b"",
    ) -> None:
        self.aws_request_id = request_id
        self.log_group_name = function["log_group"]
        self.log_stream_name = function["log_stream"]
        self.function_name = function["name"]
        self.memory_limit_in_mb = str(function["memory_mb"])
        self.function_version = function["version"]
        self.invoked_function_arn = arn
        self.tenant_id: str | None = None
        given = _parse(client_context) if client_context else None
        self._w3c = _take_w3c(given)
        self.client_context = None if given is None else _client_context(given)
        self.identity = _record(CognitoIdentity, {})
        self._deadline_ms = deadline_ms

    def get_remaining_time_in_millis(self) -> int:
        return max(0, self._deadline_ms - int(time.time() * 1000))

    def w3c(self) -> dict[str, str]:
        """The W3C trace context that came with the client context."""
        return dict(self._w3c)

    def log(self, msg: object) -> None:
        for handler in logging.getLogger().handlers:
            if hasattr(handler, "log_sink"):
                handler.log_sink.log(str(msg))
                return
        sys.stdout.write(str(msg))

    def __repr__(self) -> str:
        names = (
            "aws_request_id",
            "log_group_name",
            "log_stream_name",
            "function_name",
            "memory_limit_in_mb",
            "function_version",
            "invoked_function_arn",
            "client_context",
            "identity",
            "tenant_id",
        )
        fields = ",".join(f"{name}={getattr(self, name)}" for name in names)
        return f"{type(self).__name__}([{fields}])"


def _parse(client_context: bytes) -> Any:
    try:
        return json.loads(client_context)
    except ValueError as error:
        message = f"Unable to parse Client Context JSON: {error}"
        raise Fault(CONTEXT_UNMARSHAL_ERROR, message) from None


def _take_w3c(given: Any) -> dict[str, str]:
    fields = given.pop("w3c", None) if isinstance(given, dict) else None
    if not isinstance(fields, dict):
        return {}
    return {name: fields[name] for name in _W3C_FIELDS if isinstance(fields.get(name), str)}


def _client_context(given: Any) -> ClientContext:
    if not isinstance(given, dict):
        message = "Unable to parse Client Context JSON: it is not an object"
        raise Fault(CONTEXT_UNMARSHAL_ERROR, message)
    context = _record(ClientContext, given)
    client = given.get("client")
    if isinstance(client, dict):
        context.client = _record(Client, client)
    return context
