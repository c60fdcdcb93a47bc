"""Platform: what the gateway offers its adapters and the AWS operations, behind `trivet.ports`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from trivet.bus.publish import Calls
from trivet.core.arns import LATEST, Place
from trivet.core.functions import Function
from trivet.core.invocations import Event, Match, Reply
from trivet.core.urls import FALLBACK, LABEL, FunctionUrl, Presented, Signer, is_url_host
from trivet.errors import FunctionNotFound, RequestTooLarge, Throttled
from trivet.gateway.admission import Admission
from trivet.gateway.metrics import GatewayCounters
from trivet.settings import Settings
from trivet.store.apis import ApiStore
from trivet.store.functions import FunctionStore
from trivet.store.urls import UrlStore
from trivet_worker.wire import MAX_REQUEST_BYTES

_URL_HOST = f".{LABEL}."


class GatewayPlatform:
    """Implements `trivet.ports.Platform` over the express lane."""

    def __init__(
        self,
        settings: Settings,
        calls: Calls,
        functions: FunctionStore,
        apis: ApiStore,
        urls: UrlStore,
        admission: Admission,
    ) -> None:
        self._place = Place(settings.region, settings.account)
        self._init_limit_ms = settings.init_limit_ms
        self._calls = calls
        self._functions = functions
        self._apis = apis
        self._urls = urls
        self._admission = admission
        # Calls of each function that has a reservation; others are not counted.
        self._reserved_in_flight: Counter[str] = Counter()
        self.counters = GatewayCounters()

    @property
    def region(self) -> str:
        return self._place.region

    @property
    def account(self) -> str:
        return self._place.account

    def match(self, host: str, method: str, path: str) -> Match | None:
        # Ordinary routes are asked for far more often; these two tests cost them next to nothing.
        if _URL_HOST in host or path.startswith(FALLBACK):
            match = self._urls.match(host, path)
            if match is not None or is_url_host(host):
                return match
        return self._apis.match(host, method, path)

    async def authorize(self, url: FunctionUrl, request: Presented) -> Signer | None:
        return await self._admission.admit(url, request)

    async def invoke(self, event: Event) -> Reply:
        name = event.function
        function = self._functions.cached(name) or await self._functions.get(name)
        if function is None:
            arn = self._place.function_arn(name, LATEST)
            raise FunctionNotFound(f"Function not found: {arn}")
        if len(event.payload) > MAX_REQUEST_BYTES:
            raise RequestTooLarge(
                f"{len(event.payload)} byte payload is too large for the RequestResponse "
                f"invocation type (limit {MAX_REQUEST_BYTES} bytes)"
            )
        began = perf_counter()
        try:
            if function.reserved_concurrency is None:
                reply = await self._call(event, function)
            else:
                with self._one_of_reserved(name, function.reserved_concurrency):
                    reply = await self._call(event, function)
        except Throttled:
            self.counters.throttled("express", name)
            raise
        self.counters.answered(perf_counter() - began)
        return reply

    async def _call(self, event: Event, function: Function) -> Reply:
        return await self._calls.invoke(
            event,
            version_key=function.latest.key,
            invoked_arn=event.invoked_arn or self._place.function_arn(function.name),
            limit_ms=self._limit_ms(function),
        )

    @contextmanager
    def _one_of_reserved(self, name: str, reserved: int) -> Iterator[None]:
        """Raise Throttled if as many calls as the function has reserved are in flight already."""
        in_flight = self._reserved_in_flight
        if in_flight[name] >= reserved:
            reason = "ReservedFunctionConcurrentInvocationLimitExceeded"
            raise Throttled("Rate Exceeded.", Reason=reason)
        in_flight[name] += 1
        try:
            yield
        finally:
            in_flight[name] -= 1
            if not in_flight[name]:
                del in_flight[name]

    def _limit_ms(self, function: Function) -> int:
        """The most it may take: an init that expires, another within the timeout, and the run."""
        return self._init_limit_ms + 2 * function.latest.timeout_ms
