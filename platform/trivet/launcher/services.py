"""Services: what runs as the gateway, the supervisor, the adapters, and the zygote of a runtime."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trivet import runtimes as discovered
from trivet import settings as configured
from trivet.launcher.identities import Identities
from trivet.launcher.processes import ServiceSpec
from trivet.runtimes import Runtime
from trivet.settings import Settings

GATEWAY = "gateway"
SUPERVISOR = "supervisor"
ADAPTERS = "adapters"

# How the gateway finds its listeners: {"aws": descriptor, "http": descriptor}.
LISTEN_VARIABLE = "TRIVET_LISTEN_JSON"

_RUN_ZYGOTE = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    " from trivet_worker.zygote import main; main(sys.argv[2:])"
)
_NODE_BOOTSTRAP = ("node", "bootstrap.mjs")


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteSpec:
    """A zygote; the launcher adds `--commands FD --parent FD` to its arguments."""

    runtime: Runtime
    spec: ServiceSpec


def service_specs(
    settings: Settings,
    runtimes: Iterable[Runtime],
    identities: Identities | None,
    listeners: Mapping[str, socket.socket],
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
    return tuple(
        ServiceSpec(
            name=name,
            argv=(sys.executable, "-I", "-m", f"trivet.{name}"),
            variables={
                **variables,
                **({LISTEN_VARIABLE: json.dumps(open_ends)} if name == GATEWAY else {}),
            },
            descriptors=tuple(open_ends.values()) if name == GATEWAY else (),
            identity=identity,
        )
        for name, identity in who.items()
    )


def zygote_specs(runtimes: Iterable[Runtime]) -> tuple[ZygoteSpec, ...]:
    """One zygote per runtime. It keeps root, to jail its environments, and gets no setting."""
    root = workers_root()
    specs = []
    for runtime in runtimes:
        if runtime.kind == "python":
            program, kind = runtime.program, ["--kind", "python"]
        else:
            bootstrap = str(root.joinpath("trivet_worker", *_NODE_BOOTSTRAP))
            program = discovered.own_runtime().program
            kind = ["--kind", "node", "--program", runtime.program, "--bootstrap", bootstrap]
        spec = ServiceSpec(
            name=f"zygote {runtime.name}",
            argv=(program, "-I", "-c", _RUN_ZYGOTE, str(root), *kind),
            dies_with_launcher=False,
            umask=0o022,  # as functions find it on AWS
        )
        specs.append(ZygoteSpec(runtime=runtime, spec=spec))
    return tuple(specs)


def workers_root() -> Path:
    """The folder that holds the worker package, which any Python can run from there."""
    spec = importlib.util.find_spec("trivet_worker")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("trivet_worker")
    return Path(spec.origin).parent.parent
