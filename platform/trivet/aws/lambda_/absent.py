"""Absent: members of AWS's shapes that would change what a function does, and that are not here.

Each is refused in words. A member that asks for nothing (an empty list, "None") is no request.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from typing import Any

from trivet.errors import NotImplementedHere

ARCHITECTURE = {"aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), "x86_64")


def _is_empty(value: Any) -> bool:
    return not value


def _has_no_network(value: Mapping[str, Any]) -> bool:
    return not value.get("SubnetIds") and not value.get("SecurityGroupIds")


def _is_none_of(*members: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda value: not any(value.get(member) for member in members)


_FROM_S3 = (_is_empty, "Code from S3. Send the zip itself, as ZipFile")
_IMAGES = "Container images. Send a zip, as ZipFile"

# member: (whether this value asks for nothing, what it would ask for)
MEMBERS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "AcceleratorConfig": (_is_empty, "Accelerators"),
    "Architectures": (
        lambda value: value in ([], [ARCHITECTURE]),
        f"Another architecture than {ARCHITECTURE}, which is this machine's",
    ),
    "CapacityProviderConfig": (_is_empty, "Capacity providers"),
    "CodeSigningConfigArn": (_is_empty, "Code signing"),
    "DeadLetterConfig": (
        _is_none_of("TargetArn"),
        "Dead-letter queues. Set an on-failure destination",
    ),
    "DurableConfig": (_is_empty, "Durable functions"),
    "FileSystemConfigs": (_is_empty, "File systems"),
    "ImageConfig": (_is_none_of("EntryPoint", "Command", "WorkingDirectory"), _IMAGES),
    "ImageUri": (_is_empty, _IMAGES),
    "KMSKeyArn": (_is_empty, "Encryption with a key of your own"),
    "Layers": (_is_empty, "Layers"),
    "PackageType": (lambda value: value == "Zip", _IMAGES),
    "Publish": (_is_empty, "Published versions"),
    "PublishTo": (_is_empty, "Published versions"),
    "RuntimeConfig": (_is_empty, "Runtimes of your own"),
    "S3Bucket": _FROM_S3,
    "S3Key": _FROM_S3,
    "S3ObjectStorageMode": _FROM_S3,
    "S3ObjectVersion": _FROM_S3,
    "SnapStart": (lambda value: value.get("ApplyOn") in (None, "None"), "SnapStart"),
    "SourceKMSKeyArn": (_is_empty, "Encryption with a key of your own"),
    "TenancyConfig": (_is_empty, "Tenant isolation"),
    "VpcConfig": (_has_no_network, "VPCs"),
}


def refuse_absent(params: Mapping[str, Any], name: str) -> None:
    """Raise for the first member that asks for what is not here."""
    for member, value in params.items():
        if member in MEMBERS:
            asks_for_nothing, what = MEMBERS[member]
            if not asks_for_nothing(value):
                raise absent(what, member)
    _refuse_logging(params.get("LoggingConfig", {}), name)


def _refuse_logging(logging: Mapping[str, Any], name: str) -> None:
    if logging.get("LogFormat", "Text") != "Text":
        raise absent("Logs in JSON", "LoggingConfig.LogFormat")
    for member in ("ApplicationLogLevel", "SystemLogLevel"):
        if member in logging:
            raise absent("Log levels", f"LoggingConfig.{member}")
    if logging.get("LogGroup", log_group(name)) != log_group(name):
        raise absent("A log group of another name", "LoggingConfig.LogGroup")


def log_group(name: str) -> str:
    return f"/aws/lambda/{name}"


def absent(what: str, member: str) -> NotImplementedHere:
    """The refusal of `member`, which asks for `what`."""
    return NotImplementedHere(f"Trivet does not have this yet: {what}. Leave {member} out.")
