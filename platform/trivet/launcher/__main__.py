"""The launcher's program: `python -I -m trivet.launcher [--ready-fd N]`, started by `trivet up`.

It reads the settings from TRIVET_SETTINGS_JSON. With `--ready-fd` it writes one line of JSON there,
the state and its banner when ready, or {"error", "hint", "exit_code"}. Without, it speaks to
people.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from trivet.errors import PlatformError, TrivetError
from trivet.launcher import announce, folders, listeners, notify, privilege
from trivet.launcher.announce import PlatformState
from trivet.launcher.embedded import embedded_servers
from trivet.launcher.identities import Identities, identities
from trivet.launcher.members import Server, Service, Zygote
from trivet.launcher.processes import ServiceSpec
from trivet.launcher.refusals import exit_code
from trivet.launcher.services import SUPERVISOR, ZygoteSpec, service_specs, zygote_specs
from trivet.launcher.tree import Tree
from trivet.runtimes import Runtime, discover, own_runtime, root_unsafe
from trivet.settings import Settings, inherited_settings

# How long a gateway whose launcher was killed may keep its addresses.
_PREDECESSOR_S = 5.0

MakeServices = Callable[
    [Settings, Sequence[Runtime], Identities | None, Mapping[str, socket.socket]],
    Sequence[ServiceSpec],
]
MakeZygotes = Callable[[Sequence[Runtime]], Sequence[ZygoteSpec]]


class Report:
    """Where the news go: one line of JSON to whoever started us, or words to a terminal."""

    def __init__(self, ready_fd: int | None) -> None:
        self._ready_fd = ready_fd
        if ready_fd is not None:
            os.set_inheritable(ready_fd, False)

    def ready(self, state: PlatformState) -> None:
        notify.tell(notify.READY)
        if not self._tell(announce.ready_json(state)):
            text = announce.banner(state, has_colour=announce.has_colour(sys.stdout))
            announce.say(text, stream=sys.stdout)

    def refused(self, error: TrivetError) -> None:
        if not self._tell(announce.refusal_json(error)):
            announce.say_refusal(error)

    def ending(self) -> None:
        notify.tell(notify.STOPPING)
        announce.say("  ending  (Ctrl-C again: at once)")

    def _tell(self, line: str) -> bool:
        if self._ready_fd is None:
            return False
        with contextlib.suppress(OSError):  # nobody waits any more
            os.write(self._ready_fd, f"{line}\n".encode())
            os.close(self._ready_fd)
        return True


def launch(
    settings: Settings,
    report: Report,
    *,
    make_services: MakeServices = service_specs,
    make_zygotes: MakeZygotes = zygote_specs,
) -> None:
    """Serve `settings` until a signal ends it. Raises TrivetError when it cannot start."""
    begun = time.monotonic()
    settings = _resolved(settings)
    os.chdir("/")
    os.umask(0o022)
    who = identities(settings)
    folders.make(settings, who)
    lock = folders.lock(settings)
    try:
        was_killed = folders.clear_run(settings)
        runtimes = _usable_runtimes(settings)
        if who is not None:
            _enter_view(settings, runtimes)
        servers = embedded_servers(settings, who)
        patience_s = _PREDECESSOR_S if was_killed else 0.0
        opened = listeners.open_listeners(settings, patience_s=patience_s)
        ports = {name: listener.getsockname()[1] for name, listener in opened.items()}
        settings = replace(settings, aws_port=ports["aws"], http_port=ports["http"])
        run = settings.run_path
        tree = Tree(
            servers=[Server(server, run, lock) for server in servers],
            services=[
                Service(spec, run) for spec in make_services(settings, runtimes, who, opened)
            ],
            zygotes=[Zygote(spec, run) for spec in make_zygotes(runtimes)],
            on_ready=lambda: _ready(settings, runtimes, tree, report, begun),
            on_ending=report.ending,
        )
        tree.run()
    finally:
        folders.clear_run(settings)
        os.ftruncate(lock, 0)
        os.close(lock)


def _resolved(settings: Settings) -> Settings:
    """Paths that mean the same from any folder and in any view."""
    data = os.path.realpath(settings.data) if ".." in settings.data_path.parts else settings.data
    runtimes = os.path.abspath(settings.runtimes) if settings.runtimes else ""
    return replace(settings, data=str(Path(data).absolute()), runtimes=runtimes)


def _usable_runtimes(settings: Settings) -> tuple[Runtime, ...]:
    runtimes, refused = discover(settings)
    for runtime in refused:
        announce.say_loudly(f"{runtime.name} is not used: {runtime.reason}")
    if os.geteuid() == 0:
        for program in dict.fromkeys((sys.executable, own_runtime().program)):
            if reason := root_unsafe(program):
                announce.say_loudly(f"warning: {reason}")
                break
    return runtimes


def _enter_view(settings: Settings, runtimes: Sequence[Runtime]) -> None:
    needs = privilege.needs(settings, runtimes)
    privilege.check_readable(needs)
    view = privilege.view(needs)
    if view.is_needed:
        privilege.enter(view)
        os.chdir("/")


def _ready(
    settings: Settings, runtimes: Sequence[Runtime], tree: Tree, report: Report, begun: float
) -> None:
    supervisor = tree.member(SUPERVISOR)
    bits = supervisor.number if isinstance(supervisor, Service) else 0
    embedded = {server.lane for server in tree.servers}
    # Who listens everywhere is reached from here by the loopback address.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    host = f"[{host}]" if ":" in host else host
    state = PlatformState(
        pid=os.getpid(),
        started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        ready_ms=round((time.monotonic() - begun) * 1000),
        aws_url=f"http://{host}:{settings.aws_port}",
        http_url=f"http://{host}:{settings.http_port}",
        ports={"aws": settings.aws_port, "http": settings.http_port},
        runtimes=tuple(runtimes),
        isolation=announce.isolation_text(bits),
        isolation_bits=bits,
        valkey=next((server.version for server in tree.servers), ""),
        lanes={
            lane: "embedded" if lane in embedded else "external" for lane in ("express", "durable")
        },
    )
    folders.write_state(settings, state.to_json())
    report.ready(state)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    ready_fd = int(arguments[1]) if arguments[:1] == ["--ready-fd"] else None
    report = Report(ready_fd)
    try:
        launch(inherited_settings(), report)
    except TrivetError as error:
        report.refused(error)
        return exit_code(error)
    except OSError as error:
        failure = PlatformError(f"the platform cannot start: {error}")
        report.refused(failure)
        return exit_code(failure)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
