"""Failpoints: faults at chosen steps, for tests of crashes. Without any, nothing of this runs.

A step is one command to a server of the lanes, named by its script ("commit") or by its verb and
what its key holds ("sadd.backlog"). A point names a step and what goes wrong there:

    commit=kill-after@3 wake=delay:0.2      the third commit of a process, the first wake

Each strikes once, over all restarts. What goes through redis-py is no step.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import os
import re
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakKeyDictionary, WeakSet

import hiredis

from trivet.bus import keys, resp
from trivet.bus.resp import Connection, OnReply, pack

MODES = {
    "kill-before": "the process is killed before it sends the command",
    "kill-after": "the process is killed when the server has answered, before it acts on that",
    "duplicate": "the command is sent twice, and the second answer counts",
    "delay": "the answer, and with it all later ones of the connection, is acted on late",
    "error": "the command is not sent: its connection is lost",
}
"""What may go wrong at a step."""

CHANGES = frozenset({"del", "expire", "set", "sadd", "srem", "zadd", "zrem"}) | {
    *("xack", "xadd", "xclaim", "xdel", "xgroup", "xreadgroup", "xtrim"),
}
"""Verbs that leave something behind on the server."""

LOOKS = frozenset({"exists", "get", "hgetall", "mget", "smembers", "zrange"}) | {
    *("xlen", "xpending", "xrange", "xread", "xrevrange"),
}
OF_CONNECTIONS = frozenset({"auth", "client", "ping", "script", "select"})

EXIT_CONFIG = 78  # sysexits: the launcher does not start the service again

_POINT = re.compile(
    r"(?P<step>[\w.-]+)=(?P<mode>[\w-]+)(?::(?P<seconds>[\d.]+))?(?:@(?P<hit>\d+))?"
)


@dataclass(frozen=True, slots=True)
class Point:
    """One fault to come."""

    step: str
    mode: str
    seconds: float = 0.0  # how long a delay is
    hit: int = 1  # which of the process's passes through the step it strikes

    @property
    def marker(self) -> str:
        """Name of the file that says that it struck."""
        return f"failpoint.{self.step}.{self.mode}.{self.hit}"


def parse(text: str) -> tuple[Point, ...]:
    """The points in `text`. Raises ValueError in words."""
    points = []
    for word in text.split():
        match = _POINT.fullmatch(word)
        if match is None:
            raise ValueError(f"failpoints: '{word}' is not of the form STEP=MODE[:SECONDS][@HIT]")
        mode, seconds = match["mode"], match["seconds"]
        _check_step(match["step"])
        if mode not in MODES:
            raise ValueError(f"failpoints: there is no mode '{mode}', only {', '.join(MODES)}")
        if (mode == "delay") != (seconds is not None):
            raise ValueError(f"failpoints: '{word}': a delay, and nothing else, has seconds")
        hit = int(match["hit"] or 1)
        if hit < 1:
            raise ValueError(f"failpoints: '{word}': the first pass is number 1")
        points.append(Point(match["step"], mode, float(seconds or 0), hit))
    return tuple(points)


def _check_step(step: str) -> None:
    if step in _scripts().values():
        return
    verb, _, kind = step.partition(".")
    if verb not in CHANGES | LOOKS | OF_CONNECTIONS:
        raise ValueError(
            f"failpoints: there is no step '{step}': no script or command of that name"
        )
    if (verb in OF_CONNECTIONS) != (kind == "") or kind not in {"", *_kinds()}:
        raise ValueError(f"failpoints: there is no step '{step}': no key holds that")


def arm(text: str, folder: Path) -> None:
    """Let the points in `text` strike in this process; `folder` remembers which did.

    Ends the process, in words, when it cannot: a fault that silently never comes proves nothing.
    """
    if not text:
        return
    try:
        points = parse(text)
        if not os.access(folder, os.W_OK):
            raise ValueError(f"failpoints: {folder} cannot be written by uid {os.geteuid()}")
    except ValueError as error:
        print(f"trivet: {error}", file=sys.stderr)
        raise SystemExit(EXIT_CONFIG) from None
    resp.intercept = Failpoints(points, folder)


def step_of(command: list[bytes]) -> str:
    """The name of a command's step."""
    verb = command[0].decode().lower()
    if verb == "evalsha":
        return _scripts().get(command[1], verb)
    if verb in OF_CONNECTIONS:
        return verb
    if verb == "xgroup":
        key = command[2]
    elif b"STREAMS" in command:
        key = command[command.index(b"STREAMS") + 1]
    else:
        key = command[1]
    return f"{verb}.{_kind(key.decode(errors='replace'))}"


def _kind(key: str) -> str:
    """What a key holds: the first part of it that is nobody's name."""
    match = re.match(r"(?:[a-z]*:?\{[^}]*\}:)?([a-z-]+)", key.removeprefix(keys.PREFIX))
    return match[1] if match else "unknown"


@cache
def _scripts() -> dict[bytes, str]:
    """Name of each script by its digest."""
    found = {}
    for file in (files(__package__) / "lua").iterdir():
        digest = hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
        found[digest.encode()] = file.name.removesuffix(".lua")
    return found


@cache
def _kinds() -> frozenset[str]:
    """Of all keys that there are."""
    found = [value for value in vars(keys).values() if isinstance(value, str)]
    for member in vars(keys).values():
        if inspect.isfunction(member) and member.__annotations__.get("return") == "str":
            names = [name for name in member.__annotations__ if name != "return"]
            found.append(member(*("1" for _ in names)))
    return frozenset(
        _kind(key) for key in found if key.startswith(keys.PREFIX) and key != keys.PREFIX
    )


class Failpoints:
    """Stands between this process's connections and their servers. Is a `resp.Intercept`."""

    def __init__(
        self,
        points: tuple[Point, ...],
        folder: Path,
        passed: Callable[[str], None] = lambda step: None,
    ) -> None:
        """`passed(step)` hears of every step, before it is taken."""
        self._points = points
        self._folder = folder
        self._passed = passed
        self._passes: Counter[str] = Counter()
        self._is_own = False  # what is sent now was looked at before
        self.is_dying = False  # about to be killed: nothing is sent any more
        self._severed: WeakSet[Connection] = WeakSet()
        # Answers that are held back, in order; a connection has none of them otherwise.
        self._held: WeakKeyDictionary[Connection, deque[tuple[OnReply, Any]]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<Failpoints {len(self._points)} armed, {self._passes.total()} steps>"

    def __call__(self, connection: Connection, commands: bytes, on_replies: list[OnReply]) -> bool:
        if self._is_own or not connection.is_open:
            return False
        for command, on_reply in zip(_apart(commands), on_replies, strict=True):
            if not self.is_dying:
                self._take(connection, command, on_reply)
        return True

    def _take(self, connection: Connection, command: list[bytes], on_reply: OnReply) -> None:
        step = step_of(command)
        self._passed(step)
        self._passes[step] += 1
        packed, in_turn = pack(tuple(command)), self._in_turn(connection, on_reply)
        point = self._strikes(step)
        match point.mode if point else None:
            case "kill-before":
                self.is_dying = True
                # What was sent before is written in the next turn of the loop, and is gone by the
                # one after it.
                _in_two_turns(_die)
            case "kill-after":
                self._send(connection, packed, lambda _: _die())
            case "duplicate":
                self._send(connection, packed, lambda _: None)
                self._send(connection, packed, in_turn)
            case "delay":
                assert point is not None  # it has a mode
                self._send(connection, packed, self._late(connection, on_reply, point.seconds))
            case "error":
                self._send(connection, b"", in_turn)
                self._severed.add(connection)
                # Behind what was sent before, which leaves with this turn of the loop.
                asyncio.get_running_loop().call_soon(connection.close)
            case _:
                self._send(connection, packed, in_turn)

    def _strikes(self, step: str) -> Point | None:
        for point in self._points:
            if point.step == step and point.hit == self._passes[step] and self._is_first(point):
                return point
        return None

    def _is_first(self, point: Point) -> bool:
        try:
            os.close(os.open(self._folder / point.marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True

    def _send(self, connection: Connection, command: bytes, on_reply: OnReply) -> None:
        self._is_own = True
        try:
            connection.send(b"" if connection in self._severed else command, on_reply)
        finally:
            self._is_own = False

    def _in_turn(self, connection: Connection, on_reply: OnReply) -> OnReply:
        """`on_reply`, behind the answers of the connection that are held back."""

        def answered(reply: Any) -> None:
            held = self._held.get(connection)
            if held is None:
                on_reply(reply)
            else:
                held.append((on_reply, reply))

        return answered

    def _late(self, connection: Connection, on_reply: OnReply, seconds: float) -> OnReply:
        def let_go() -> None:
            for then, reply in self._held.pop(connection):
                then(reply)

        def answered(reply: Any) -> None:
            self._held[connection] = deque([(on_reply, reply)])
            asyncio.get_running_loop().call_later(seconds, let_go)

        return answered


def _apart(commands: bytes) -> list[list[bytes]]:
    """Packed commands, unpacked. A command has the form of a reply."""
    reader = hiredis.Reader()
    reader.feed(commands)
    found = []
    while (command := reader.gets()) is not False:
        found.append(command)
    return found


def _in_two_turns(then: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.call_soon, then)


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit  # what is killed gets no further
