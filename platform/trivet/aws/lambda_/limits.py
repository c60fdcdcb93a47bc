"""Limits: what a function may be set to, where AWS's model is wider than AWS itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trivet.aws.constraints import Violation, refusal
from trivet.core import egress
from trivet.core.functions import EGRESS_TAG
from trivet.errors import CallerError

MAX_TIMEOUT_S = 900
MAX_MEMORY_MB = 10_240
MAX_EPHEMERAL_MB = 10_240
MAX_ENVIRONMENT_BYTES = 4_096
MAX_TAGS = 50

_UNABLE = (
    "Lambda was unable to configure your environment variables because the environment variables "
    "you have provided"
)

RESERVED_VARIABLES = frozenset(
    {
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
        "AWS_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_DEFAULT_REGION",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_LAMBDA_RUNTIME_API",
        "AWS_REGION",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "LAMBDA_RUNTIME_DIR",
        "LAMBDA_TASK_ROOT",
    }
)


def check_sizes(params: Mapping[str, Any]) -> None:
    """Raise if Timeout, MemorySize or EphemeralStorage is more than a function may have."""
    given = (
        ("timeout", params.get("Timeout"), MAX_TIMEOUT_S),
        ("memorySize", params.get("MemorySize"), MAX_MEMORY_MB),
        ("ephemeralStorage.size", params.get("EphemeralStorage", {}).get("Size"), MAX_EPHEMERAL_MB),
    )
    violations = [
        Violation(path, f" '{value}'", f"Member must have value less than or equal to {limit}")
        for path, value, limit in given
        if value is not None and value > limit
    ]
    if violations:
        raise refusal("lambda", violations)


def check_variables(variables: Mapping[str, str]) -> None:
    """Raise if a function may not have these environment variables."""
    reserved = sorted(RESERVED_VARIABLES.intersection(variables))
    if reserved:
        raise CallerError(
            f"{_UNABLE} contains reserved keys that are currently not supported for modification. "
            f"Reserved keys used in this request: {', '.join(reserved)}"
        )
    if any("\0" in value for value in variables.values()):
        raise CallerError(f"{_UNABLE} contains a NUL character, which no process can be given.")
    measured = json.dumps(variables, separators=(",", ":"), ensure_ascii=False)
    if len(measured.encode()) > MAX_ENVIRONMENT_BYTES:
        raise CallerError(f"{_UNABLE} exceeded the 4KB limit. String measured: {measured}")


def check_tags(tags: Mapping[str, str]) -> None:
    """Raise if a function may not have these tags, all of them together."""
    if len(tags) > MAX_TAGS:
        raise CallerError("Number of tags exceeds resource tag limit.")
    if any(key.lower().startswith("aws:") for key in tags):
        raise CallerError("aws: prefixed tag key names are not allowed for external use.")
    if EGRESS_TAG in tags:
        try:
            egress.parse(tags[EGRESS_TAG])
        except ValueError as error:
            raise CallerError(f"The tag {EGRESS_TAG} cannot be used: {error}") from None
