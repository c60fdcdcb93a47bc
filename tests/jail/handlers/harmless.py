"""What ordinary functions do, and must go on doing in a jail."""

from __future__ import annotations

import asyncio
import ctypes
import decimal
import errno
import getpass
import hashlib
import locale
import multiprocessing
import multiprocessing.connection
import os
import platform
import pwd
import random
import resource
import select
import signal
import socket
import sqlite3
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
import zoneinfo
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import children  # type: ignore[import-not-found]  # beside this file, where it is deployed


def threads() -> int:
    """More threads than processors, all of which meet."""
    barrier = threading.Barrier(32)
    workers = [threading.Thread(target=barrier.wait) for _ in range(31)]
    for worker in workers:
        worker.start()
    barrier.wait()
    for worker in workers:
        worker.join()
    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(abs, range(-10, 0)))


def subprocesses() -> list[str]:
    """A shell, a pipe through it, the interpreter itself, a signal's end."""
    shell = subprocess.run("echo one | cat", shell=True, capture_output=True, text=True, check=True)
    own = subprocess.check_output([sys.executable, "-c", "print('two')"], text=True)
    slept = subprocess.Popen(["sleep", "60"])
    slept.terminate()
    return [shell.stdout.strip(), own.strip(), str(slept.wait())]


async def _conversation() -> str:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("localhost", port)
    writer.write(b"hello\n")
    answer = (await reader.readline()).decode().strip()
    writer.close()
    server.close()
    process = await asyncio.create_subprocess_exec("echo", "child", stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    return f"{answer} {output.decode().strip()}"


def asynchronous() -> str:
    return asyncio.run(_conversation())


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"page")

    def log_message(self, *arguments: object) -> None:
        return


def http_on_localhost() -> str:
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.handle_request).start()
        with urllib.request.urlopen(f"http://localhost:{server.server_port}/") as page:
            return str(page.read().decode())


def _say(pipe: multiprocessing.connection.Connection) -> None:
    pipe.send(os.getpid() != os.getppid())
    pipe.close()


def multiprocessing_pipe() -> bool:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_say, args=(theirs,))
    process.start()
    answer = bool(ours.recv())
    process.join()
    return answer and process.exitcode == 0


def multiprocessing_queue() -> int:
    """The errno that it fails with: there is no shared memory to keep its lock in, as on AWS."""
    try:
        multiprocessing.Queue()
    except OSError as error:
        return error.errno or 0
    return 0


def database() -> list[Any]:
    for mode in ("DELETE", "WAL"):
        with sqlite3.connect("/tmp/books.db") as connection:
            connection.execute(f"PRAGMA journal_mode={mode}")
            connection.execute("CREATE TABLE IF NOT EXISTS books (title TEXT)")
            connection.execute("INSERT INTO books VALUES (?)", (mode,))
    with sqlite3.connect("/tmp/books.db") as connection:
        titles = [row[0] for row in connection.execute("SELECT title FROM books ORDER BY title")]
    os.unlink("/tmp/books.db")
    return titles


def temporary_files() -> str:
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(b"text")
        file.flush()
        path = Path(file.name)
        os.link(path, path.with_suffix(".link"))
        os.rename(path.with_suffix(".link"), path.with_suffix(".moved"))
        os.mkdir(f"{folder}/below")
        os.rename(path.with_suffix(".moved"), f"{folder}/below/moved")
        os.symlink("moved", f"{folder}/below/link")
        os.mkfifo(f"{folder}/fifo")
        return Path(f"{folder}/below/link").read_text()


def tmp_is_shared_by_children() -> str:
    subprocess.run(["sh", "-c", "echo said > /tmp/note"], check=True)
    return Path("/tmp/note").read_text().strip()


def programs_of_ones_own() -> str:
    """A binary brought along is copied to /tmp, made executable, and run."""
    program = Path("/tmp/program")
    program.write_text("#!/bin/sh\necho mine\n")
    program.chmod(0o755)
    return subprocess.check_output([str(program)], text=True).strip()


def certificates() -> int:
    """Certificate authorities that a client would trust."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    store = context.cert_store_stats()["x509_ca"]
    folder = paths.capath
    return store or (len(os.listdir(folder)) if folder else 0)


def time_zones() -> list[str]:
    utc = datetime(2026, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo("UTC"))
    return [utc.astimezone(zoneinfo.ZoneInfo("Europe/Zurich")).isoformat(), time.tzname[0]]


def names_of_localhost() -> list[str]:
    found = socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
    return sorted({str(entry[4][0]) for entry in found})


def machine() -> dict[str, bool]:
    return {
        "cpus": (os.cpu_count() or 0) >= 1 and len(os.sched_getaffinity(0)) >= 1,
        "load": len(os.getloadavg()) == 3,
        "uname": platform.system() == "Linux" and bool(platform.machine()),
        "meminfo": "MemTotal" in Path("/proc/meminfo").read_text(),
        "cpuinfo": "processor" in Path("/proc/cpuinfo").read_text(),
        "uptime": float(Path("/proc/uptime").read_text().split()[0]) > 0,
        "stat": "btime" in Path("/proc/stat").read_text(),
        "boot_id": bool(Path("/proc/sys/kernel/random/boot_id").read_text()),
        "somaxconn": int(Path("/proc/sys/net/core/somaxconn").read_text()) > 0,
        "overcommit": Path("/proc/sys/vm/overcommit_memory").read_text().strip() in "012",
        "page": resource.getpagesize() == os.sysconf("SC_PAGE_SIZE"),
    }


def about_oneself() -> dict[str, bool]:
    status = Path("/proc/self/status").read_text()
    return {
        "status": "VmRSS" in status and f"Pid:\t{os.getpid()}" in status,
        "maps": "libc" in Path("/proc/self/maps").read_text(),
        "statm": int(Path("/proc/self/statm").read_text().split()[1]) > 0,
        "environ": b"LANG" in Path("/proc/self/environ").read_bytes() or True,
        "cmdline": bool(Path("/proc/self/cmdline").read_bytes()),
        "exe": os.path.exists(os.readlink("/proc/self/exe")),
        "fd": "0" in os.listdir("/proc/self/fd"),
        "task": len(os.listdir("/proc/self/task")) >= 1,
        "cgroup": Path("/proc/self/cgroup").read_text() != "",
        "mountinfo": " /tmp " in Path("/proc/self/mountinfo").read_text(),
        "smaps": "Pss" in Path("/proc/self/smaps_rollup").read_text(),
        "limits": "Max open files" in Path("/proc/self/limits").read_text(),
        "rusage": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0,
    }


def who_am_i() -> list[str]:
    """AWS's functions run as sbx_user1051; programs ask for a name and a home."""
    return [pwd.getpwuid(os.getuid()).pw_name, getpass.getuser()]


def devices() -> dict[str, bool]:
    with open("/dev/null", "wb") as null:
        null.write(b"gone")
    with open("/dev/full", "wb", buffering=0) as full:
        try:
            full.write(b"x")
            is_full = False
        except OSError as error:
            is_full = error.errno == errno.ENOSPC
    return {
        "zero": Path("/dev/zero").open("rb").read(4) == b"\0\0\0\0",
        "random": len(Path("/dev/random").open("rb").read(4)) == 4,
        "urandom": len(Path("/dev/urandom").open("rb").read(4)) == 4,
        "full": is_full,
        "stdout": os.path.exists("/dev/stdout"),
        "stderr": os.path.exists("/dev/stderr"),
        "fd": os.path.isdir("/dev/fd"),
        "nothing": all(
            stat.S_ISCHR(os.stat(f"/dev/{name}").st_mode) for name in ("null", "zero", "full")
        ),
    }


def standard_streams_by_path() -> str:
    with open("/dev/stdout", "w") as out:
        out.write("by path\n")
    return "written"


def input_by_path() -> str:
    """Nothing is there to be read, but that can be found out."""
    return Path("/dev/stdin").read_text()


def extensions() -> dict[str, bool]:
    """C beneath Python: ctypes, a callback from C, digests, decimals, OpenSSL."""
    libc = ctypes.CDLL(None)
    numbers = (ctypes.c_int * 3)(3, 1, 2)
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int)
    )
    order = kind(lambda one, other: int(one[0] - other[0]))
    libc.qsort(numbers, 3, ctypes.sizeof(ctypes.c_int), order)
    return {
        "qsort": list(numbers) == [1, 2, 3],
        "digest": hashlib.sha256(b"x").hexdigest().startswith("2d711642"),
        "scrypt": len(hashlib.scrypt(b"x", salt=b"y", n=2, r=8, p=1)) == 64,
        "decimal": str(decimal.Decimal(1) / 7).startswith("0.142857"),
        "uuid": uuid.uuid4() != uuid.uuid1(),
        "random": random.SystemRandom().random() < 1,
        "locale": bool(locale.getpreferredencoding(False)),
    }


def memory_maps() -> bool:
    """memfd, shared anonymous memory between relatives, huge reservations, madvise."""
    import mmap

    descriptor = os.memfd_create("note")
    os.write(descriptor, b"shared")
    with mmap.mmap(descriptor, 6) as shared:
        same = shared[:] == b"shared"
    os.close(descriptor)
    with mmap.mmap(-1, 4096) as anonymous, mmap.mmap(-1, 8 << 30, flags=0x4022) as reserved:
        child = os.fork()
        if child == 0:
            try:
                anonymous[0:2] = b"hi"
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        reserved.madvise(mmap.MADV_DONTNEED)
        return same and anonymous[0:2] == b"hi"


def polls_and_timers() -> dict[str, bool]:
    ours, theirs = socket.socketpair()
    poll = select.epoll()
    poll.register(ours, select.EPOLLIN)
    theirs.send(b"x")
    seen = bool(poll.poll(5))
    event = os.eventfd(1) if hasattr(os, "eventfd") else -1
    alarms: list[int] = []
    signal.signal(signal.SIGALRM, lambda number, frame: alarms.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    signal.sigtimedwait([signal.SIGUSR1], 0.05)
    return {"epoll": seen, "eventfd": event != -1, "alarm": alarms == [signal.SIGALRM]}


def sockets_of_ones_own() -> dict[str, bool]:
    done = {}
    for name, address in (("path", "/tmp/own.sock"), ("abstract", "\0own")):
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(address)
            server.listen()
            client.connect(address)
            done[name] = True
    os.unlink("/tmp/own.sock")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        one.sendto(b"x", one.getsockname())
        done["datagram"] = one.recv(1) == b"x"
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
        route.bind((0, 0))
        done["netlink"] = True
    done["names"] = "lo" in [name for _, name in socket.if_nameindex()]
    return done


def priorities() -> dict[str, bool]:
    """Less than one was given is always to be had."""
    os.nice(1)
    os.sched_yield()
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))
    return {"nice": os.nice(0) == 1, "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 512}


def processes_of_ones_own() -> dict[str, bool]:
    child = children.parked()
    pidfd = os.pidfd_open(child)
    visible = str(child) in os.listdir("/proc")
    os.kill(child, signal.SIGKILL)
    ended = bool(select.select([pidfd], [], [], 5)[0])
    _, status = os.waitpid(child, 0)
    return {"visible": visible, "ended": ended, "killed": os.WTERMSIG(status) == signal.SIGKILL}


def numbers() -> list[float]:
    """Only where numpy was deployed with the function."""
    import numpy  # type: ignore[import-not-found]  # deployed with the function

    matrix = numpy.random.default_rng(1).random((200, 200))
    product = matrix @ numpy.linalg.inv(matrix)
    return [round(float(numpy.trace(product)), 6), float(numpy.fft.fft(numpy.ones(8))[0].real)]
