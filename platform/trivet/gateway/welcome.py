"""Welcome: the function that is there at the first start, so that the first `curl` works."""

from __future__ import annotations

import io
import secrets
import time
import uuid
import zipfile
from contextlib import suppress

from anyio import to_thread

from trivet.core.functions import Function, FunctionVersion
from trivet.errors import Conflict
from trivet.store.apis import ApiStore
from trivet.store.blobs import Blobs
from trivet.store.functions import FunctionStore

NAME = "welcome"

SOURCE = '''\
"""The function behind /welcome. Remove it: aws lambda delete-function --function-name welcome"""

import json


def handler(event, context):
    name = (event.get("queryStringParameters") or {}).get("name") or "World"
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "application/json"},
        "body": json.dumps({"message": f"Hello, {name}!"}),
    }
'''


def welcome_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        # A fixed date: the same source gives the same digest at every first start.
        archive.writestr(zipfile.ZipInfo("welcome.py", (2026, 1, 1, 0, 0, 0)), SOURCE)
    return buffer.getvalue()


async def deploy_welcome(
    functions: FunctionStore, apis: ApiStore, blobs: Blobs, *, runtime: str, role: str
) -> None:
    """Deploy `welcome` and route /welcome to it. Called once in the life of a data folder."""
    blob = await to_thread.run_sync(blobs.put, welcome_zip())
    function = Function(
        latest=FunctionVersion(
            function=NAME,
            runtime=runtime,
            handler="welcome.handler",
            code_sha256=blob.sha256_hex,
            role=role,
        ),
        code_bytes=blob.bytes,
        description="Answers the first curl. Delete it when you like.",
        revision_id=str(uuid.uuid4()),
        last_modified_ms=int(time.time() * 1000),
    )
    with suppress(Conflict):  # a first start that was cut off got this far
        await functions.create(function)
    await apis.add_route(
        route_key=f"ANY /{NAME}",
        function=NAME,
        payload_format="1.0",
        route_id=secrets.token_hex(4)[:7],
    )
