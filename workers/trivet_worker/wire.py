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
MOST_DESCRIPTORS = 6  # beside one command
MOST_UIDS = 60_000  # that environments may run as: a zygote knows the first, and takes no other

# supervisor -> zygote. The id of a process is the supervisor's choice, at SPAWN, for good.
SPAWN = 1  # numbers: uid to run as (0: keep), `WITH_*` | MB of /tmp << 8.  fds: channel, log pipe,
#            then those that WITH_* names, in the order of its bits
FILL = 2  # numbers: 0, `WITH_CODE` and perhaps `WITH_LAYERS`.  fds: those.  For a waiting cell
KILL = 3  # numbers: signal (0: SIGKILL; or SIGSTOP, SIGCONT), 0
ADOPT = 4  # numbers: uid, 0.  fds: pidfd.  A process of a zygote that died: end it with yourself

WITH_CODE = 1  # O_PATH folder, shown at /var/task
WITH_LAYERS = 2  # O_PATH folder, shown at /opt
WITH_NETWORK = 4  # a network namespace to join; without it the environment gets an empty one
WITH_SCRATCH = 8  # a detached mount, for /tmp; without it, memory
WITH_CGROUP = 16  # no descriptor: join the cgroups that are named like the uid
AS_CUSTOM = 32  # no descriptor: a custom runtime, whose own program is started

# zygote -> supervisor
READY = 16  # numbers: `PROTOCOL`, bits of ISOLATION_*
STARTED = 17  # numbers: pid as the zygote sees it, `DOOR_*`.  fds: pidfd, then those DOOR_* names
EXITED = 18  # numbers: exit status (>= 0), or minus the signal (< 0), 0
REFUSED = 19  # numbers: errno, 0.  The environment could not be started, or the cell not filled
FILLED = 20  # numbers: 0, 0.  The cell now sees the code

# Sockets that were bound inside the environment's own network, for those who serve them outside.
DOOR_AWS = 1  # TCP listener on any loopback address, port AWS_PORT
DOOR_NAMES = 2  # UDP socket on 127.0.0.1, port 53
DOOR_RUNTIME = 4  # TCP listener on 127.0.0.1, port RUNTIME_PORT; custom runtimes only

AWS_PORT = 4566
RUNTIME_PORT = 9001

ISOLATION_PID = 1  # own PID namespace
ISOLATION_MOUNT = 2  # own root, IPC and UTS: read-only /var/task, private /tmp, own /proc
ISOLATION_UID = 4  # a uid of its own
ISOLATION_USER = 8  # through a user namespace, without root
ISOLATION_NETWORK = 16  # own network
ISOLATION_SECCOMP = 32  # system calls filtered
ISOLATION_LANDLOCK = 64  # files, sockets and signals confined once more
ISOLATION_CGROUP = 128  # memory, CPU, processes limited; can be frozen

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
