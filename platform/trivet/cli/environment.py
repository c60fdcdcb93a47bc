"""Environment: the variables by which every AWS client of a shell meets this platform only.

With the platform down they still name a local endpoint and a key that is none, so that no command
of that shell reaches a real account.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trivet.cli.running import Running, make_data_folder
from trivet.settings import Settings

# Whatever names an account, a session or an endpoint from somewhere else.
FOREIGN = (
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
)
# AWS_ENDPOINT_URL_LAMBDA and its like win over AWS_ENDPOINT_URL.
_FOREIGN_PREFIX = "AWS_ENDPOINT_URL_"

_PROXIES = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")

# Discard: a port on which nothing answers, for a platform that takes any free one and is not up.
_NOBODYS_PORT = 9

NO_KEY = "trivet-is-not-running"

_CONFIG = """\
# Written by `trivet env`, and again by its next run.
[default]
region = {region}
output = json
cli_binary_format = raw-in-base64-out
cli_pager =
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """What a shell has to set, and what it has to forget."""

    exports: Mapping[str, str]
    unsets: tuple[str, ...]

    def applied(self, variables: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in variables.items() if name not in self.unsets}
        return {**kept, **self.exports}


def environment_of(
    settings: Settings, running: Running | None, variables: Mapping[str, str]
) -> Environment:
    """The variables for the running platform, or for one that is down.

    Raises Unavailable when it runs and will not tell its keys.
    """
    if running is None:
        return keyless_environment(settings, None, variables)
    from trivet.cli.keyring import access_key  # a third of this command line's imports

    return _environment(settings, running, variables, *access_key(settings))


def keyless_environment(
    settings: Settings, running: Running | None, variables: Mapping[str, str]
) -> Environment:
    """The same with a key that opens nothing."""
    return _environment(settings, running, variables, NO_KEY, NO_KEY)


def _environment(
    settings: Settings,
    running: Running | None,
    variables: Mapping[str, str],
    key_id: str,
    secret: str,
) -> Environment:
    region = running.region if running else settings.region
    files = _write_files(settings, region)
    exports = {
        "AWS_ENDPOINT_URL": running.aws_url if running else _url(settings, settings.aws_port),
        "AWS_ACCESS_KEY_ID": key_id,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": region,
        "AWS_REGION": region,
        "AWS_CONFIG_FILE": files.config,
        "AWS_SHARED_CREDENTIALS_FILE": files.credentials,
        "TRIVET_DATA": settings.data,
        "TRIVET_HTTP_URL": running.http_url if running else _url(settings, settings.http_port),
        "PATH": _path(files.folder, variables.get("PATH", os.defpath)),
    }
    if any(variables.get(name) for name in _PROXIES):
        for name in ("NO_PROXY", "no_proxy"):
            hosts = (variables.get(name), "127.0.0.1", "localhost", "::1")
            exports[name] = ",".join(dict.fromkeys(_listed(hosts)))
    foreign = (name for name in sorted(variables) if name.startswith(_FOREIGN_PREFIX))
    return Environment(exports, (*FOREIGN, *foreign))


def _listed(parts: Iterable[str | None]) -> list[str]:
    return [item.strip() for part in parts if part for item in part.split(",")]


def _url(settings: Settings, port: int) -> str:
    host = settings.host
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    elif ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port or _NOBODYS_PORT}"


@dataclass(frozen=True, slots=True)
class _Files:
    folder: Path | None
    config: str
    credentials: str


def _write_files(settings: Settings, region: str) -> _Files:
    """The AWS configuration, credentials that hold nothing, and folders for PATH."""
    folder = settings.data_path / "client"
    config = _CONFIG.format(region=region)
    try:
        make_data_folder(settings)
        for name in ("bin", "aws"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        _write(folder / "config", config)
        _write(folder / "credentials", "")
        _link(folder / "bin" / "trivet")
        _link(folder / "aws" / "aws")
    except OSError:
        # Another user's data folder. What its owner wrote serves; else nothing is configured.
        if not (folder / "config").is_file():
            return _Files(None, os.devnull, os.devnull)
    return _Files(folder, str(folder / "config"), str(folder / "credentials"))


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        draft.write_text(text)
        draft.replace(path)


def _link(path: Path) -> None:
    """A link to the program of that name in the private environment."""
    program = os.path.join(sys.prefix, "bin", path.name)
    if not path.is_symlink() or os.readlink(path) != program:
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        draft.symlink_to(program)
        draft.replace(path)


def _path(folder: Path | None, path: str) -> str:
    """PATH with our `trivet` first, and our `aws` last where there is no other."""
    if folder is None:
        return path
    ours = (str(folder / "bin"), str(folder / "aws"))
    others = [part for part in path.split(os.pathsep) if part not in ours]
    has_aws = shutil.which("aws", path=os.pathsep.join(others)) is not None
    return os.pathsep.join((ours[0], *others, *(() if has_aws else ours[1:])))
