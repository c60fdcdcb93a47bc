"""View: the root folder that environments see, made once per zygote.

A small read-only root with the system's programs and libraries, a handful of files of /etc, the
interpreter where it has always been, and empty places that each environment fills for itself.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence

from trivet_worker import kernel

CODE_PATH = "/var/task"
LAYERS_PATH = "/opt"
LIBRARY_PATH = "/var/runtime"
PLACES = {"code": CODE_PATH, "layers": LAYERS_PATH}
HOST_NAME = "169-254-100-1"
_USER, _HOME = "sbx_user1051", "/home/sbx_user1051"  # as on AWS

_SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# Some distributions keep the certificate store that /etc/ssl leads to under /var.
_BOUND_FOLDERS = (
    *("/etc/alternatives", "/etc/ca-certificates", "/etc/crypto-policies", "/etc/pki", "/etc/ssl"),
    "/var/lib/ca-certificates",
)
_COPIED_FILES = (
    *("/etc/host.conf", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/localtime"),
    *("/etc/mime.types", "/etc/protocols", "/etc/services", "/etc/timezone"),
)
_WRITTEN_FILES = {
    "/etc/group": f"root:x:0:\n{_USER}:x:990:\nnogroup:x:65534:\n",
    "/etc/hosts": f"127.0.0.1 localhost {HOST_NAME}\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "/etc/passwd": (
        "root:x:0:0::/root:/sbin/nologin\nnobody:x:65534:65534::/nonexistent:/sbin/nologin\n"
    ),
    # A door leads from there to whoever resolves names for this function; or to nobody.
    "/etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:2 attempts:2\n",
}
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_DEVICE_LINKS = {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}
_EMPTY_FOLDERS = ("/proc", "/tmp", "/dev", LAYERS_PATH, CODE_PATH, LIBRARY_PATH, "/var/empty")

# What of /proc speaks of the whole machine. It shows nothing inside.
_MASKED = (
    *("acpi", "config.gz", "kallsyms", "kcore", "key-users", "keys", "latency_stats"),
    *("sched_debug", "scsi", "sysrq-trigger", "timer_list"),
)

_OPTIONS = "mode=755,size=4m"


def build(
    needed: Sequence[str], libraries: Sequence[str], *, uids: Iterable[int], keeps_proc: bool
) -> None:
    """Replace the root of this mount namespace, which must be private to the caller.

    `needed` are folders that stay at their paths; `libraries` are shown at /var/runtime; `uids` get
    a name. In a user namespace a /proc can be mounted only where one was (`keeps_proc`): each
    environment covers it.
    """
    kernel.make_private("/")
    trees = dict(_trees(needed, libraries))
    if keeps_proc:
        trees["/proc"] = clone("/proc")
    kernel.mount("tmpfs", "/tmp", kernel.MS_NOSUID | kernel.MS_NODEV, _OPTIONS)
    for folder in _EMPTY_FOLDERS:
        os.makedirs(f"/tmp{folder}", mode=0o755)
    os.makedirs("/tmp/etc", exist_ok=True)
    for path in filter(os.path.isfile, _COPIED_FILES):
        shutil.copyfile(path, f"/tmp{path}")
    for path, text in _WRITTEN_FILES.items():
        with open(f"/tmp{path}", "w") as file:
            file.write(text)
    with open("/tmp/etc/passwd", "a") as file:
        file.writelines(f"{_USER}:x:{uid}:990::{_HOME}:/sbin/nologin\n" for uid in uids)
    for path in filter(os.path.islink, _SYSTEM_FOLDERS):
        os.symlink(os.readlink(path), f"/tmp{path}")
    for name, rest in _DEVICE_LINKS.items():
        os.symlink(f"/proc/self/fd{rest}", f"/tmp/dev/{name}")
    os.symlink("/tmp", "/tmp/var/tmp")
    devices = {path: clone(path) for path in _DEVICES}
    for path, tree in {**trees, **devices}.items():
        _make_place(f"/tmp{path}", tree)
    attach({f"/tmp{path}": tree for path, tree in trees.items()})
    kernel.pivot_root("/tmp")
    root = os.open("/", os.O_PATH)
    kernel.restrict_tree(root, kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV)
    os.close(root)
    # Devices must stay devices, so they come after the rest was restricted.
    for tree in devices.values():
        kernel.restrict_tree(tree, kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NOEXEC)
    attach(devices)


def masks() -> tuple[tuple[str, str], ...]:
    """Pairs of what to show and where, over a freshly mounted /proc."""
    shown = (f"/proc/{name}" for name in _MASKED)
    return tuple(
        ("/var/empty" if os.path.isdir(path) else "/dev/null", path)
        for path in shown
        if os.path.exists(path)
    )


def clone(path: str, meant: int = -1) -> int:
    """A detached copy of the mount at `path`, a file or a folder. The caller closes it.

    OSError if `path` does not lead to what the descriptor `meant` refers to.
    """
    original = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if meant >= 0 and not os.path.sameopenfile(original, meant):
            raise OSError(errno.ESTALE, "this is not what its path leads to")
        return kernel.clone_tree(original)
    finally:
        os.close(original)


def attach(trees: Mapping[str, int]) -> None:
    """Show clones at the paths that they are given by, and close them."""
    for path, tree in trees.items():
        kernel.call(*kernel.attaching(tree, path))
        os.close(tree)


def outermost(paths: Sequence[str]) -> tuple[str, ...]:
    """The existing folders among `paths`, as named and as resolved, without those inside others."""
    spellings = {form(path) for path in paths for form in (os.path.abspath, os.path.realpath)}
    folders = sorted(path for path in spellings if os.path.isdir(path))
    return tuple(f for f in folders if not any(is_inside(f, other) for other in folders))


def ways(paths: Sequence[str], top: str) -> list[str]:
    """These folders below `top` and those on the way to them, outer ones first."""
    parts = [path.split("/") for path in paths]
    found = {"/".join(each[: n + 1]) for each in parts for n in range(len(each))}
    return sorted(path for path in found if is_inside(path, top))


def is_inside(path: str, folder: str) -> bool:
    return path != folder and path.startswith(folder.rstrip("/") + "/")


def _trees(needed: Sequence[str], libraries: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Where things appear, and copies of what is to appear there; outer ones first."""
    system = [path for path in _SYSTEM_FOLDERS if os.path.isdir(path) and not os.path.islink(path)]
    bound = [path for path in _BOUND_FOLDERS if os.path.isdir(path)]
    for path in outermost([*system, *bound, *needed]):
        # A link on the way to a folder is named too: both names lead to it.
        yield path, clone(path)
    for path in libraries:
        yield f"{LIBRARY_PATH}/{os.path.basename(path)}", clone(path)


def _make_place(path: str, tree: int) -> None:
    """A folder or a file, as `tree` needs it to be attached to."""
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        os.makedirs(path, mode=0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(path, "x"):
            pass
