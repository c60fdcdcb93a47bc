"""Briefing: the INIT body, all that an environment is told about the function it is to run."""

from __future__ import annotations

import json

from trivet.core.endpoints import endpoint_variables, parse_service_endpoints
from trivet.core.functions import FunctionVersion
from trivet.core.variables import environment_variables, log_group
from trivet.settings import Settings
from trivet.store.roles import Roles
from trivet_worker import wire

# What listens on every address is reached from here by the loopback address.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Briefing:
    """What all environments of this host are told alike, and how each gets its own."""

    def __init__(self, settings: Settings, roles: Roles | None) -> None:
        """`roles` issue the functions' credentials; without, they get none."""
        self._region = settings.region
        self._roles = roles
        services = parse_service_endpoints(settings.service_endpoints)
        host = _LOOPBACK.get(settings.host, settings.host)
        host = f"[{host}]" if ":" in host else host
        self._outside = endpoint_variables(
            services, aws_url=f"http://{host}:{settings.aws_port}", relayed_port=None
        )
        self._inside = endpoint_variables(
            services, aws_url=f"http://127.0.0.1:{wire.AWS_PORT}", relayed_port=wire.AWS_PORT
        )

    def __repr__(self) -> str:
        return f"<Briefing {self._region}>"

    def pack(
        self, version: FunctionVersion, *, isolation: int, task_root: str, log_stream: str
    ) -> bytes:
        """As wire.py says. `isolation`: the wire.ISOLATION_* that it lives in.

        Its credentials are issued now, so an environment must not outlive them.
        """
        has_doors = isolation & wire.ISOLATION_NETWORK
        issue = self._roles.issue if self._roles is not None else None
        variables = environment_variables(
            version,
            region=self._region,
            log_stream=log_stream,
            task_root=task_root,
            credentials=issue(version.function, version.role) if issue else None,
            endpoints=self._inside if has_doors else self._outside,
        )
        return json.dumps(
            {
                "handler": version.handler,
                "task_root": task_root,
                "environment": variables,
                "function": {
                    "name": version.function,
                    "version": version.version,
                    "memory_mb": version.memory_mb,
                    "log_group": log_group(version.function),
                    "log_stream": log_stream,
                },
            }
        ).encode()
