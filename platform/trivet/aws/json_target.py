"""JSON by target: every call is a POST to "/", and X-Amz-Target names the operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from trivet.errors import TrivetError

from .constraints import Violation, refusal
from .model import Answer, Model, Request
from .refusals import Refused
from .rest_json import read_json
from .router import Found
from .shapes import Readers, Writers


class JsonTarget:
    """Speaks JSON 1.0 or 1.1 for one service: Logs, EventBridge, SQS."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._readers = Readers(model)
        self._writers = Writers(model)
        self._content_type = f"application/x-amz-json-{model.metadata.get('jsonVersion', '1.0')}"

    def find(self, request: Request) -> Found:
        target = request.headers.get(b"x-amz-target", b"").decode("latin-1")
        prefix, _, operation = target.partition(".")
        if prefix != self.model.metadata.get("targetPrefix"):
            raise Refused("UnknownOperationException", "")
        if operation not in self.model.operations:
            raise Refused("UnknownOperationException", "")
        return Found(operation, {})

    def read(self, found: Found, request: Request) -> dict[str, Any]:
        value = read_json(request.body)
        target = self.model.operations[found.operation].get("input")
        if target is None:
            return {}
        violations: list[Violation] = []
        params: dict[str, Any] = self._readers.of(target["shape"])(value, "", violations)
        if violations:
            raise refusal(self.model.service, violations)
        return params

    def write(self, operation: str, result: Mapping[str, Any], request_id: str) -> Answer:
        target = self.model.operations[operation].get("output")
        body = orjson.dumps(self._writers.of(target["shape"])(result)) if target else b""
        return Answer(200, body, self._content_type)

    def refuse(self, error: TrivetError, request_id: str) -> Answer:
        otherwise = 400 if error.status in (403, 404) else error.status
        status = self.model.error_status(error.error_type, otherwise)
        shape = self.model.error(error.error_type)
        members: Mapping[str, Any] = shape["members"] if shape else {}
        body: dict[str, Any] = {"__type": error.error_type}
        if error.message:
            body["Message" if "Message" in members else "message"] = error.message
        body.update({name: value for name, value in error.members.items() if name in members})
        answer = Answer(status, orjson.dumps(body), self._content_type)
        answer.headers["x-amzn-ErrorType"] = error.error_type
        return answer
