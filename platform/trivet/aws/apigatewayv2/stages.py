"""Stages: what makes an API reachable. There is one, `$default`, and it deploys by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trivet.aws.services import Caller, Operation, Services
from trivet.core.routes import DEFAULT
from trivet.store.apis import DEFAULT_API, Api, Stage

from .absent import absent, refuse_absent
from .refusals import bad_request, conflict, no_stage
from .targets import changed, existing, instant_ms, page


async def create_stage(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    existing(services, params)
    refuse_absent(params)
    if params["StageName"] != DEFAULT:
        raise absent(f"A stage of another name than {DEFAULT}")
    if not params.get("AutoDeploy"):
        raise absent("A stage without AutoDeploy")
    now_ms = instant_ms()
    stage = Stage(
        created_ms=now_ms,
        updated_ms=now_ms,
        description=params.get("Description", ""),
        tags=params.get("Tags", {}),
    )

    def edit(api: Api) -> Api:
        if api.stage is not None:
            raise conflict("Stage already exists")
        return replace(api, stage=stage)

    await changed(services, params, edit)
    return _stage(stage)


async def get_stage(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    stage = existing(services, params).stage
    if stage is None or params["StageName"] != DEFAULT:
        raise no_stage()
    return _stage(stage)


async def get_stages(services: Services, params: dict[str, Any], caller: Caller) -> dict[str, Any]:
    stage = existing(services, params).stage
    return page([_stage(stage)] if stage is not None else [], params)


async def delete_stage(
    services: Services, params: dict[str, Any], caller: Caller
) -> dict[str, Any]:
    if params["ApiId"] == DEFAULT_API:
        raise bad_request("The default API belongs to the platform. Delete its routes instead.")

    def edit(api: Api) -> Api:
        if api.stage is None or params["StageName"] != DEFAULT:
            raise no_stage()
        return replace(api, stage=None)

    await changed(services, params, edit)
    return {}


def _stage(stage: Stage) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "AutoDeploy": True,
        "CreatedDate": stage.created_ms // 1000,
        "DefaultRouteSettings": {"DetailedMetricsEnabled": False},
        "LastUpdatedDate": stage.updated_ms // 1000,
        "RouteSettings": {},
        "StageName": DEFAULT,
        "StageVariables": {},
        "Tags": dict(stage.tags),
    }
    if stage.description:
        answer["Description"] = stage.description
    if stage.is_managed:
        answer["ApiGatewayManaged"] = True
    return answer


OPERATIONS: Mapping[str, Operation] = {
    "CreateStage": create_stage,
    "DeleteStage": delete_stage,
    "GetStage": get_stage,
    "GetStages": get_stages,
}
