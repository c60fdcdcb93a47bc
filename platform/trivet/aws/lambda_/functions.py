"""Functions: create, read, change and delete them."""

from __future__ import annotations

import base64
import binascii
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import anyio.to_thread

from trivet.aws.services import Caller, Operation, Services
from trivet.core.arns import LATEST
from trivet.core.functions import Function, FunctionVersion, changed, rewritten, tagged
from trivet.errors import CallerError, Conflict, PreconditionFailed
from trivet.store.functions import STALE_REVISION

from .absent import refuse_absent
from .configuration import CREATING, IN_A_LIST, UPDATING, configuration
from .limits import check_sizes, check_tags, check_variables
from .names import Named, found, named, new_name
from .runtimes import check_runtime

MAX_PAGE = 50  # AWS gives no more at once, whatever MaxItems says
_ATTEMPTS = 8


async def create_function(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    name = new_name(services, params)
    refuse_absent(params["Code"], name)
    _check_settings(services, params, name)
    tags = params.get("Tags", {})
    check_tags(tags)
    if "Runtime" not in params or "Handler" not in params:
        raise CallerError(
            "Runtime and Handler are mandatory parameters for functions created with deployment "
            "packages."
        )
    if await services.functions.get(name) is not None:
        raise Conflict(f"Function already exist: {name}")  # before the work of unpacking
    blob = await anyio.to_thread.run_sync(services.blobs.put, _zip_of(params["Code"]))
    version = FunctionVersion(
        function=name,
        runtime=params["Runtime"],
        handler=params["Handler"],
        code_sha256=blob.sha256_hex,
        role=params["Role"],
    )
    function = Function(latest=version, code_bytes=blob.bytes, revision_id="", last_modified_ms=0)
    function = touched(_with_settings(tagged(function, tags), params))
    await services.functions.create(function)
    await services.changed(name)
    return configuration(services.place, function, state=CREATING)


async def get_function(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = named(services, params, "GetFunction")
    function = await found(services, wanted)
    answer: dict[str, Any] = {
        "Configuration": configuration(services.place, function, qualifier=wanted.qualifier),
        "Code": {
            "RepositoryType": "S3",
            "Location": services.blobs.location(function.latest.code_sha256),
        },
    }
    if function.tags:
        answer["Tags"] = dict(function.tags)
    if function.reserved_concurrency is not None:
        reserved = {"ReservedConcurrentExecutions": function.reserved_concurrency}
        answer["Concurrency"] = reserved
    return answer


async def get_function_configuration(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = named(services, params, "GetFunctionConfiguration")
    function = await found(services, wanted)
    return configuration(services.place, function, qualifier=wanted.qualifier)


async def list_functions(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    if params.get("MasterRegion"):
        return {"Functions": []}  # asks for replicas of Lambda@Edge
    count = min(params.get("MaxItems", MAX_PAGE), MAX_PAGE)
    functions = await services.functions.list(_after(params.get("Marker")), count + 1)
    page = functions[:count]
    qualifier = LATEST if params.get("FunctionVersion") == "ALL" else None
    answer: dict[str, Any] = {
        "Functions": [
            configuration(services.place, function, qualifier=qualifier, state=IN_A_LIST)
            for function in page
        ]
    }
    if len(functions) > count:
        answer["NextMarker"] = base64.urlsafe_b64encode(page[-1].name.encode()).decode()
    return answer


async def list_versions_by_function(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = named(services, params, "ListVersionsByFunction")
    function = await found(services, replace(wanted, qualifier=None))
    latest = configuration(services.place, function, qualifier=LATEST, state=IN_A_LIST)
    return {"Versions": [latest]}


async def update_function_code(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = named(services, params, "UpdateFunctionCode")
    refuse_absent(params, wanted.name)
    function = await found(services, wanted)
    _check_revision(function, params)
    is_dry = params.get("DryRun", False)
    keep = services.blobs.check if is_dry else services.blobs.put
    blob = await anyio.to_thread.run_sync(keep, _zip_of(params))

    def edit(function: Function) -> Function:
        return replace(changed(function, code_sha256=blob.sha256_hex), code_bytes=blob.bytes)

    if is_dry:
        return configuration(services.place, edit(function))
    function = await edited(services, wanted, params, edit)
    return configuration(services.place, function, state=UPDATING)


async def update_function_configuration(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = named(services, params, "UpdateFunctionConfiguration")
    await found(services, wanted)
    _check_settings(services, params, wanted.name)
    function = await edited(services, wanted, params, lambda f: _with_settings(f, params))
    return configuration(services.place, function, state=UPDATING)


async def delete_function(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    wanted = named(services, params, "DeleteFunction")
    await found(services, replace(wanted, qualifier=None))
    if wanted.qualifier == LATEST:
        raise CallerError("$LATEST version cannot be deleted without deleting the function.")
    if wanted.qualifier is None:
        await services.functions.delete(wanted.name)
        await services.urls.refresh(wanted.name)
        await services.changed(wanted.name)
    elif not wanted.qualifier.isdecimal():
        raise CallerError("Deletion of aliases is not currently supported.")
    # Deleting a published version that is not there succeeds at AWS, and here none is.
    return {"StatusCode": 204}


async def edited(
    services: Services,
    wanted: Named,
    params: Mapping[str, Any],
    edit: Callable[[Function], Function],
    mark: Callable[[Function], Function] | None = None,
) -> Function:
    """Change a function and say so; again if another change came between, unless told not to.

    `mark` gives what is changed its new revision: `touched`, if nothing else is asked for.
    """
    for _ in range(_ATTEMPTS):
        before = await found(services, wanted)
        _check_revision(before, params)
        after = (mark or touched)(edit(before))
        try:
            await services.functions.replace(after, before.revision_id)
        except PreconditionFailed:
            continue
        await services.changed(wanted.name)
        return after
    raise Conflict(
        "The operation cannot be performed at this time. An update is in progress for resource: "
        f"{wanted.arn}"
    )


def touched(function: Function) -> Function:
    """As it is after any change, also one that changes nothing."""
    return replace(revised(function), last_modified_ms=time.time_ns() // 1_000_000)


def revised(function: Function) -> Function:
    """As it is after a change of what belongs to it, but is not its code or configuration."""
    return replace(function, revision_id=str(uuid.uuid4()))


def unrevised(function: Function) -> Function:
    """As it is after a change that AWS gives no revision: of what is kept beside the function."""
    return rewritten(function, str(uuid.uuid4()))


def _check_settings(services: Services, params: Mapping[str, Any], name: str) -> None:
    refuse_absent(params, name)
    check_sizes(params)
    check_variables(params.get("Environment", {}).get("Variables", {}))
    if "Runtime" in params:
        check_runtime(params["Runtime"], services.runtimes)


def _with_settings(function: Function, params: Mapping[str, Any]) -> Function:
    """`function` with the settings that `params` name; the others stay."""
    members = {
        "Runtime": "runtime",
        "Handler": "handler",
        "Role": "role",
        "MemorySize": "memory_mb",
    }
    settings = {field: params[name] for name, field in members.items() if name in params}
    if "Timeout" in params:
        settings["timeout_ms"] = params["Timeout"] * 1000
    if "EphemeralStorage" in params:
        settings["ephemeral_mb"] = params["EphemeralStorage"]["Size"]
    if "Environment" in params:
        settings["environment"] = params["Environment"].get("Variables", {})
    echoed = dict(function.echoed)
    if "TracingConfig" in params:
        echoed["TracingConfig"] = {"Mode": params["TracingConfig"].get("Mode", "PassThrough")}
    if "VpcConfig" in params:
        echoed["VpcConfig"] = {"SubnetIds": [], "SecurityGroupIds": [], "VpcId": ""}
    function = replace(changed(function, **settings), echoed=echoed)
    return replace(function, description=params.get("Description", function.description))


def _check_revision(function: Function, params: Mapping[str, Any]) -> None:
    if params.get("RevisionId", function.revision) != function.revision:
        raise PreconditionFailed(STALE_REVISION)


def _zip_of(code: Mapping[str, Any]) -> bytes:
    if "ZipFile" not in code:
        raise CallerError("Please provide a source for function code.")
    data: bytes = code["ZipFile"]
    return data


def _after(marker: str | None) -> str | None:
    """The name after which a page begins."""
    if not marker:
        return None
    try:
        return base64.urlsafe_b64decode(marker).decode()
    except (binascii.Error, ValueError):
        raise CallerError("The Marker is not one that this operation gave.") from None


OPERATIONS: Mapping[str, Operation] = {
    "CreateFunction": create_function,
    "DeleteFunction": delete_function,
    "GetFunction": get_function,
    "GetFunctionConfiguration": get_function_configuration,
    "ListFunctions": list_functions,
    "ListVersionsByFunction": list_versions_by_function,
    "UpdateFunctionCode": update_function_code,
    "UpdateFunctionConfiguration": update_function_configuration,
}
