"""Variables: the process environment that AWS gives a function, name by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from trivet.core.functions import FunctionVersion
from trivet.core.roles import Credentials

_NONE: Mapping[str, str] = MappingProxyType({})

# Set by the platform; a deployment that names one of them is refused.
RESERVED = frozenset(
    {
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
        "AWS_DEFAULT_REGION",
        "AWS_REGION",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_LAMBDA_RUNTIME_API",
        "LAMBDA_TASK_ROOT",
        "LAMBDA_RUNTIME_DIR",
    }
)


def log_group(function: str) -> str:
    return f"/aws/lambda/{function}"


def environment_variables(
    version: FunctionVersion,
    *,
    region: str,
    log_stream: str,
    task_root: str,
    credentials: Credentials | None = None,
    endpoints: Mapping[str, str] = _NONE,
) -> dict[str, str]:
    """What the function's process sees: the platform's names, and the user's around them.

    `endpoints`: the variables by which its SDK finds the services (`core/endpoints.py`).
    """
    platform = {
        "_HANDLER": version.handler,
        "AWS_DEFAULT_REGION": region,
        "AWS_REGION": region,
        "AWS_LAMBDA_FUNCTION_NAME": version.function,
        "AWS_LAMBDA_FUNCTION_VERSION": version.version,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(version.memory_mb),
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": log_group(version.function),
        "AWS_LAMBDA_LOG_STREAM_NAME": log_stream,
        "LAMBDA_TASK_ROOT": task_root,
        "LAMBDA_RUNTIME_DIR": "/var/runtime",
        "PWD": task_root,
        "SHLVL": "0",
    }
    if not version.runtime.startswith("provided"):
        platform["AWS_EXECUTION_ENV"] = f"AWS_Lambda_{version.runtime}"
    if credentials is not None:
        platform["AWS_ACCESS_KEY_ID"] = credentials.access_key
        platform["AWS_SECRET_ACCESS_KEY"] = credentials.secret
        platform["AWS_SESSION_TOKEN"] = credentials.token
    defaults = {
        **endpoints,
        "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        "PATH": "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
    }
    if version.runtime.startswith("nodejs"):
        major = version.runtime.removeprefix("nodejs").partition(".")[0]
        defaults["NODE_PATH"] = (
            f"/opt/nodejs/node{major}/node_modules:/opt/nodejs/node_modules:"
            f"/var/runtime/node_modules:/var/runtime:{task_root}"
        )
    # A user may change the defaults, and never the platform's own.
    return {**defaults, **version.environment, **platform}
