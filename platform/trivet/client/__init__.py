"""Client: invoke and publish from Python, blocking or not, in the same words.

with Client() as trivet:
    result = trivet.invoke("hello-world", {"name": "Alice"})
    trivet.publish("resize", {"key": "photo.jpg"}, once="photo.jpg")

async with AsyncClient() as trivet:
    await trivet.publish_many(("resize", {"n": n}) for n in range(1000))
"""

from __future__ import annotations

from .answers import LogLine, NoAnswer, Result
from .asynchronous import AsyncClient
from .blocking import Client

__all__ = ["AsyncClient", "Client", "LogLine", "NoAnswer", "Result"]
