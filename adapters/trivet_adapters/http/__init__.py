"""The HTTP adapter: a request that meets a Route becomes an Event, its Reply an HTTP response."""

from trivet_adapters.http.asgi import application

__all__ = ["application"]
