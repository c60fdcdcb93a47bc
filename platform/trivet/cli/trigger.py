"""trivet trigger: what runs which function.

HTTP triggers are routes of AWS's HTTP APIs, made short; the others are in `sources`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from trivet.cli import sources
from trivet.cli.door import Door, named
from trivet.cli.options import Data, Json, Quiet
from trivet.cli.running import Running, require_running
from trivet.cli.screen import aligned, command, harmless, say
from trivet.core.arns import Place, parse_function_ref
from trivet.errors import CallerError, Conflict
from trivet.settings import Settings, read_settings

app = typer.Typer(help="What runs functions: HTTP, files, schedules.", no_args_is_help=True)

app.command()(sources.files)
app.command()(sources.schedule)

# What the triggers that are not HTTP may be called.
_NAME = re.compile(r"[.\-_A-Za-z0-9]{1,64}", re.ASCII)

# The API that every platform has, whose routes are served at the root of TRIVET_HTTP_URL.
DEFAULT_API = "default"


class PayloadFormat(StrEnum):
    """How an HTTP request is told to a function."""

    V1 = "1.0"
    V2 = "2.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A route, and the integration behind it."""

    route_key: str
    function: str
    payload_format: str
    url: str
    api_id: str
    route_id: str
    integration_id: str


@app.command()
def http(
    function: Annotated[str, typer.Argument(help="Name or ARN.")],
    path: Annotated[str, typer.Argument(help="/hello, /users/{id}, /files/{path+} or $default")],
    method: Annotated[str, typer.Option(help="GET, POST, ...; ANY: all of them.")] = "ANY",
    payload: Annotated[
        PayloadFormat, typer.Option(help="Form of the event that the function gets.")
    ] = PayloadFormat.V1,
    data: Data = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Let HTTP requests to PATH run FUNCTION, and print the URL."""
    settings, running = _platform(data)
    route_key = path if path == "$default" else f"{method.upper()} /{path.lstrip('/')}"
    door = Door(settings, running)
    with door.answers():
        door.require_function(function)
        trigger = ensure_http(door, running, _arn(function, running), route_key, payload)
    if as_json:
        print(json.dumps(asdict(trigger)))
    elif not quiet:
        print(f"http  {trigger.url}  ->  {trigger.function}")


@app.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List the triggers."""
    settings, running = _platform(data)
    door = Door(settings, running)
    with door.answers():
        triggers = list(_triggers(door.client("apigatewayv2"), running))
        others = list(sources.sources(door))
    if as_json:
        routes = [{"type": "http", **asdict(trigger)} for trigger in triggers]
        print(json.dumps([*routes, *(asdict(other) for other in others)]))
        return
    if not triggers and not others:
        say("  there are no triggers")
    rows = [("http", t.route_key, t.url, t.function, t.payload_format) for t in triggers]
    for row in aligned([*rows, *(other.row for other in others)]):
        print(row)


@app.command()
def rm(
    route_key: Annotated[
        str, typer.Argument(metavar="TRIGGER", help="'ANY /hello', or /hello, or a name")
    ],
    api_id: Annotated[
        str, typer.Option("--api", help="The API that it is a route of.")
    ] = "default",
    data: Data = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Remove a trigger. The function stays."""
    settings, running = _platform(data)
    key = f"ANY {route_key}" if route_key.startswith("/") else route_key
    door = Door(settings, running)
    with door.answers():
        api = door.client("apigatewayv2")
        triggers = [t for t in _triggers(api, running) if t.api_id == api_id]
        found = next((t for t in triggers if t.route_key == key), None)
        if found is not None:
            _remove(api, found, triggers)
        elif not _NAME.fullmatch(key) or not sources.remove(door, key):
            raise CallerError(f"there is no trigger '{key}'", hint=f"{command()} trigger list")
    if as_json:
        print(json.dumps({"removed": key}))
    elif not quiet:
        say(f"  ✓ removed '{harmless(key)}'")


def ensure_http(
    door: Door,
    running: Running,
    arn: str,
    route_key: str,
    payload: PayloadFormat = PayloadFormat.V1,
) -> Trigger:
    """The trigger at a route, made if it is not there. Raises Conflict if it is another's."""
    api = door.client("apigatewayv2")
    present = next((t for t in _triggers(api, running) if _is_at(t, route_key)), None)
    if present is None:
        return _create(api, running, route_key, arn, payload.value)
    if (present.function, present.payload_format) == (_name(arn), payload.value):
        return present
    how = f"{present.function}, payload {present.payload_format}"
    message = f"'{route_key}' is there already ({how})"
    raise Conflict(message, hint=f"{command()} trigger rm '{route_key}'")


def remove_all(door: Door, running: Running, function: str) -> list[str]:
    """Remove the default API's routes to a function; the keys of those that there were."""
    api = door.client("apigatewayv2")
    present = [t for t in _triggers(api, running) if t.api_id == DEFAULT_API]
    doomed = [t for t in present if t.function.partition(":")[0] == function]
    for found in doomed:
        _remove(api, found, present)
        present.remove(found)
    return [found.route_key for found in doomed]


def _remove(api: Any, found: Trigger, present: Sequence[Trigger]) -> None:
    """Remove a route of the API that has `present`, and what it alone leads to."""
    api.delete_route(ApiId=found.api_id, RouteId=found.route_id)
    if sum(t.integration_id == found.integration_id for t in present) == 1:
        api.delete_integration(ApiId=found.api_id, IntegrationId=found.integration_id)


def _platform(data: str | None) -> tuple[Settings, Running]:
    settings = read_settings(flags={"data": data})
    return settings, require_running(settings)


def _arn(function: str, running: Running) -> str:
    ref = named(function)
    if function.startswith("arn:"):
        return function
    return Place(running.region, running.account).function_arn(ref.name, ref.qualifier)


def _create(api: Any, running: Running, route_key: str, arn: str, payload: str) -> Trigger:
    integration = api.create_integration(
        ApiId=DEFAULT_API,
        IntegrationType="AWS_PROXY",
        IntegrationUri=arn,
        PayloadFormatVersion=payload,
    )
    try:
        target = f"integrations/{integration['IntegrationId']}"
        route = api.create_route(ApiId=DEFAULT_API, RouteKey=route_key, Target=target)
    except Exception:
        api.delete_integration(ApiId=DEFAULT_API, IntegrationId=integration["IntegrationId"])
        raise
    return _trigger(running.http_url, DEFAULT_API, route, integration)


def _triggers(api: Any, running: Running) -> Iterator[Trigger]:
    for each in _pages(api.get_apis):
        api_id = each["ApiId"]
        root = running.http_url if api_id == DEFAULT_API else each.get("ApiEndpoint", "")
        integrations = {
            integration["IntegrationId"]: integration
            for integration in _pages(api.get_integrations, ApiId=api_id)
        }
        for route in _pages(api.get_routes, ApiId=api_id):
            integration_id = route.get("Target", "").removeprefix("integrations/")
            if integration_id in integrations:
                yield _trigger(root, api_id, route, integrations[integration_id])


def _pages(operation: Any, **arguments: str) -> Iterator[Any]:
    while True:
        page = operation(**arguments)
        yield from page["Items"]
        if not page.get("NextToken"):
            return
        arguments["NextToken"] = page["NextToken"]


def _trigger(root: str, api_id: str, route: Any, integration: Any) -> Trigger:
    route_key = route["RouteKey"]
    path = "/" if route_key == "$default" else route_key.partition(" ")[2]
    return Trigger(
        route_key=route_key,
        function=_name(integration.get("IntegrationUri", "")),
        payload_format=integration.get("PayloadFormatVersion", ""),
        url=root.rstrip("/") + path,
        api_id=api_id,
        route_id=route["RouteId"],
        integration_id=integration["IntegrationId"],
    )


def _name(arn: str) -> str:
    """The function that an integration's URI names, with its qualifier."""
    ref = parse_function_ref(arn)
    if ref is None:
        return arn
    return ref.name if ref.qualifier is None else f"{ref.name}:{ref.qualifier}"


def _is_at(trigger: Trigger, route_key: str) -> bool:
    return trigger.api_id == DEFAULT_API and trigger.route_key == route_key
