"""The query protocol: a form names the Action, and the answer is XML. STS and IAM speak it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from trivet.errors import TrivetError

from .constraints import Violation, refusal
from .model import Answer, Model, Request
from .refusals import Refused
from .router import Found
from .shapes import Readers, scalar_writer

# The older protocol has older names for the errors of authentication.
_ERROR_TYPES = {
    "AccessDeniedException": "AccessDenied",
    "ExpiredTokenException": "ExpiredToken",
    "IncompleteSignatureException": "IncompleteSignature",
    "InvalidSignatureException": "SignatureDoesNotMatch",
    "MissingAuthenticationTokenException": "MissingAuthenticationToken",
    "ServiceException": "InternalFailure",
    "UnrecognizedClientException": "InvalidClientTokenId",
}


class Query:
    """Speaks the query protocol for one service."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._readers = Readers(model, from_text=True)

    def find(self, request: Request) -> Found:
        form = _form(request)
        action = form.get("Action")
        if action is None:
            raise Refused("MissingAction", "The request must contain the parameter Action.")
        if action not in self.model.operations:
            version = form.get("Version", self.model.metadata.get("apiVersion", ""))
            message = f"Could not find operation {action} for version {version}"
            raise Refused("InvalidAction", message)
        return Found(action, {})

    def read(self, found: Found, request: Request) -> dict[str, Any]:
        target = self.model.operations[found.operation].get("input")
        if target is None:
            return {}
        tree = self._grown(target["shape"], _form(request), "")
        violations: list[Violation] = []
        params: dict[str, Any] = self._readers.of(target["shape"])(tree or {}, "", violations)
        if violations:
            raise refusal(self.model.service, violations)
        return params

    def write(self, operation: str, result: Mapping[str, Any], request_id: str) -> Answer:
        target = self.model.operations[operation].get("output")
        inside = ""
        if target:
            wrapper = target.get("resultWrapper", f"{operation}Result")
            members = self._xml(target["shape"], result)
            inside = f"<{wrapper}>{members}</{wrapper}>"
        space = escape(self.model.metadata.get("xmlNamespace", ""))
        metadata = _element("ResponseMetadata", _element("RequestId", request_id))
        return _xml_answer(
            200, f'<{operation}Response xmlns="{space}">{inside}{metadata}</{operation}Response>'
        )

    def refuse(self, error: TrivetError, request_id: str) -> Answer:
        status = self.model.error_status(error.error_type, error.status)
        error_type = _ERROR_TYPES.get(error.error_type, error.error_type)
        fault = "Sender" if status < 500 else "Receiver"
        space = escape(self.model.metadata.get("xmlNamespace", ""))
        answer = _xml_answer(
            status,
            f'<ErrorResponse xmlns="{space}"><Error><Type>{fault}</Type>'
            f"<Code>{escape(error_type)}</Code><Message>{_escaped(error.message)}</Message>"
            f"</Error><RequestId>{request_id}</RequestId></ErrorResponse>",
        )
        answer.headers["x-amzn-ErrorType"] = error_type
        return answer

    def _grown(self, name: str, form: Mapping[str, str], prefix: str) -> Any:
        """The value that the form's dotted names spell for a shape; None where they do not."""
        shape = self.model.shapes[name]
        if shape["type"] == "structure":
            fields = {}
            for member, target in shape["members"].items():
                wire = target.get("locationName", member)
                value = self._grown(target["shape"], form, f"{prefix}{wire}.")
                if value is not None:
                    fields[wire] = value
            return fields or None
        if shape["type"] == "list":
            dot = prefix if shape.get("flattened") else f"{prefix}member."
            items: list[Any] = []
            while (item := self._item(shape["member"]["shape"], form, dot, len(items))) is not None:
                items.append(item)
            return items or ([] if prefix[:-1] in form else None)
        return form.get(prefix[:-1])

    def _item(self, name: str, form: Mapping[str, str], prefix: str, index: int) -> Any:
        start = f"{prefix}{index + 1}"
        if not any(key == start or key.startswith(f"{start}.") for key in form):
            return None
        value = self._grown(name, form, f"{start}.")
        return {} if value is None else value

    def _xml(self, name: str, value: Any) -> str:
        shape = self.model.shapes[name]
        kind = shape["type"]
        if kind == "structure":
            return "".join(
                _element(target.get("locationName", member), self._xml(target["shape"], inner))
                for member, target in shape["members"].items()
                if (inner := value.get(member)) is not None
            )
        if kind == "list":
            member = shape["member"]
            tag = member.get("locationName", "member")
            return "".join(_element(tag, self._xml(member["shape"], item)) for item in value)
        if kind == "map":
            return "".join(
                _element(
                    "entry",
                    _element("key", _escaped(str(key)))
                    + _element("value", self._xml(shape["value"]["shape"], item)),
                )
                for key, item in value.items()
            )
        if kind == "boolean":
            return "true" if value else "false"
        return _escaped(str(scalar_writer(shape, "iso8601")(value)))


def _form(request: Request) -> dict[str, str]:
    pairs = parse_qsl(request.query.decode("latin-1"), keep_blank_values=True)
    pairs += parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True)
    return dict(pairs)


def _element(tag: str, inside: str) -> str:
    return f"<{tag}>{inside}</{tag}>"


def _escaped(text: str) -> str:
    # XML 1.0 cannot hold control characters, not even escaped.
    return escape("".join(c for c in text if c >= " " or c in "\t\n\r"))


def _xml_answer(status: int, body: str) -> Answer:
    return Answer(status, body.encode(), "text/xml")
