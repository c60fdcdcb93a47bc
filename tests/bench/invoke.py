"""Invoke: the Invoke API with signed requests, beside another Lambda endpoint."""

from __future__ import annotations

from functools import partial

from tests.bench.endpoints import Endpoint
from tests.bench.figures import Figure, Measurement, Options, compared
from tests.bench.load import load
from tests.bench.platforms import trivet

CONNECTIONS = (1, 16)
ENVIRONMENTS = 2
WARM_UP_S = 3  # a peer that starts a process for each connection takes as long
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
            runs = {
                name: partial(_load, endpoint, connections, options.seconds)
                for name, endpoint in endpoints.items()
            }
            for endpoint in endpoints.values():
                _load(endpoint, connections, WARM_UP_S)
            case = f"{connections} connections"
            figures.append(compared("invoke", case, runs, of="per_s", rounds=options.rounds))
        return figures


def _load(endpoint: Endpoint, connections: int, seconds: float) -> Measurement:
    # Signed anew for each run: a signature is good for a few minutes only.
    found = load(endpoint.invocation(FUNCTION), connections, seconds)
    # Behind the calls that nobody waits for any more, so that they are not in the other's way.
    endpoint.call(FUNCTION)
    return found
