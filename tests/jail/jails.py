"""Jails: zygotes with layers left out, the neighbours inside them, and what an attack is."""

from __future__ import annotations

import compileall
import contextlib
import ctypes
import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.workers import driver
from tests.workers.driver import Environment, Zygote

from trivet_worker import wire
from trivet_worker.wire import (
    ISOLATION_CGROUP,
    ISOLATION_LANDLOCK,
    ISOLATION_MOUNT,
    ISOLATION_NETWORK,
    ISOLATION_PID,
    ISOLATION_SECCOMP,
    ISOLATION_UID,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

HANDLERS = Path(__file__).parent / "handlers"
SECRET = "hunter2"
TMP_MB = 64  # of an environment for which it does not matter

# Nobody else on this machine starts environments under these uids while this process lives.
FIRST_UID = 1_000_000 + os.getpid() % 100_000 * 1_000
_MOST_UIDS = 1_000
_uids = itertools.count()

LAYERS = {
    "pid": ISOLATION_PID,
    "mount": ISOLATION_MOUNT,
    "uid": ISOLATION_UID,
    "network": ISOLATION_NETWORK,
    "seccomp": ISOLATION_SECCOMP,
    "landlock": ISOLATION_LANDLOCK,
    "cgroup": ISOLATION_CGROUP,
}

_libc = ctypes.CDLL(None, use_errno=True)
_librt = ctypes.CDLL("librt.so.1", use_errno=True)
_IPC_CREAT, _IPC_EXCL, _IPC_RMID = 0o1000, 0o2000, 0


def fresh_uid() -> int:
    return FIRST_UID + next(_uids) % _MOST_UIDS


def is_ours(uid: int) -> bool:
    return FIRST_UID <= uid < FIRST_UID + _MOST_UIDS


@dataclass(frozen=True)
class Spec:
    """Which zygote: its runtime, its user, and the ISOLATION_* bits it has to do without."""

    kind: str = "python"
    as_user: bool = False
    without: int = 0

    def __str__(self) -> str:
        missing = [name for name, bit in LAYERS.items() if self.without & bit]
        user = ["user"] if self.as_user else ["root"]
        return "-".join([self.kind, *user, *(f"no_{name}" for name in missing)])


@dataclass(frozen=True)
class Host:
    """What is on the host for anybody to take who gets there. Paths, names, a port."""

    folder: Path  # anybody may write here
    secret: Path  # readable by all
    socket: Path
    port: int  # a listener on 127.0.0.1
    abstract: str
    shared_memory: int  # a System V key
    queue: str
    tool: Path  # a program of root's that has the set-user-id bit


@dataclass(frozen=True)
class World:
    """All that an attack may be told: the host, and the neighbours under the same zygote."""

    host: Host
    victim: int  # pid of a neighbour with the attacker's uid
    stranger: int  # pid of a neighbour with its own
    folder: str  # where the victim keeps its secret
    port: int  # where it listens on 127.0.0.1
    abstract: str
    task_root: str
    strangers_uid: int


Given = Callable[[World], Mapping[str, Any]]


@dataclass(frozen=True)
class Attack:
    """One attempt, the layer that must stop it, and the others that stop it as well."""

    name: str
    module: str
    function: str
    layer: int
    also: int = 0
    given: Given = field(default=lambda world: {})
    kind: str = "python"

    def __str__(self) -> str:
        return self.name


@dataclass
class Jail:
    """A zygote with its neighbours, and the code that all environments of it run."""

    zygote: Zygote
    code: Path
    world: World
    uid: int
    victim: Environment

    def spawn(self, uid: int, handler: str = "index.handler", **given: Any) -> Environment:
        return spawn(self.zygote, self.code, uid, handler, **given)

    def attempt(self, attack: Attack, *, uid: int = 0, **given: Any) -> dict[str, Any]:
        """What came of it: escaped, errno, message. The attacker is gone afterwards."""
        order = {
            "module": attack.module,
            "attack": attack.function,
            "arguments": attack.given(self.world),
        }
        answer: dict[str, Any] = self._run(order, "index.handler", uid, **given)
        return answer

    def call(self, module: str, function: str, **arguments: Any) -> Any:
        """What a harmless function answers."""
        order = {"module": module, "attack": function, "arguments": arguments}
        return self._run(order, "index.call")

    def _run(self, order: Mapping[str, Any], handler: str, uid: int = 0, **given: Any) -> Any:
        environment = self.spawn(uid or self.uid, handler, **given)
        try:
            answer = environment.invoke(order, remaining_ms=30_000)
            assert answer.kind == wire.RESULT, answer.body.decode() + environment.log()
            return answer.json
        finally:
            end(environment)


def needs_uid(zygote: Zygote) -> bool:
    return bool(zygote.bits & ISOLATION_UID)


def task_root(zygote: Zygote, code: Path) -> str:
    return "/var/task" if zygote.bits & ISOLATION_MOUNT else str(code)


def spawn(
    zygote: Zygote,
    code: Path,
    uid: int,
    handler: str = "index.handler",
    *,
    tmp_mb: int = TMP_MB,
    joins_cgroup: bool = False,
) -> Environment:
    """An initialised environment with this uid, if the zygote has uids to give."""
    is_cell = zygote.kind == "node"
    environment = zygote.spawn(
        None if is_cell else code,
        uid=uid if needs_uid(zygote) else 0,
        tmp_mb=tmp_mb,
        joins_cgroup=joins_cgroup,
    )
    if is_cell:
        zygote.fill(environment, code)
    answer = environment.init(handler, task_root=task_root(zygote, code))
    assert answer.kind == wire.INITIALISED, answer.body.decode() + environment.log()
    return environment


def end(environment: Environment) -> None:
    """Killed, reaped, forgotten: nothing of it is left with us."""
    if driver.has_ended(environment.pidfd, within_s=0):
        environment.exit_status()
    else:
        environment.kill()
    environment.close()
    environment.zygote.environments.remove(environment)


@contextlib.contextmanager
def on_the_host() -> Iterator[Host]:
    """Targets that are there for everybody on this machine."""
    folder = Path(tempfile.mkdtemp(prefix="host-"))
    folder.chmod(0o1777)
    secret = folder / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o644)
    tool = folder / "id"
    shutil.copy("/usr/bin/id", tool)
    tool.chmod(0o4755)
    name = f"trivet-jail-{os.getpid()}"
    key = 0x7472_0000 + os.getpid() % 0xFFFF
    segment = _libc.shmget(key, 4096, _IPC_CREAT | _IPC_EXCL | 0o666)
    before = os.umask(0)
    queue = _librt.mq_open(f"/{name}".encode(), os.O_CREAT | os.O_RDWR, 0o666, None)
    assert segment >= 0
    assert queue >= 0
    try:
        with (
            socket.create_server(("127.0.0.1", 0), backlog=128) as tcp,
            socket.socket(socket.AF_UNIX) as unix,
            socket.socket(socket.AF_UNIX) as abstract,
        ):
            unix.bind(str(folder / "socket"))
            unix.listen(128)
            os.umask(before)
            abstract.bind("\0" + name)
            abstract.listen(128)
            port = tcp.getsockname()[1]
            yield Host(folder, secret, folder / "socket", port, name, key, f"/{name}", tool)
    finally:
        os.umask(before)
        os.close(queue)
        _librt.mq_unlink(f"/{name}".encode())
        _libc.shmctl(segment, _IPC_RMID, None)
        shutil.rmtree(folder)


def write_code(tool: Path | None = None) -> Path:
    """All handlers as one function's code, with a program of root's if there is one to bring."""
    code = driver.write_code({file.name: file.read_text() for file in HANDLERS.glob("*.*")})
    compileall.compile_dir(code, quiet=1)  # else who may write there does so as it imports
    if tool is not None:
        shutil.copy(tool, code / "id")
        (code / "id").chmod(0o4755)
    return code


def start(spec: Spec, cgroups: Sequence[str] = ()) -> Zygote:
    return driver.start_zygote(
        first_uid=FIRST_UID,
        kind=spec.kind,
        as_user=spec.as_user,
        without=spec.without,
        cgroups=cgroups,
    )


@contextlib.contextmanager
def jail(spec: Spec, host: Host, cgroups: Sequence[str] = ()) -> Iterator[Jail]:
    """A zygote that has what `spec` says, with two neighbours inside."""
    zygote = start(spec, cgroups)
    code = write_code(host.tool)
    uid, strangers_uid = fresh_uid(), fresh_uid()
    mark = f"{os.getpid()}-{uid}"
    folder, abstract = f"{host.folder}/victim-{mark}", f"victim-{mark}"
    port = _free_port()
    try:
        victim, stranger = (
            _neighbour(zygote, code, owner, each_port, f"{abstract}{suffix}", f"{folder}{suffix}")
            for owner, each_port, suffix in (
                (uid, port, ""),
                (strangers_uid, _free_port(), "-stranger"),
            )
        )
        world = World(
            host,
            victim.pid,
            stranger.pid,
            folder,
            port,
            abstract,
            task_root(zygote, code),
            strangers_uid,
        )
        yield Jail(zygote, code, world, uid, victim)
    finally:
        zygote.close()
        driver.remove_code(code)
        for left in host.folder.glob("victim-*"):
            shutil.rmtree(left)


def _neighbour(
    zygote: Zygote, code: Path, uid: int, port: int, abstract: str, folder: str
) -> Environment:
    neighbour = spawn(zygote, code, uid, "victim.handler")
    answer = neighbour.invoke({"port": port, "abstract": abstract, "folder": folder})
    assert answer.kind == wire.RESULT, answer.body.decode()
    return neighbour


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def only_root(*without: int) -> list[Any]:
    """Marks for what an ordinary user cannot try."""
    is_possible = os.geteuid() == 0 or not any(without)
    return [] if is_possible else [pytest.mark.skip(reason="needs root")]


def full(attacks: Sequence[Attack]) -> list[Any]:
    """Each attack against everything there is, as root's zygote and as a user's has it."""
    return [
        pytest.param(
            Spec(attack.kind, as_user), attack, id=f"{attack}-{Spec(attack.kind, as_user)}"
        )
        for attack in attacks
        for as_user in ((False, True) if os.geteuid() == 0 else (True,))
    ]


def alone(attacks: Sequence[Attack]) -> list[Any]:
    """Each attack that several layers stop, against the one that claims it."""
    return [_without(attack, attack.also) for attack in attacks if attack.also]


def bare(attacks: Sequence[Attack]) -> list[Any]:
    """Each attack against a jail that lacks just what stops it."""
    return [_without(attack, attack.layer | attack.also) for attack in attacks]


def _without(attack: Attack, bits: int) -> Any:
    spec = Spec(attack.kind, False, bits)
    return pytest.param(spec, attack, id=f"{attack}-{spec}", marks=only_root(bits))
