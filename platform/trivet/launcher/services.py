"""Services: what runs as gateway, supervisor and adapters, and what serves the supervisor."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trivet import runtimes as discovered
from trivet import settings as configured
from trivet.core import egress
from trivet.launcher import cgroups as limits
from trivet.launcher import folders, turns
from trivet.launcher.cgroups import Cgroups
from trivet.launcher.identities import Identities
from trivet.launcher.link import GATEWAY, PROVISIONER, SUPERVISOR, ZYGOTE_OF
from trivet.launcher.processes import ServiceSpec
from trivet.runtimes import Runtime
from trivet.settings import Settings

ADAPTERS = "adapters"

# How the gateway finds its listeners: {"aws": descriptor, "http": descriptor}.
LISTEN_VARIABLE = "TRIVET_LISTEN_JSON"

_RUN_ZYGOTE = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    " from trivet_worker.zygote import main; main(sys.argv[2:])"
)
_NODE_BOOTSTRAP = ("node", "bootstrap.mjs")


# What functions find installed on AWS, with all that it needs.
_LIBRARIES = ("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "urllib3", "six")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServantSpec:
    """A zygote, or the provisioner; the launcher adds `--commands FD --parent FD`."""

    spec: ServiceSpec
    # What is lost while it does not run, where that keeps nobody from serving.
    without_it: str = ""


def service_specs(
    settings: Settings,
    runtimes: Iterable[Runtime],
    identities: Identities | None,
    listeners: Mapping[str, socket.socket],
    cgroups: Cgroups,
) -> tuple[ServiceSpec, ...]:
    """The three services, each one module run by our own interpreter; the gateway listens."""
    open_ends = {name: listener.fileno() for name, listener in listeners.items()}
    variables = {
        configured.VARIABLE: settings.to_json(),
        discovered.VARIABLE: discovered.to_json(runtimes),
    }
    who = {
        GATEWAY: identities.gateway if identities else None,
        SUPERVISOR: identities.supervisor if identities else None,
        ADAPTERS: identities.adapters if identities else None,
    }
    further = {GATEWAY: {LISTEN_VARIABLE: json.dumps(open_ends)}, SUPERVISOR: {}, ADAPTERS: {}}
    if cgroups:
        further[SUPERVISOR] = {limits.VARIABLE: cgroups.to_json()}
    return tuple(
        ServiceSpec(
            name=name,
            argv=_waiting(name),
            variables={**variables, **further[name]},
            descriptors=tuple(open_ends.values()) if name == GATEWAY else (),
            identity=identity,
            waits=True,
            # Nobody is served without these two; events wait for the adapters.
            stands_by=name != ADAPTERS,
        )
        for name, identity in who.items()
    )


def _waiting(part: str, *options: str) -> tuple[str, ...]:
    """The module of a part, run by our own interpreter when its turn has come."""
    return (sys.executable, "-I", "-m", turns.__name__, f"trivet.{part}", *options)


def servant_specs(
    settings: Settings,
    runtimes: Iterable[Runtime],
    identities: Identities | None,
    cgroups: Cgroups,
) -> tuple[ServantSpec, ...]:
    """One zygote per runtime; and as root the provisioner."""
    first_uid = settings.first_uid if identities else 0
    zygotes = zygote_specs(runtimes, cgroups.bases, first_uid)
    return (*zygotes, *([provisioner_spec(settings)] if identities else []))


def zygote_specs(
    runtimes: Iterable[Runtime], cgroup_bases: Sequence[str], first_uid: int
) -> tuple[ServantSpec, ...]:
    """One zygote per runtime. It keeps root, to jail its environments, and gets no setting."""
    root = workers_root()
    libraries = _listed("--libraries", library_paths())
    shared = ("--first-uid", str(first_uid), *_listed("--cgroups", cgroup_bases))
    specs = []
    for runtime in runtimes:
        if runtime.kind == "python":
            program, kind = runtime.program, ("--kind", "python", *libraries)
        else:
            bootstrap = str(root.joinpath("trivet_worker", *_NODE_BOOTSTRAP))
            program = discovered.own_runtime().program
            kind = ("--kind", "node", "--program", runtime.program, "--bootstrap", bootstrap)
        spec = ServiceSpec(
            name=f"{ZYGOTE_OF}{runtime.name}",
            argv=(program, "-I", "-S", "-c", _RUN_ZYGOTE, str(root), *kind, *shared),
            dies_with_launcher=False,
            umask=0o022,  # as functions find it on AWS
            stands_by=True,  # nothing starts cold without it
        )
        specs.append(ServantSpec(spec=spec))
    return tuple(specs)


def _listed(option: str, paths: Sequence[str]) -> tuple[str, ...]:
    return (option, ":".join(paths)) if paths else ()


def provisioner_spec(settings: Settings) -> ServantSpec:
    """What makes networks and scratch mounts. It keeps root, and reads nothing that users wrote."""
    most = egress.parse(settings.egress)
    opened = egress.opened(most, egress.parse_networks(settings.egress_allow))
    options = [
        *("--name", folders.fingerprint(settings)),
        *("--network-range", settings.network_range),
        *("--egress", "none" if most.kind is egress.Kind.NONE else "some"),
    ]
    for rule in opened:
        if rule.network.version == 4:  # no function has another
            options += ["--open", f"{rule.network}:{rule.first_port}-{rule.last_port}"]
    if settings.scratch != "memory":
        options += ["--scratch-folder", str(settings.data_path / folders.SCRATCH)]
    spec = ServiceSpec(
        name=PROVISIONER,
        argv=_waiting(PROVISIONER, *options),
        # It must see its end coming, to take down what the machine would keep.
        dies_with_launcher=False,
        waits=True,
        stands_by=True,  # a first call after a supervisor's death waits for a network
    )
    return ServantSpec(spec=spec, without_it="functions reach nothing outside until it runs")


def workers_root() -> Path:
    """The folder that holds the worker package, which any Python can run from there."""
    spec = importlib.util.find_spec("trivet_worker")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("trivet_worker")
    return Path(spec.origin).parent.parent


def library_paths() -> list[str]:
    """Where the libraries that functions find on AWS are installed here: folders, and files."""
    found = []
    for name in _LIBRARIES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            place = Path(spec.origin)
            found.append(str(place.parent if spec.submodule_search_locations else place))
    return found
