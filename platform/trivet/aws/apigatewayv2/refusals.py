"""Refusals: what API Gateway answers, in its words."""

from __future__ import annotations

from trivet.aws.refusals import Refused
from trivet.core.arns import Place


def bad_request(message: str) -> Refused:
    return Refused("BadRequestException", message)


def conflict(message: str) -> Refused:
    return Refused("ConflictException", message, status=409)


def not_found(message: str) -> Refused:
    return Refused("NotFoundException", message, status=404)


def no_api(place: Place, api_id: str) -> Refused:
    return not_found(f"Invalid API identifier specified {place.account}:{api_id}")


def no_integration(integration_id: str) -> Refused:
    return not_found(f"Invalid Integration identifier specified {integration_id}")


def no_route(route_id: str) -> Refused:
    return not_found(f"Invalid Route identifier specified {route_id}")


def no_stage() -> Refused:
    return not_found("Invalid stage identifier specified")
