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
"""Set of functions whose durable stream may hold events: what a sweep looks through."""


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
