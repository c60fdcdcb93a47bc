"""Sample: the function of a rehearsal. It is ours; no user's code is ever run in a zygote."""

from __future__ import annotations

from typing import Any


def handler(event: Any, context: Any) -> Any:
    return {"event": event, "request": context.aws_request_id}
