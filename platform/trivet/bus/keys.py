"""Every key, where it lives and how long. No other module spells a colon.

Everything a function owns shares the hash tag `{name}`, so that one script may touch all of it
on a Redis Cluster too. Express keys are memory only; durable keys are on disk before a reply.
"""

from __future__ import annotations

PREFIX = "trivet:"

# ------------------------------------------------------------------------- express lane


def express_stream(function: str) -> str:
    """Events of synchronous invocations. An entry goes when it is answered or withdrawn."""
    return f"{PREFIX}fn:{{{function}}}:express"


def rung_flag(function: str) -> str:
    """Set while somebody serves the function or was rung for it; unset, a publisher must ring."""
    return f"{PREFIX}fn:{{{function}}}:rung"


BELL = f"{PREFIX}bell"
"""Names of functions with work that nobody reads, or that changed. Hints, so it is trimmed: a lost
ring is repeated by its gateway, and a missed change is seen with the next event."""

RING = b"f"  # field of an entry on the bell: this function has work
CHANGED = b"c"  # field of an entry on the bell: this function was updated or deleted


def replies(gateway: str) -> str:
    """Reply frames for one gateway. Expires when the gateway stops renewing it."""
    return f"{PREFIX}gw:{{{gateway}}}:replies"


def epochs(node: str) -> str:
    """Supervisor epochs that this node ever began and nobody has cleared up after."""
    return f"{PREFIX}node:{{{node}}}:epochs"


def epoch_functions(node: str, epoch: str) -> str:
    """Functions whose stream this epoch reads, written before its first read of each."""
    return f"{PREFIX}node:{{{node}}}:epoch:{epoch}"


GROUP = "supervisors"
"""The consumer group of every stream of events."""

# ------------------------------------------------------------------------- durable lane


def function_record(function: str) -> str:
    """The Function, as msgpack. Lives until it is deleted."""
    return f"{PREFIX}fn:{{{function}}}:record"


def version_record(function: str, key: str) -> str:
    """A FunctionVersion, as msgpack. Superseded ones expire after an hour."""
    return f"{PREFIX}fn:{{{function}}}:version:{key}"


FUNCTIONS = f"{PREFIX}functions"
"""Sorted set of all function names, each with score 0, so that they list in order."""

APIS = f"{PREFIX}apis"
"""Hash: API id to its record (routes and integrations within), as msgpack."""

ACCESS_KEYS = f"{PREFIX}access-keys"
"""Hash: access key id to secret. Made at first start."""
