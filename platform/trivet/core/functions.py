"""Functions: what a user deployed, and the immutable version of it that runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from trivet.core.lineage import TERMINATE

OWN_TAGS = "trivet:"
"""How the keys of tags begin that mean something to the platform."""

EGRESS_TAG = f"{OWN_TAGS}egress"
"""The tag that says what a function may reach, in the words of `core/egress.py`."""

_BESIDE = "/"  # in a revision, after what callers see of it


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionVersion:
    """Immutable: everything that decides how an invocation runs. Environments belong to one."""

    function: str
    version: str = "$LATEST"
    runtime: str
    handler: str
    code_sha256: str  # hex digest of the uploaded zip
    memory_mb: int = 128
    timeout_ms: int = 3_000
    ephemeral_mb: int = 512
    environment: Mapping[str, str] = field(default_factory=dict)
    role: str = ""
    egress: str = ""  # as the tag `EGRESS_TAG` says it; empty: as much as the platform allows
    # Digest that names this version: two that run alike share it, two that differ do not. Kept,
    # since every invocation asks for it.
    key: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        text = json.dumps(version_to_record(self), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        object.__setattr__(self, "key", digest)  # once, before anyone has seen the value


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A name with its settings, and the version that `$LATEST` stands for now."""

    latest: FunctionVersion
    code_bytes: int
    description: str = ""
    revision_id: str  # of the record: no two that a function ever had share one
    last_modified_ms: int  # since the Unix epoch
    tags: Mapping[str, str] = field(default_factory=dict)
    # The resource policy: statements, as AWS writes them, by their ids. It is part of the record
    # because it shares the function's revision.
    policy: Mapping[str, Any] = field(default_factory=dict)
    # Members of the API that are stored and echoed, and decide nothing yet (Architectures, ...).
    echoed: Mapping[str, Any] = field(default_factory=dict)
    # What becomes of asynchronous events: {} for AWS's defaults, or some of "retries" (0 to 2),
    # "age_s", "on_success" and "on_failure" (ARNs), and "modified_ms" (since the Unix epoch).
    event_invoke: Mapping[str, Any] = field(default_factory=dict)
    reserved_concurrency: int | None = None  # invocations at once, if it has a limit of its own
    recursive_loop: str = TERMINATE  # or ALLOW

    @property
    def name(self) -> str:
        return self.latest.function

    @property
    def revision(self) -> str:
        """The revision that callers see: of its code, configuration, tags and policy."""
        return self.revision_id.partition(_BESIDE)[0]


def function_to_record(function: Function) -> dict[str, Any]:
    """Plain values for msgpack; the inverse of `function_from_record`."""
    return {**_members(function), "latest": version_to_record(function.latest)}


def function_from_record(record: Mapping[str, Any]) -> Function:
    return Function(**{**record, "latest": version_from_record(record["latest"])})


def version_to_record(version: FunctionVersion) -> dict[str, Any]:
    """Plain values for msgpack; the inverse of `version_from_record`."""
    return _members(version)


def version_from_record(record: Mapping[str, Any]) -> FunctionVersion:
    return FunctionVersion(**record)


def _members(value: Function | FunctionVersion) -> dict[str, Any]:
    """The members that make the value, which are those its constructor takes."""
    members = {each.name: getattr(value, each.name) for each in fields(value) if each.init}
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in members.items()}


def changed(function: Function, **version: Any) -> Function:
    """`function` with its `$LATEST` changed in the named fields."""
    return replace(function, latest=replace(function.latest, **version))


def rewritten(function: Function, record: str) -> Function:
    """`function` in a new record under the revision that callers know.

    `record` names this record, and no other that the function ever had.
    """
    return replace(function, revision_id=f"{function.revision}{_BESIDE}{record}")


def tagged(function: Function, tags: Mapping[str, str]) -> Function:
    """`function` with `tags` and no others, and its `$LATEST` as they ask for it."""
    return replace(changed(function, egress=tags.get(EGRESS_TAG, "")), tags=tags)
