"""Wire: every frame between supervisor, zygotes and execution environments.

Two links, both little-endian and of fixed shapes:

* supervisor <-> zygote, SOCK_SEQPACKET: one `COMMAND` per message, descriptors beside it. Ids and
  numbers only: a zygote holds privilege and never reads a byte that a user wrote.
* supervisor <-> environment, SOCK_STREAM, descriptor 3 inside: `FRAME` and a body. An environment
  runs hostile code, so the supervisor bounds `length` before it keeps a byte of the body.
"""

import struct

PROTOCOL = 1

# ------------------------------------------------------------------ supervisor <-> zygote
# kind, environment id, two numbers whose meaning the kind gives
COMMAND = struct.Struct("<BxxxIiI")

# supervisor -> zygote
SPAWN = 1  # numbers: uid to run as (0: keep), 0.  fds: channel, log pipe, code tree if forked
FILL = 2  # numbers: 0, 0.  fds: pidfd of a waiting cell, code tree (O_PATH)
KILL = 3  # numbers: 0, 0.  fds: pidfd
ADOPT = 4  # numbers: 0, 0.  fds: pidfd.  An environment of a zygote that died: end it with yourself

# zygote -> supervisor
READY = 16  # numbers: `PROTOCOL`, bits of ISOLATION_*
STARTED = 17  # numbers: pid as the zygote sees it, 0.  fds: pidfd
EXITED = 18  # numbers: exit status (>= 0), or minus the signal (< 0), 0
REFUSED = 19  # numbers: errno, 0.  The environment could not be started, or the cell not filled
FILLED = 20  # numbers: 0, 0.  The cell now sees the code

ISOLATION_PID = 1  # own PID namespace
ISOLATION_MOUNT = 2  # own mounts: read-only /var/task, private /tmp, own /proc
ISOLATION_UID = 4  # a uid of its own
ISOLATION_USER = 8  # through a user namespace, without root

# ------------------------------------------------------------- supervisor <-> environment
# kind, attempt, length of the body. An environment echoes the attempt it answers: a late or
# invented answer has another number, which is a broken protocol and ends the environment.
FRAME = struct.Struct("<BII")

CHANNEL_FD = 3

# supervisor -> environment
INIT = 1  # body: JSON, see below
EVENT = 2  # body: EVENT_HEAD, request id, function ARN, trace id, client context JSON, payload

# environment -> supervisor
INITIALISED = 16  # body: USAGE
INIT_FAILED = 17  # body: USAGE, then the error as JSON (errorType, errorMessage, ...)
RESULT = 18  # body: USAGE, then the handler's result as JSON
ERROR = 19  # body: USAGE, then the error as JSON

# INIT body, a JSON object:
#   handler         "index.handler"
#   task_root       "/var/task", or the code's own folder where mounts cannot be private
#   environment     {name: value}, the whole process environment
#   function        {name, version, memory_mb (int), log_group, log_stream}

# deadline in ms since the Unix epoch, then the lengths of request id, ARN, trace id, client context
EVENT_HEAD = struct.Struct("<QHHHI")
# peak resident memory of the environment in KiB, as it says itself
USAGE = struct.Struct("<I")

MAX_REQUEST_BYTES = 6_291_456  # AWS: 6 MB synchronous payload
MAX_RESPONSE_BYTES = 6_291_556  # AWS: 6 MB + 100, as its error text says
MAX_FRAME_BYTES = MAX_RESPONSE_BYTES + USAGE.size
