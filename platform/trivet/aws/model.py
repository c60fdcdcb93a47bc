"""Models: AWS's own description of its services, as botocore ships them, and ours beside them.

Read from botocore's data files directly: importing botocore itself would cost 200 ms and 18 MB,
and its model classes are made for clients.
"""

from __future__ import annotations

import gzip
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

OWN_MODELS = str(Path(__file__).with_name("models"))
"""Models of ours, in botocore's layout: a client made of botocore may search here too."""


@dataclass(slots=True)
class Request:
    """An HTTP request as the door hands it on: signed, and not yet understood."""

    method: str
    path: str  # normalised as its signature was, still percent-encoded
    query: bytes
    headers: Mapping[bytes, bytes]  # names in lower case
    body: bytes = b""


@dataclass(slots=True)
class Answer:
    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class Model:
    """One service: its operations and shapes, as plain dictionaries in botocore's own form."""

    def __init__(self, service: str, description: Mapping[str, Any]) -> None:
        self.service = service  # botocore's name: "apigatewayv2"
        self.metadata: Mapping[str, Any] = description["metadata"]
        self.operations: Mapping[str, Mapping[str, Any]] = description["operations"]
        self.shapes: Mapping[str, Mapping[str, Any]] = description["shapes"]
        self._errors: dict[str, Mapping[str, Any]] = {}
        for name, shape in self.shapes.items():
            if shape.get("exception"):
                self._errors[name] = shape
                code = shape.get("error", {}).get("code")
                if code:
                    self._errors[code] = shape

    @property
    def protocol(self) -> str:
        return str(self.metadata["protocol"])

    @property
    def signing_name(self) -> str:
        """The service's name in the scope of a signature: "apigateway"."""
        return str(self.metadata.get("signingName") or self.metadata["endpointPrefix"])

    def error(self, error_type: str) -> Mapping[str, Any] | None:
        """The shape of an error, or None where the model has no such error."""
        return self._errors.get(error_type)

    def error_status(self, error_type: str, otherwise: int) -> int:
        shape = self._errors.get(error_type)
        if shape is None:
            return otherwise
        status = shape.get("error", {}).get("httpStatusCode")
        if status:
            return int(status)
        return 500 if shape.get("fault") else 400


def load(service: str) -> Model:
    """The newest model of a service. `service` is botocore's name of it, or "trivet": ours."""
    own = Path(OWN_MODELS, service)
    if own.is_dir():
        newest = max(entry.name for entry in own.iterdir())
        return Model(service, orjson.loads((own / newest / "service-2.json").read_bytes()))
    versions = importlib.resources.files("botocore") / "data" / service
    newest = max(entry.name for entry in versions.iterdir() if entry.is_dir())
    packed = (versions / newest / "service-2.json.gz").read_bytes()
    return Model(service, orjson.loads(gzip.decompress(packed)))


def unknown(protocol: str) -> Model:
    """A model without operations, to answer those who ask for a service that is not here."""
    metadata = {"protocol": protocol, "endpointPrefix": "", "jsonVersion": "1.1"}
    return Model("", {"metadata": metadata, "operations": {}, "shapes": {}})
