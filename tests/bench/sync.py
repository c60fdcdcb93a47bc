"""Sync: the hello-world behind an HTTP trigger, beside the limit prototype."""

from __future__ import annotations

import json
import urllib.request
from contextlib import ExitStack
from functools import partial

from tests.bench.endpoints import EXPECTED
from tests.bench.figures import Figure, Options, compared
from tests.bench.limit import limit
from tests.bench.load import Request, load
from tests.bench.platforms import await_that, trivet

CONNECTIONS = (1, 16, 64)
ENVIRONMENTS = 2


def measured(options: Options) -> list[Figure]:
    with ExitStack() as stack:
        platform = stack.enter_context(trivet(max_environments=str(ENVIRONMENTS)))
        platform.endpoint.deploy("hello-world")
        platform.trivet("trigger", "http", "hello-world", "/hello-world")
        urls = {"trivet": f"{platform.http_url}/hello-world?name=Alice"}
        if options.limit:
            urls["limit"] = stack.enter_context(limit(options.limit, ENVIRONMENTS))
        for url in urls.values():
            await_that(partial(_is_there, url), url)
        figures = []
        for connections in CONNECTIONS:
            requests = {name: Request(url) for name, url in urls.items()}
            for request in requests.values():
                load(request, connections, 1)
            runs = {
                name: partial(load, request, connections, options.seconds)
                for name, request in requests.items()
            }
            case = f"{connections} connections"
            figures.append(compared("sync", case, runs, of="per_s", rounds=options.rounds))
        return figures


def _is_there(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert json.loads(answer.read()) == EXPECTED, url
    except OSError:
        return False
    return True
