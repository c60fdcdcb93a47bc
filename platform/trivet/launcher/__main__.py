"""The launcher's program: `python -I -m trivet.launcher [--ready-fd N]`, started by `trivet up`.

It reads the settings from TRIVET_SETTINGS_JSON. With `--ready-fd` it writes one line of JSON there,
the state and its banner when ready, or {"error", "hint", "exit_code"}. Without, it speaks to
people.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trivet.errors import PlatformError, TrivetError
from trivet.launcher import announce, folders, listeners, notify, privilege
from trivet.launcher.announce import PlatformState
from trivet.launcher.cgroups import Cgroups, favor_dynmods, prepare
from trivet.launcher.embedded import embedded_servers
from trivet.launcher.identities import Identities, identities
from trivet.launcher.members import Servant, Server, Service
from trivet.launcher.precedence import precedence
from trivet.launcher.presence import Presence
from trivet.launcher.processes import ServiceSpec
from trivet.launcher.refusals import exit_code
from trivet.launcher.services import ServantSpec, servant_specs, service_specs
from trivet.launcher.tree import Tree
from trivet.runtimes import Runtime, discover, own_runtime, root_unsafe
from trivet.settings import Settings, inherited_settings

# How long a gateway whose launcher was killed may keep its addresses.
_PREDECESSOR_S = 5.0

# How long the environments of a dead supervisor may take to end before others are started.
_STUCK_S = 1.0

MakeServices = Callable[
    [Settings, Sequence[Runtime], Identities | None, Mapping[str, socket.socket], Cgroups],
    Sequence[ServiceSpec],
]
MakeServants = Callable[
    [Settings, Sequence[Runtime], Identities | None, Cgroups], Sequence[ServantSpec]
]


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
        descriptor, self._ready_fd = self._ready_fd, None
        with contextlib.suppress(OSError):  # nobody waits any more
            os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)
        return True


def launch(
    settings: Settings,
    report: Report,
    *,
    make_services: MakeServices = service_specs,
    make_servants: MakeServants = servant_specs,
) -> None:
    """Serve `settings` until a signal ends it. Raises TrivetError when it cannot start."""
    begun = time.monotonic()
    settings = _resolved(settings)
    os.chdir("/")
    os.umask(0o022)
    who = identities(settings)
    folders.make(settings, who)
    lock = folders.lock(settings)
    cgroups = Cgroups()
    fast_joining: int | None = None
    going_first = contextlib.ExitStack()
    try:
        was_killed = folders.clear_run(settings)
        runtimes = _usable_runtimes(settings)
        if who is not None:
            _enter_view(settings, runtimes)
        cgroups = _usable_cgroups(settings, who)
        going_first.enter_context(precedence(cgroups))
        fast_joining = favor_dynmods() if cgroups else None
        servers = embedded_servers(settings, who)
        patience_s = _PREDECESSOR_S if was_killed else 0.0
        opened = listeners.open_listeners(settings, patience_s=patience_s)
        ports = {name: listener.getsockname()[1] for name, listener in opened.items()}
        settings = replace(settings, aws_port=ports["aws"], http_port=ports["http"])
        run = settings.run_path
        presence = Presence(
            settings,
            runtimes,
            cgroups=cgroups,
            has_provisioner=who is not None,
            begun=begun,
            tell=report.ready,
        )
        services = make_services(settings, runtimes, who, opened, cgroups)
        servants = make_servants(settings, runtimes, who, cgroups)
        tree = Tree(
            servers=[Server(server, run, lock) for server in servers],
            services=[Service(spec, run) for spec in services],
            servants=[Servant(spec, run) for spec in servants],
            on_ready=lambda: presence.ready(tree.servers),
            on_isolation=presence.isolated,
            clear_environments=lambda: _clear(cgroups),
            on_ending=report.ending,
            run_path=run,
        )
        tree.run()
    finally:
        going_first.close()
        if not cgroups.remove():
            announce.say_loudly("some processes of functions do not end: the kernel holds them")
        if fast_joining is not None:
            os.close(fast_joining)
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


def _usable_cgroups(settings: Settings, who: Identities | None) -> Cgroups:
    """Never a reason not to start: `isolation_minimum` says what is."""
    cgroups = prepare(settings, who)
    if who is not None and not cgroups:
        announce.say_loudly(f"functions have no limits as a whole: {cgroups.reason}")
    return cgroups


def _clear(cgroups: Cgroups) -> None:
    # What is stuck in the kernel must not keep the rest from coming back.
    cgroups.empty(_STUCK_S)


def _enter_view(settings: Settings, runtimes: Sequence[Runtime]) -> None:
    needs = privilege.needs(settings, runtimes)
    privilege.check_readable(needs)
    view = privilege.view(needs)
    if view.is_needed:
        privilege.enter(view)
        os.chdir("/")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    ready_fd = int(arguments[1]) if arguments[:1] == ["--ready-fd"] else None
    report = Report(ready_fd)
    settings = inherited_settings()
    try:
        launch(settings, report)
    except TrivetError as error:
        report.refused(error)
        return exit_code(error)
    except OSError as error:
        # Without a hint, a disk that is full would be one more number of an error.
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = f"du -xsh {shlex.quote(settings.data)}/*" if is_full else ""
        failure = PlatformError(f"the platform cannot start: {error}", hint=hint)
        report.refused(failure)
        return exit_code(failure)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
