"""REST with JSON bodies: the protocol of Lambda, Scheduler and API Gateway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import orjson

from trivet.errors import TrivetError

from .constraints import Violation, missing, refusal
from .model import Answer, Model, Request
from .refusals import Refused, not_serializable
from .router import Found, Router
from .shapes import Reader, Readers, Writer, Writers, camel, timestamp


@dataclass(frozen=True, slots=True)
class _Field:
    """A member of an input that stands outside the body."""

    member: str
    wire: str
    name: str  # in AWS's sentences
    reader: Reader
    is_required: bool
    is_list: bool
    is_map: bool


@dataclass(frozen=True, slots=True)
class _Input:
    labels: tuple[_Field, ...]
    query: tuple[_Field, ...]
    headers: tuple[tuple[bytes, _Field], ...]
    prefixes: tuple[tuple[bytes, str], ...]  # header prefix -> member, a map of all such headers
    payload: str  # the member that is the whole body, or nothing
    body: Reader | None  # of the payload or of all members without a location; None: raw bytes


@dataclass(frozen=True, slots=True)
class _Output:
    status: int
    status_member: str
    headers: Mapping[str, tuple[str, str]]  # member -> header, timestamp form
    prefixes: Mapping[str, str]  # member -> header prefix
    payload: str
    body: Writer | None  # None: raw bytes


class RestJson:
    """Speaks REST with JSON for one service."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._router = Router(model)
        self._text = Readers(model, from_text=True)
        self._json = Readers(model)
        self._writers = Writers(model)
        self._inputs: dict[str, _Input] = {}
        self._outputs: dict[str, _Output] = {}

    def find(self, request: Request) -> Found:
        found = self._router.find(request.method, request.path, request.query)
        if found is None:
            message = "Unable to determine service/operation name to be authorized"
            raise Refused("UnknownOperationException", message, status=404)
        return found

    def read(self, found: Found, request: Request) -> dict[str, Any]:
        """The parameters of the operation, all of AWS's constraints met."""
        shape = self._inputs.get(found.operation)
        if shape is None:
            shape = self._inputs[found.operation] = self._input(found.operation)
        violations: list[Violation] = []
        params: dict[str, Any] = {}
        for field in shape.labels:
            params[field.member] = field.reader(found.labels[field.wire], field.name, violations)
        if shape.query:
            _read_query(shape.query, request.query, params, violations)
        for header, field in shape.headers:
            value = request.headers.get(header)
            if value is not None:
                text = value.decode("latin-1")
                params[field.member] = field.reader(text, field.name, violations)
            elif field.is_required:
                violations.append(missing(field.name))
        for prefix, member in shape.prefixes:
            params[member] = {
                name[len(prefix) :].decode("latin-1"): value.decode("latin-1")
                for name, value in request.headers.items()
                if name.startswith(prefix)
            }
        self._read_body(shape, request.body, params, violations)
        if violations:
            raise refusal(self.model.service, violations)
        return params

    def write(self, operation: str, result: Mapping[str, Any], request_id: str) -> Answer:
        shape = self._outputs.get(operation)
        if shape is None:
            shape = self._outputs[operation] = self._output(operation)
        answer = Answer(shape.status)
        inside = {}
        for member, value in result.items():
            if value is None:
                continue
            if member == shape.status_member:
                answer.status = value
            elif member in shape.headers:
                name, form = shape.headers[member]
                answer.headers[name] = _header_text(value, form)
            elif member in shape.prefixes:
                for name, text in value.items():
                    answer.headers[shape.prefixes[member] + name] = str(text)
            else:
                inside[member] = value
        if shape.body is None:
            answer.body = inside.get(shape.payload, b"")
        elif shape.payload:
            answer.body = orjson.dumps(shape.body(inside.get(shape.payload, {})))
        elif answer.status != 204:
            answer.body = orjson.dumps(shape.body(inside))
        return answer

    def refuse(self, error: TrivetError, request_id: str) -> Answer:
        status = self.model.error_status(error.error_type, error.status)
        shape = self.model.error(error.error_type)
        members: Mapping[str, Any] = shape["members"] if shape else {}
        answer = Answer(status)
        answer.headers["x-amzn-ErrorType"] = error.error_type
        body: dict[str, Any] = {}
        if "Type" in members:
            body["Type"] = "User" if status < 500 else "Service"
        body["Message" if "Message" in members else "message"] = error.message
        for member, value in error.members.items():
            target = members.get(member)
            if target is None:
                continue
            wire = target.get("locationName", member)
            if target.get("location") == "header":
                answer.headers[wire] = str(value)
            else:
                body[wire] = value
        answer.body = orjson.dumps(body)
        return answer

    def _read_body(
        self, shape: _Input, body: bytes, params: dict[str, Any], violations: list[Violation]
    ) -> None:
        if shape.body is None:
            if shape.payload and body:
                params[shape.payload] = body
            return
        value = read_json(body)
        if not shape.payload:
            params.update(shape.body(value, "", violations))
        elif value:
            name = camel(shape.payload)
            params[shape.payload] = shape.body(value, name, violations)

    def _input(self, operation: str) -> _Input:
        shape = self._shape(operation, "input")
        payload = shape.get("payload", "")
        fields: dict[str, list[_Field]] = {"uri": [], "querystring": [], "header": []}
        prefixes: list[tuple[bytes, str]] = []
        inside = []
        for member, target in shape["members"].items():
            place = target.get("location")
            if place == "headers":
                prefixes.append((target["locationName"].lower().encode(), member))
            elif place is not None:
                fields[place].append(self._field(shape, member, target))
            elif member != payload:
                inside.append(member)
        return _Input(
            labels=tuple(fields["uri"]),
            query=tuple(fields["querystring"]),
            headers=tuple((field.wire.lower().encode(), field) for field in fields["header"]),
            prefixes=tuple(prefixes),
            payload=payload,
            body=self._body_reader(shape, payload, inside),
        )

    def _field(self, shape: Mapping[str, Any], member: str, target: Mapping[str, Any]) -> _Field:
        kind = self.model.shapes[target["shape"]]["type"]
        return _Field(
            member=member,
            wire=target.get("locationName", member),
            name=camel(member),
            reader=self._text.of(target["shape"]),
            is_required=member in shape.get("required", ()),
            is_list=kind == "list",
            is_map=kind == "map",
        )

    def _body_reader(
        self, shape: Mapping[str, Any], payload: str, inside: list[str]
    ) -> Reader | None:
        if payload:
            target = shape["members"][payload]["shape"]
            is_raw = self.model.shapes[target]["type"] in ("blob", "string")
            return None if is_raw else self._json.of(target)
        return self._json.structure(shape, inside) if inside else None

    def _output(self, operation: str) -> _Output:
        shape = self._shape(operation, "output")
        payload = shape.get("payload", "")
        status_member = ""
        headers: dict[str, tuple[str, str]] = {}
        prefixes: dict[str, str] = {}
        inside = []
        for member, target in shape["members"].items():
            place, wire = target.get("location"), target.get("locationName", member)
            if place == "statusCode":
                status_member = member
            elif place == "header":
                form = self.model.shapes[target["shape"]].get("timestampFormat", "rfc822")
                headers[member] = (wire, form)
            elif place == "headers":
                prefixes[member] = wire
            elif member != payload:
                inside.append(member)
        writer: Writer | None
        if payload:
            target = shape["members"][payload]["shape"]
            is_raw = self.model.shapes[target]["type"] in ("blob", "string")
            writer = None if is_raw else self._writers.of(target)
        else:
            writer = self._writers.structure(shape, inside)
        status = self.model.operations[operation]["http"].get("responseCode", 200)
        return _Output(status, status_member, headers, prefixes, payload, writer)

    def _shape(self, operation: str, direction: str) -> Mapping[str, Any]:
        target = self.model.operations[operation].get(direction)
        return self.model.shapes[target["shape"]] if target else {"members": {}}


def read_json(body: bytes) -> dict[str, Any]:
    """A JSON object; no body at all is an empty one."""
    if not body:
        return {}
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        message = f"Could not parse request body into json: {error}"
        raise not_serializable(message) from None
    if type(value) is not dict:
        raise not_serializable("Start of structure or map was expected and not found.")
    return value


def _read_query(
    fields: tuple[_Field, ...], query: bytes, params: dict[str, Any], violations: list[Violation]
) -> None:
    given: dict[str, list[str]] = {}
    if query:
        for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
            given.setdefault(name, []).append(value)
    for field in fields:
        values = given.get(field.wire)
        if field.is_map:
            everything = {name: found[0] for name, found in given.items()}
            params[field.member] = field.reader(everything, field.name, violations)
        elif values is not None:
            given_value = values if field.is_list else values[0]
            params[field.member] = field.reader(given_value, field.name, violations)
        elif field.is_required:
            violations.append(missing(field.name))


def _header_text(value: Any, form: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(timestamp(value, form)) if hasattr(value, "timestamp") else str(value)
