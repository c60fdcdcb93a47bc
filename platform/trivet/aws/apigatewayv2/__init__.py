"""The API Gateway v2 API: HTTP APIs, their routes, and the functions these lead to."""

from __future__ import annotations

from collections.abc import Mapping

from trivet.aws.services import Operation

from . import apis, integrations, routes, stages

OPERATIONS: Mapping[str, Operation] = {
    **apis.OPERATIONS,
    **integrations.OPERATIONS,
    **routes.OPERATIONS,
    **stages.OPERATIONS,
}
