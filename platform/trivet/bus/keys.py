"""Every key, where it lives and how long. No other module spells a colon.

Everything a function owns shares the hash tag `{name}`, so that one script may touch all of it
on a Redis Cluster too. Express keys are memory only; durable keys are on disk before a reply.
"""

from __future__ import annotations

import zlib

PREFIX = "trivet:"

# ------------------------------------------------------------------------- express lane


def express_stream(function: str) -> str:
    """Events of synchronous invocations. An entry goes when it is answered or withdrawn."""
    return f"{PREFIX}fn:{{{function}}}:express"


def rung_flag(function: str) -> str:
    """Set while somebody serves the function or was rung for it; unset, a publisher must ring."""
    return f"{PREFIX}fn:{{{function}}}:rung"


def durable_rung_flag(function: str) -> str:
    """The same for the function's durable stream, which lies on the other server."""
    return f"{PREFIX}fn:{{{function}}}:rung-durable"


BELL = f"{PREFIX}bell"
"""Names of functions with work that nobody reads, or that changed. Hints, so it is trimmed: a lost
ring is repeated by its gateway, and a missed change is seen with the next event."""

RING = b"f"  # field of an entry on the bell: this function has work
RING_DURABLE = b"d"  # the same, on the durable lane
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


NODES = f"{PREFIX}nodes"
"""Set: names of the nodes that ever had a supervisor."""


def report(node: str) -> str:
    """What the supervisor of a node counts, as msgpack. Expires seconds after its last report."""
    return f"{PREFIX}node:{{{node}}}:report"


def lease(node: str) -> str:
    """The epoch that runs on a node now. Expires when its supervisor stops renewing it."""
    return f"{PREFIX}node:{{{node}}}:lease"


GROUP = "supervisors"
"""The consumer group of every stream of events."""

# ------------------------------------------------------------------------- durable lane


def function_record(function: str) -> str:
    """The Function, as msgpack. Lives until it is deleted."""
    return f"{PREFIX}fn:{{{function}}}:record"


def version_record(function: str, key: str) -> str:
    """A FunctionVersion, as msgpack. Superseded ones expire after an hour."""
    return f"{PREFIX}fn:{{{function}}}:version:{key}"


def durable_stream(function: str) -> str:
    """Events of asynchronous invocations. Never trimmed: an entry goes when its event has ended."""
    return f"{PREFIX}fn:{{{function}}}:durable"


def delayed(function: str) -> str:
    """Sorted set: origins of the events that wait for another attempt, by when it is due in ms."""
    return f"{PREFIX}fn:{{{function}}}:delayed"


def parked(function: str) -> str:
    """Hash: origin to the event that waits for another attempt, with its Progress."""
    return f"{PREFIX}fn:{{{function}}}:parked"


def ledger(function: str) -> str:
    """Stream: one entry for each asynchronous event that has ended. Trimmed by bytes."""
    return f"{PREFIX}fn:{{{function}}}:ledger"


def totals(function: str) -> str:
    """Hash of counters over all asynchronous events that were ever accepted. Outlives it."""
    return f"{PREFIX}fn:{{{function}}}:totals"


def outbox(function: str) -> str:
    """Stream: what is to be told to destinations. An entry goes when it was delivered."""
    return f"{PREFIX}fn:{{{function}}}:outbox"


def told_once(function: str, origin: str) -> str:
    """The idempotency key under which a destination is told how an event ended."""
    return f"told:{function}:{origin}"


def bus_entries(bus: str) -> str:
    """Stream: events on a bus, as EventBridge writes them. The newest 10,000."""
    return f"{PREFIX}bus:{{{bus}}}:entries"


def bus_once(bus: str, once: str) -> str:
    """As `accepted_once`, for a bus."""
    return f"{PREFIX}bus:{{{bus}}}:once:{once}"


def accepted_once(function: str, once: str) -> str:
    """Set when an event with this idempotency key was accepted. Expires after a day."""
    return f"{PREFIX}fn:{{{function}}}:once:{once}"


def readings(function: str) -> str:
    """Stream of Readings, several in an entry. Trimmed by age and count."""
    return f"{PREFIX}fn:{{{function}}}:readings"


def month_bill(function: str, month: str) -> str:
    """Hash of what the function used in a month ("2026-11"): the fold of its Readings."""
    return f"{PREFIX}fn:{{{function}}}:bill:{month}"


def commit_mark(function: str, batch: str) -> str:
    """Set when a batch of readings was committed. Expires after an hour."""
    return f"{PREFIX}fn:{{{function}}}:mark:{batch}"


def quarantine(function: str) -> str:
    """Entries of the durable stream that no publisher of ours wrote. The newest 1,000."""
    return f"{PREFIX}fn:{{{function}}}:quarantine"


def billed_functions(month: str) -> str:
    """Set of the functions that have a bill for that month."""
    return f"{PREFIX}billed:{month}"


BACKLOG = f"{PREFIX}backlog"
"""Set of functions with events that have not ended, perhaps: what a sweep looks through."""


OUTBOXES = f"{PREFIX}outboxes"
"""Set of functions whose outbox may hold something: what a sweep looks through."""

LEDGERS = f"{PREFIX}ledgers"
"""Set of functions that ever had an asynchronous event."""

DUE_SHARDS = 8


def due(shard: int) -> str:
    """Sorted set: function to when its earliest delayed event is due, in ms. Hints: a sweep over
    the backlog repairs what is lost."""
    return f"{PREFIX}due:{{{shard}}}"


def due_shard(function: str) -> int:
    return zlib.crc32(function.encode()) % DUE_SHARDS


DURABLE_NODES = f"{PREFIX}durable-nodes"
"""Set: names of the nodes that ever took something from the durable lane."""


def durable_epochs(node: str) -> str:
    """As `epochs`, for what a supervisor took from the durable lane."""
    return f"{PREFIX}node:{{{node}}}:durable-epochs"


def durable_epoch_functions(node: str, epoch: str) -> str:
    """As `epoch_functions`, for the durable lane."""
    return f"{PREFIX}node:{{{node}}}:durable-epoch:{epoch}"


def function_urls(function: str) -> str:
    """Hash: qualifier ("" for the function itself) to its FunctionUrl, as msgpack. Goes with it."""
    return f"{PREFIX}fn:{{{function}}}:urls"


URLS = f"{PREFIX}urls"
"""Set of the functions that may have a URL: what a gateway reads when it starts."""

FUNCTIONS = f"{PREFIX}functions"
"""Sorted set of all function names, each with score 0, so that they list in order."""

APIS = f"{PREFIX}apis"
"""Hash: API id to its record (routes and integrations within), as msgpack."""

TRIGGERS = f"{PREFIX}{{triggers}}:records"
"""Hash: name to schedule or file trigger, as msgpack. Routes are with their API."""

TRIGGERS_VERSION = f"{PREFIX}{{triggers}}:version"
"""Counts the changes of the hash above."""


def trigger_memory(trigger: str) -> str:
    """Hash: what an adapter remembers of a trigger, and under "" the trigger's id. Goes with it."""
    return f"{PREFIX}trigger:{{{trigger}}}:memory"


ACCESS_KEYS = f"{PREFIX}access-keys"
"""Hash: access key id to secret. Made at first start."""

ROLE_KEY = f"{PREFIX}role-key"
"""32 random bytes from which the credentials of functions follow. Made at first start."""
