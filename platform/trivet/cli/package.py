"""Package: a file, a folder or a zip as the deployment package that AWS would take.

The same files always give the same zip, byte for byte, so that its digest says whether anything
changed.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trivet.errors import CallerError

MAX_ZIP_BYTES = 52_428_800

# Patterns of a folder's own, in the form of .gitignore. That file itself does not count: it
# usually names node_modules, without which a function does not run.
IGNORE_FILE = ".trivetignore"

# What no function needs to run.
IGNORED = (
    *(".git/", ".hg/", ".svn/", ".gitignore", ".gitattributes", IGNORE_FILE),
    *("__pycache__/", "*.pyc", "*.pyo", ".venv/", "*.egg-info/"),
    *(".mypy_cache/", ".pytest_cache/", ".ruff_cache/", ".hypothesis/", ".tox/", ".nox/"),
    *(".trivet/", ".aws-sam/", ".serverless/", ".idea/", ".vscode/", ".DS_Store"),
)
_VIRTUAL_ENVIRONMENT = "pyvenv.cfg"  # names the folder that holds it, whatever that is called

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can say


@dataclass(frozen=True)
class Package:
    """A zip, and the files in it."""

    source: Path
    zip_bytes: bytes
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self._archive().namelist()))

    def read(self, name: str) -> bytes:
        """The content of a file. Raises CallerError when it is damaged."""
        try:
            return self._archive().read(name)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
            raise _unreadable(self.source, str(error)) from error

    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(io.BytesIO(self.zip_bytes))


def read_package(source: Path) -> Package:
    """The package of a file, a folder or a zip. Raises CallerError."""
    try:
        if source.is_dir():
            zip_bytes = _zip_of_folder(source)
        elif source.suffix == ".zip":
            zip_bytes = source.read_bytes()
            if not zipfile.is_zipfile(io.BytesIO(zip_bytes)):
                raise _unreadable(source, "it is no zip")
        else:
            zip_bytes = _zip([_Entry(source.name, source)])
    except OSError as error:
        place = error.filename or source
        hint = f"ls -l {shlex.quote(str(Path(place).parent))}"
        raise CallerError(f"{place}: {error.strerror or error}", hint=hint) from error
    if len(zip_bytes) > MAX_ZIP_BYTES:
        megabytes = len(zip_bytes) / 1_048_576
        message = f"the zip of {source} has {megabytes:.0f} MB, and a function may have 50"
        largest = f"du -ah {shlex.quote(str(source))} | sort -rh | head"
        raise CallerError(message, hint=largest)
    return Package(source, zip_bytes)


def _unreadable(source: Path, why: str) -> CallerError:
    return CallerError(
        f"{source} cannot be read as a zip: {why}", hint=f"unzip -t {shlex.quote(str(source))}"
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str  # as in the zip: "lib/names.py"
    path: Path
    is_link: bool = False


def _zip_of_folder(folder: Path) -> bytes:
    entries = sorted(_walk(folder, _rules(folder)), key=lambda entry: entry.name)
    if not entries:
        hint = f"ls -A {shlex.quote(str(folder))}"
        raise CallerError(f"there is nothing to deploy in {folder}", hint=hint)
    return _zip(entries)


def _zip(entries: Sequence[_Entry]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in entries:
            info = zipfile.ZipInfo(entry.name, _EPOCH)
            info.create_system = 3  # Unix: the mode counts
            info.compress_type = zipfile.ZIP_DEFLATED
            if entry.is_link:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(info, os.readlink(entry.path))
                continue
            is_executable = entry.path.stat().st_mode & stat.S_IXUSR
            info.external_attr = (stat.S_IFREG | (0o755 if is_executable else 0o644)) << 16
            archive.writestr(info, entry.path.read_bytes())
    return out.getvalue()


def _walk(root: Path, rules: Sequence[_Rule], below: str = "") -> Iterator[_Entry]:
    with os.scandir(root / below) as listed:
        found = sorted(listed, key=lambda each: each.name)
    if any(each.name == _VIRTUAL_ENVIRONMENT for each in found) and below:
        return
    for each in found:
        name = f"{below}{each.name}"
        is_folder = each.is_dir(follow_symlinks=False)
        if _is_ignored(name, is_folder, rules):
            continue
        if is_folder:
            yield from _walk(root, rules, f"{name}/")
        elif each.is_symlink():
            _check_link(root, name)
            yield _Entry(name, Path(each.path), is_link=True)
        elif each.is_file():
            yield _Entry(name, Path(each.path))
        # A socket or a pipe is nothing that code consists of.


def _check_link(root: Path, name: str) -> None:
    """What a link means has to come along."""
    target = os.readlink(root / name)
    meant = os.path.normpath(os.path.join(os.path.dirname(name), target))
    if target.startswith("/") or meant.startswith(".."):
        ignore = f"echo {shlex.quote('/' + name)} >> {shlex.quote(str(root / IGNORE_FILE))}"
        message = f"{root / name} links to {target}, which is outside of what is deployed"
        raise CallerError(message, hint=ignore)


# ------------------------------------------------------------------ what is left out


@dataclass(frozen=True, slots=True)
class _Rule:
    """One line of an ignore file."""

    pattern: re.Pattern[str]
    is_for_folders: bool
    takes_back: bool


def _rules(folder: Path) -> Sequence[_Rule]:
    own = folder / IGNORE_FILE
    lines = own.read_text(errors="replace").splitlines() if own.is_file() else []
    return [rule for line in (*IGNORED, *lines) if (rule := _rule(line.rstrip()))]


def _rule(line: str) -> _Rule | None:
    if not line or line.startswith("#"):
        return None
    takes_back = line.startswith("!")
    text = line.removeprefix("!").removeprefix("\\")
    is_for_folders = text.endswith("/")
    text = text.rstrip("/")
    # A slash ties a pattern to the folder; without one it holds at any depth.
    anywhere = "" if "/" in text else "(?:.*/)?"
    pattern = re.compile(anywhere + _expression(text.lstrip("/")), re.DOTALL)
    return _Rule(pattern, is_for_folders, takes_back)


_WILD = re.compile(r"(\*\*/|/\*\*\Z|\*|\?|\[!?[^\]]+\])")
_MEANS = {"**/": "(?:.*/)?", "/**": "/.*", "*": "[^/]*", "?": "[^/]"}


def _expression(glob: str) -> str:
    parts = []
    for part in _WILD.split(glob):
        if part.startswith("[") and part.endswith("]"):
            parts.append(part.replace("[!", "[^", 1).replace("\\", "\\\\"))
        else:
            parts.append(_MEANS.get(part) or re.escape(part))
    return "".join(parts)


def _is_ignored(name: str, is_folder: bool, rules: Sequence[_Rule]) -> bool:
    """The last rule that fits decides, as in git."""
    ignored = False
    for rule in rules:
        if (is_folder or not rule.is_for_folders) and rule.pattern.fullmatch(name):
            ignored = not rule.takes_back
    return ignored
