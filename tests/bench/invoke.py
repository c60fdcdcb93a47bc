"""Invoke: the Invoke API with signed requests, beside another Lambda endpoint."""

from __future__ import annotations

from functools import partial

from tests.bench.endpoints import Endpoint
from tests.bench.figures import Figure, Options, compared
from tests.bench.load import load
from tests.bench.platforms import trivet

CONNECTIONS = (1, 16)
ENVIRONMENTS = 2
FUNCTION = "bench-hello"


def measured(options: Options) -> list[Figure]:
    with trivet(max_environments=str(ENVIRONMENTS)) as platform:
        endpoints = {"trivet": platform.endpoint}
        if options.peer:
            endpoints["peer"] = Endpoint(url=options.peer.rstrip("/"))
        for endpoint in endpoints.values():
            endpoint.deploy(FUNCTION)
            endpoint.call(FUNCTION)
        figures = []
        for connections in CONNECTIONS:
            # Signed anew for each case: a signature is good for a few minutes only.
            runs = {
                name: partial(load, endpoint.invocation(FUNCTION), connections, options.seconds)
                for name, endpoint in endpoints.items()
            }
            for endpoint in endpoints.values():
                load(endpoint.invocation(FUNCTION), connections, 1)
            case = f"{connections} connections"
            figures.append(compared("invoke", case, runs, of="per_s", rounds=options.rounds))
        return figures
