"""Records: a file told as S3 tells of an object that was put."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from datetime import UTC, datetime
from urllib.parse import quote_plus

from trivet import Event, FileTrigger, Host
from trivet_adapters.files.found import Content

# Two attempts at one state of a file are the same event.
_NAMESPACE = uuid.UUID("0e6d4b1c-93f5-4a39-8f0c-2f6f5b8d7c20")


def content_key(trigger: FileTrigger, content: Content) -> str:
    """What makes an event of a state of a file the only one."""
    what = b"\0".join((trigger.id.encode(), content.path, content.stamp.text))
    return hashlib.sha256(what).hexdigest()[:32]


def put_event(trigger: FileTrigger, content: Content, host: Host) -> Event:
    event_id = str(uuid.uuid5(_NAMESPACE, content_key(trigger, content)))
    bucket = os.path.basename(trigger.folder) or "root"
    happened = datetime.fromtimestamp(content.stamp.changed_ns // 1_000_000 / 1000, UTC)
    record = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": host.region,
        "eventTime": happened.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "eventName": "ObjectCreated:Put",
        "userIdentity": {"principalId": host.account},
        "requestParameters": {"sourceIPAddress": "127.0.0.1"},
        "responseElements": {
            "x-amz-request-id": event_id.replace("-", "")[:16].upper(),
            "x-amz-id-2": event_id,
        },
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": trigger.name,
            "bucket": {
                "name": bucket,
                "ownerIdentity": {"principalId": host.account},
                "arn": f"arn:aws:s3:::{bucket}",
            },
            "object": {
                "key": quote_plus(content.path, safe="/"),
                "size": content.stamp.size_bytes,
                "eTag": content.md5_hex,
                # Of two events of one key, the later has the greater.
                "sequencer": f"{content.stamp.changed_ns:016X}",
            },
        },
    }
    payload = json.dumps({"Records": [record]}, separators=(",", ":")).encode()
    return Event(id=event_id, function=trigger.function, source="files", payload=payload)
