"""Configuration: a function as every answer of the Lambda API shows it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from trivet.core.arns import Place
from trivet.core.functions import Function

from .absent import ARCHITECTURE, log_group

READY: Mapping[str, str] = {"State": "Active", "LastUpdateStatus": "Successful"}

# AWS answers a change before it has taken effect. Here it has, and the next read says so; but
# clients rely on the answer's form.
CREATING: Mapping[str, str] = {
    "State": "Pending",
    "StateReason": "The function is being created.",
    "StateReasonCode": "Creating",
}
UPDATING: Mapping[str, str] = {
    "State": "Active",
    "LastUpdateStatus": "InProgress",
    "LastUpdateStatusReason": "The function is being created.",
    "LastUpdateStatusReasonCode": "Creating",
}

# In lists AWS tells everything but the state.
IN_A_LIST: Mapping[str, str] = {}


def configuration(
    place: Place,
    function: Function,
    *,
    qualifier: str | None = None,
    state: Mapping[str, str] = READY,
) -> dict[str, Any]:
    """The members of FunctionConfiguration."""
    latest = function.latest
    answer: dict[str, Any] = {
        "FunctionName": function.name,
        "FunctionArn": place.function_arn(function.name, qualifier),
        "Runtime": latest.runtime,
        "Role": latest.role,
        "Handler": latest.handler,
        "CodeSize": function.code_bytes,
        "Description": function.description,
        "Timeout": latest.timeout_ms // 1000,
        "MemorySize": latest.memory_mb,
        "LastModified": _written(function.last_modified_ms),
        "CodeSha256": base64.b64encode(bytes.fromhex(latest.code_sha256)).decode(),
        "Version": latest.version,
        "TracingConfig": {"Mode": "PassThrough"},
        "RevisionId": function.revision,
        "PackageType": "Zip",
        "Architectures": [ARCHITECTURE],
        "EphemeralStorage": {"Size": latest.ephemeral_mb},
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": log_group(function.name)},
        **function.echoed,
        **state,
    }
    if latest.environment:
        answer["Environment"] = {"Variables": dict(latest.environment)}
    if state is not IN_A_LIST:
        answer["RuntimeVersionConfig"] = {"RuntimeVersionArn": _runtime_arn(place, latest.runtime)}
    return answer


def _written(instant_ms: int) -> str:
    """ "2026-11-23T14:00:00.000+0000": the one form in which Lambda writes an instant."""
    instant = datetime.fromtimestamp(instant_ms // 1000, UTC)
    return f"{instant:%Y-%m-%dT%H:%M:%S}.{instant_ms % 1000:03}+0000"


def _runtime_arn(place: Place, runtime: str) -> str:
    digest = hashlib.sha256(runtime.encode()).hexdigest()
    return f"arn:aws:lambda:{place.region}::runtime:{digest}"
