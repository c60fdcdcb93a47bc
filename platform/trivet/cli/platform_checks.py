"""Platform checks: its lock, its folder, its ports, and whether what it keeps can be lost."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from urllib.parse import quote

from trivet.cli.checks import Finding, ok, problem, warning
from trivet.cli.running import Running, find_running, is_locked
from trivet.cli.screen import command
from trivet.errors import TrivetError
from trivet.settings import Settings

_ANSWER_WITHIN_S = 5.0


def lock(settings: Settings) -> Iterator[Finding]:
    try:
        running = find_running(settings)
        is_held = running is not None or is_locked(settings)
    except TrivetError as error:
        yield problem("platform", error.message, error.hint)
        return
    if running is not None:
        yield ok("platform", f"runs on {settings.data}, pid {running.pid}")
    elif is_held:
        text = f"starts, or ends, or left a part behind that holds {settings.run_path / 'lock'}"
        yield warning("platform", text, f"{command()} down")
    else:
        yield warning("platform", f"none on {settings.data}", f"{command()} up --detach")


def folder(settings: Settings) -> Iterator[Finding]:
    place = settings.data_path
    fix = "export TRIVET_DATA=/a/folder/of/yours"
    if not place.exists():
        above = next(parent for parent in place.parents if parent.exists())
        if os.access(above, os.W_OK | os.X_OK):
            yield ok("data", f"{place} will be made")
        else:
            yield problem("data", f"{place} cannot be made: {above} cannot be written", fix)
    elif not place.is_dir():
        yield problem("data", f"{place} is not a folder", fix)
    elif os.access(place, os.W_OK | os.X_OK):
        yield ok("data", str(place))
    else:
        owner = place.stat().st_uid
        yield warning("data", f"{place} belongs to uid {owner}", f"sudo -u '#{owner}' {command()}")


def ports(settings: Settings) -> Iterator[Finding]:
    try:
        running = find_running(settings)
    except TrivetError:
        return  # the lock's line says it
    if running is not None:
        yield from _answers(running)
        return
    for name in ("aws_port", "http_port"):
        port = getattr(settings, name)
        reason = _why_taken(settings.host, port)
        if reason is None:
            where = f"{settings.host}:{port}" if port else "any free one"
            yield ok("port", f"{name.removesuffix('_port')} {where}")
        else:
            fix = f"TRIVET_{name.upper()}=0 {command()} up --detach"
            yield problem("port", f"{settings.host}:{port}: {reason}", fix)


def _why_taken(host: str, port: int) -> str | None:
    """Why a listener of ours could not have this port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "another program listens there"
            return error.strerror or str(error)
    return None


def _answers(running: Running) -> Iterator[Finding]:
    again = f"{command()} down; {command()} up --detach"
    # No proxy is asked for what is here.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"{running.aws_url}/health", timeout=_ANSWER_WITHIN_S).close()
    except (OSError, ValueError) as error:  # an answer that is no 200 is an OSError too
        reason = getattr(error, "reason", error)
        yield problem("port", f"{running.aws_url} does not answer: {reason}", again)
    else:
        yield ok("port", f"aws {running.aws_url} answers")
        yield ok("port", f"http {running.http_url}")


def durability(settings: Settings) -> Iterator[Finding]:
    """Whether what the durable server has answered is still there after a crash."""
    try:
        is_up = find_running(settings) is not None
    except TrivetError:
        is_up = False
    if not is_up and not settings.durable_url:
        yield ok("durable", "appendfsync always, from the start on")
        return
    url = settings.durable_url or f"unix://{quote(settings.durable_socket)}"
    try:
        told = asyncio.run(_policy_of(url))
    except PermissionError:
        text = "the durable server can be asked by the platform's owner only"
        yield warning("durable", text, f"sudo {command()} doctor --data {settings.data}")
        return
    except Exception as error:
        text = f"the durable server does not answer: {error or type(error).__name__}"
        yield problem("durable", text, f"{command()} down; {command()} up --detach")
        return
    yield from _judged(told)


def _judged(told: Mapping[str, str]) -> Iterator[Finding]:
    from trivet.gateway.durability import POLICY  # with the client library that it needs

    wrong = {name: good for name, good in POLICY.items() if told.get(name) != good}
    for name, good in wrong.items():
        text = f"{name} is {told.get(name, 'unknown')}: accepted work could be lost"
        yield problem("durable", text, f"valkey-cli CONFIG SET {name} {good}")
    if not wrong:
        yield ok("durable", ", ".join(f"{name} {value}" for name, value in POLICY.items()))


async def _policy_of(url: str) -> Mapping[str, str]:
    from trivet.bus.resp import connect, parse_address
    from trivet.gateway.durability import POLICY

    async with asyncio.timeout(_ANSWER_WITHIN_S):
        connection = await connect(parse_address(url))
        try:
            reply = await connection.call("CONFIG", "GET", *POLICY)
        finally:
            connection.close()
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): value.decode() for name, value in pairs}


OF_THE_PLATFORM = (folder, lock, ports, durability)
