"""Stand-ins: small real programs in the places of the launcher's parts, which tell what they see.

    python stand_ins.py launch SETTINGS_JSON PLAN_JSON [--ready-fd N]
    python stand_ins.py service NAME BEHAVIOUR
    python stand_ins.py servant NAME BEHAVIOUR --commands FD --parent FD

Each reports by datagrams to the socket named in REPORT_TO: {"name", "pid", "event", ...}.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

HERE = os.path.abspath(__file__)
REPORT_TO = "REPORT_TO"

# Behaviours of those that have a standby. An heirless one has no successor that serves; a zygote
# that is mute does not say that it has all it needs.
STANDING_BY = ("standing by", "heirless", "mute")


def report(name: str, event: str, **details: Any) -> None:
    message = json.dumps({"name": name, "pid": os.getpid(), "event": event, **details})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(message.encode(), os.environ[REPORT_TO])


def open_descriptors() -> list[int]:
    """Those of now: the one that lists them is gone when they are looked at again."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            os.fstat(int(name))
            found.append(int(name))
    return sorted(found)


# -------------------------------------------------------------------------- launcher


def launch(settings_json: str, plan_json: str, arguments: Sequence[str]) -> int:
    """The real launcher with other programs for its services and zygotes."""
    from trivet.errors import TrivetError
    from trivet.launcher import refusals
    from trivet.launcher.__main__ import Report
    from trivet.launcher.__main__ import launch as really_launch
    from trivet.launcher.cgroups import VARIABLE, Cgroups
    from trivet.launcher.identities import Identities
    from trivet.launcher.processes import ServiceSpec
    from trivet.launcher.services import LISTEN_VARIABLE, ServantSpec
    from trivet.runtimes import Runtime
    from trivet.settings import Settings

    # Whoever started the tests in the background of a script has them ignore it, and so would we.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    plan: dict[str, str] = json.loads(plan_json)
    servants_of = {name: plan.pop(name) for name in ("provisioner",) if name in plan}
    zygote = plan.pop("zygote", "good")
    variables = {REPORT_TO: os.environ[REPORT_TO]}
    program = (sys.executable, "-I", HERE)

    def services(
        settings: Settings,
        runtimes: Sequence[Runtime],
        who: Identities | None,
        listeners: Mapping[str, socket.socket],
        cgroups: Cgroups,
    ) -> list[ServiceSpec]:
        ends = {name: listener.fileno() for name, listener in listeners.items()}
        return [
            ServiceSpec(
                name=name,
                argv=(*program, "service", name, behaviour),
                variables={
                    **variables,
                    **({LISTEN_VARIABLE: json.dumps(ends)} if name == "gateway" else {}),
                    **({VARIABLE: cgroups.to_json()} if name == "supervisor" and cgroups else {}),
                },
                descriptors=tuple(ends.values()) if name == "gateway" else (),
                identity=getattr(who, name, None),
                waits=behaviour in STANDING_BY,
                stands_by=behaviour in STANDING_BY,
            )
            for name, behaviour in plan.items()
        ]

    def servants(
        settings: Settings, runtimes: Sequence[Runtime], who: Identities | None, cgroups: Cgroups
    ) -> list[ServantSpec]:
        return [
            ServantSpec(
                spec=ServiceSpec(
                    name=name,
                    argv=(*program, "servant", name, behaviour),
                    variables=variables,
                    dies_with_launcher=False,
                    stands_by=behaviour in STANDING_BY,
                ),
                without_it="nobody misses it" if name == "provisioner" else "",
            )
            for name, behaviour in {**servants_of, f"zygote {runtimes[0].name}": zygote}.items()
        ]

    told = Report(int(arguments[1]) if arguments else None)
    try:
        settings = Settings(**json.loads(settings_json))
        really_launch(settings, told, make_services=services, make_servants=servants)
    except TrivetError as error:
        told.refused(error)
        return refusals.exit_code(error)
    report("launcher", "ended")
    return 0


# -------------------------------------------------------------------------- services


def serve(name: str, behaviour: str) -> NoReturn:
    if behaviour == "broken":
        sys.exit("the moon is in the wrong house")
    if behaviour == "refusing":
        print("these settings cannot be used", file=sys.stderr)
        sys.exit(78)
    if behaviour in STANDING_BY:
        _await_turn(name, behaviour)
    descriptors = open_descriptors()
    control = socket.socket(fileno=int(os.environ["TRIVET_CONTROL_FD"]))
    wakeups, end = socket.socketpair()
    end.setblocking(False)
    signal.set_wakeup_fd(end.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGHUP, lambda *_: None)
    report(
        name,
        "started",
        environment=dict(os.environ),
        descriptors=descriptors,
        listen=os.environ.get("TRIVET_LISTEN_JSON"),
        ids=[*os.getresuid(), *os.getresgid(), *os.getgroups()],
        session=os.getsid(0),
    )
    from trivet_worker import wire

    def say_ready(bits: int) -> None:
        control.send(bytes([1, 0, 0, 0]) + bits.to_bytes(4, "little"))

    full = wire.ISOLATION_PID | wire.ISOLATION_UID
    full |= 0xFF if behaviour in ("jailed", "falling") else 0
    say_ready(full if name == "supervisor" else 0)
    zygotes = []
    peers: dict[int, tuple[str, socket.socket]] = {}
    while True:
        waiting = [control.fileno(), wakeups.fileno(), *peers]
        readable, _, _ = select.select(waiting, [], [])
        if wakeups.fileno() in readable:
            asked = wakeups.recv(1)[0]
            report(name, "asked to end" if asked == signal.SIGTERM else "asked to leave")
            if behaviour != "stubborn":
                sys.exit(0)
        for number in [number for number in readable if number in peers]:
            who, link = peers[number]
            if heard := _received(link):
                report(name, "heard", peer=who, text=heard.decode())
            else:
                del peers[number]
                link.close()
                report(name, "peer gone", peer=who)
        if control.fileno() in readable:
            message, received, _, _ = socket.recv_fds(control, 256, 4)
            if not message:
                report(name, "launcher gone")
                sys.exit(0)
            who, link = message[8:].decode(), socket.socket(fileno=received[0])
            if not who.startswith("zygote "):
                peers[link.fileno()] = who, link
                with contextlib.suppress(OSError):  # a peer that just died
                    link.send(f"{name} {os.getpid()}".encode())
                report(name, "peer", peer=who)
                continue
            zygotes.append(link)
            report(name, "zygote", runtime=who.removeprefix("zygote "))
            with contextlib.suppress(OSError):  # a zygote that just died
                link.send(b"spawn")
            if behaviour == "falling" and len(zygotes) == 2:
                say_ready(wire.ISOLATION_SECCOMP | wire.ISOLATION_LANDLOCK)


def _await_turn(name: str, behaviour: str) -> None:
    with socket.socket(fileno=int(os.environ.pop("TRIVET_TURN_FD"))) as turn:
        report(name, "stands by")
        turn.send(b"a")
        if turn.recv(1) != b"g":
            sys.exit(0)
    marker = f"{os.path.dirname(os.environ[REPORT_TO])}/data/blobs/{name}"
    if behaviour == "heirless":
        if os.path.exists(marker):
            sys.exit("the line has died out")
        os.close(os.open(marker, os.O_CREAT))


def _received(link: socket.socket) -> bytes:
    try:
        return link.recv(256)
    except ConnectionError:  # the other side died with something unread
        return b""


def obey(name: str, behaviour: str, arguments: Sequence[str]) -> NoReturn:
    """A zygote, which starts an environment when it is told anything, or the provisioner."""
    if behaviour == "unusable":
        report(name, "started")
        print("this kernel has no bridges", file=sys.stderr)
        sys.exit(78)
    if behaviour == "broken":
        report(name, "started")
        sys.exit("the moon is in the wrong house")
    name = name.partition(" ")[0]
    descriptors = open_descriptors()
    commands = socket.socket(fileno=int(arguments[arguments.index("--commands") + 1]))
    parent = int(arguments[arguments.index("--parent") + 1])
    report(name, "started", descriptors=descriptors)
    if name == "zygote" and behaviour != "mute":
        commands.send(b"ready")
    environments: list[int] = []
    while True:
        readable, _, _ = select.select([commands.fileno(), parent], [], [])
        if commands.fileno() in readable and (heard := _received(commands)):
            if name == "zygote":
                environments.append(_environment(commands, parent))
            else:
                report(name, "heard", text=heard.decode())
            continue
        for pid in environments:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        report(name, "ended", why="parent" if parent in readable else "commands")
        sys.exit(0)


def _environment(commands: socket.socket, parent: int) -> int:
    pid = os.fork()
    if pid == 0:
        commands.close()
        os.close(parent)
        os.setsid()
        report("environment", "started")
        while True:
            time.sleep(3600)
    return pid


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    if role == "launch":
        sys.exit(launch(rest[0], rest[1], rest[2:]))
    elif role == "service":
        serve(rest[0], rest[1])
    else:
        obey(rest[0], rest[1], rest[2:])
