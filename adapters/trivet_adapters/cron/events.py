"""Events: what a function gets at a slot of its schedule, in EventBridge's words."""

from __future__ import annotations

import json
import uuid
from datetime import datetime

from trivet import Event, Host, Schedule

# Two attempts at one slot are the same event.
_NAMESPACE = uuid.UUID("5a4f3f0e-7d0c-4d57-8f35-6c1b0f6f8a11")


def slot_key(schedule: Schedule, slot: datetime) -> str:
    """What makes an event of a slot the only one."""
    return f"{schedule.id}/{_written(slot)}"


def scheduled_event(schedule: Schedule, slot: datetime, host: Host) -> Event:
    event_id = str(uuid.uuid5(_NAMESPACE, slot_key(schedule, slot)))
    rule = f"arn:aws:events:{host.region}:{host.account}:rule/{schedule.name}"
    detail = {
        "version": "0",
        "id": event_id,
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": host.account,
        "time": _written(slot),
        "region": host.region,
        "resources": [rule],
        "detail": {},
    }
    payload = json.dumps(detail, separators=(",", ":")).encode()
    return Event(id=event_id, function=schedule.function, source="cron", payload=payload)


def _written(slot: datetime) -> str:
    return slot.strftime("%Y-%m-%dT%H:%M:%SZ")
