"""Settings: one frozen value, read once from a TOML file, `TRIVET_*` variables and flags."""

from __future__ import annotations

import ipaddress
import json
import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from trivet.core import egress
from trivet.core.endpoints import parse_service_endpoints
from trivet.core.resolvers import parse_resolvers
from trivet.errors import SettingsError
from trivet_worker.wire import MOST_UIDS

# How a service finds the settings that the launcher read.
VARIABLE = "TRIVET_SETTINGS_JSON"

DEFAULT_DATA = ".trivet"

SERVICE_UIDS = 4  # gateway, supervisor, adapters, Valkeys

# Functions of one machine share a part of network_range, which must hold all of them.
_LONGEST_PREFIX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operator may choose. Every field is also `TRIVET_<FIELD>` and a TOML key."""

    data: str = DEFAULT_DATA  # folder of everything this platform keeps
    host: str = "127.0.0.1"  # address of all listeners
    aws_port: int = 4566  # AWS endpoint; 0: any free port, here and below
    http_port: int = 8080  # public HTTP triggers
    console_port: int = 8081  # reserved for the web console
    region: str = "us-east-1"
    account: str = "123456789012"
    express_url: str = ""  # Redis URL; empty: an embedded Valkey
    durable_url: str = ""  # Redis URL; empty: an embedded Valkey
    durable_mb: int = 0  # memory of the embedded durable server; 0: a quarter of this machine's
    disk_reserve_mb: int = 256  # with less free in the data folder no event is accepted
    durability: str = "strict"  # "relaxed" accepts a durable server that can lose work
    node: str = "local"  # name of this machine among those that share the lanes
    runtimes: str = ""  # folder of fetched runtimes; empty: beside the interpreter
    max_environments: int = 64  # on this machine, all functions together
    max_concurrency: int = 1000  # invocations of the account at once; beyond it 429 at once
    admission_wait_ms: int = 10_000  # how long a call may wait for room before it gets a 429
    retry_after_s: str = "60 120"  # how long an asynchronous event waits before each retry
    ledger_mb: int = 16  # of ended asynchronous events that each function keeps
    metering: str = "batched"  # "strict": a synchronous answer waits until its Reading is on disk
    price_per_million_requests: str = "0.20"  # dollars; decimals, here and below
    price_per_gb_s: str = "0.0000166667"
    free_requests: int = 1_000_000  # a month, as free_gb_s
    free_gb_s: int = 400_000
    keep_warm_ms: int = 300_000  # an environment idle for longer is retired
    init_limit_ms: int = 10_000  # how long a function may initialise
    cells: int = 1  # booted and unassigned Node processes per Node runtime
    spares: int = 1  # forked and uninitialised environments per function version in use
    freeze_after_ms: int = 10  # an environment idle for longer is frozen; 0: never
    cpu: str = "weight"  # by memory, work-conserving; "quota": never more than 1 vCPU per 1,769 MB
    scratch: str = "auto"  # /tmp of functions on "disk" or in "memory"; auto: disk where it works
    isolation_minimum: str = "L0"  # refuse to start below this level: L0, L1, L2 or L3
    egress: str = "internet"  # what functions may reach at most: "none", "internet", or a list
    egress_allow: str = ""  # private addresses, with ports, that functions may reach all the same
    resolvers: str = ""  # DNS servers that are asked for functions; empty: this machine's
    network_range: str = "10.213.0.0/16"  # addresses of the functions' own networks
    service_endpoints: str = ""  # "dynamodb=http://127.0.0.1:8000 ...": served elsewhere
    # What a function may do at the AWS endpoint with the credentials it is given.
    function_actions: str = "lambda:InvokeFunction lambda:InvokeAsync sts:GetCallerIdentity"
    # Log lines of an environment beyond this rate are dropped; each counts 100 bytes more.
    log_bytes_per_s: int = 1_000_000
    log_days: int = 14  # log lines older than this are removed
    log_mb: int = 1024  # the oldest log files go when all together are larger; 1 MB is 2**20 bytes
    metrics_for: str = "loopback"  # who may read /metrics without a signature; or "all"
    first_uid: int = 100_000  # environments run as uids from here on, when started as root
    failpoints: str = ""  # for tests of crashes: "commit=kill-after@3 ...", see bus/failpoints.py
    service_uid: int = 64_100  # services run as this uid and the few after it, when root

    @property
    def data_path(self) -> Path:
        return Path(self.data)

    @property
    def run_path(self) -> Path:
        """Sockets, locks and the state file of the running platform."""
        return self.data_path / "run"

    @property
    def express_socket(self) -> str:
        return str(self.run_path / "express.sock")

    @property
    def durable_socket(self) -> str:
        return str(self.run_path / "durable.sock")

    @property
    def express_address(self) -> str:
        """URL of the express lane's server, embedded or not."""
        return self.express_url or f"unix://{self.express_socket}"

    @property
    def durable_address(self) -> str:
        return self.durable_url or f"unix://{self.durable_socket}"

    @property
    def durable_bytes(self) -> int:
        """What the embedded durable server may hold."""
        if self.durable_mb:
            return self.durable_mb * 2**20
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4

    @property
    def blobs_path(self) -> Path:
        return self.data_path / "blobs"

    @property
    def logs_path(self) -> Path:
        return self.data_path / "logs"

    @property
    def retry_waits_ms(self) -> tuple[int, ...]:
        """Before the second attempt at an asynchronous event, before the third, and so on."""
        return tuple(round(float(word) * 1000) for word in self.retry_after_s.split())

    @property
    def runtimes_path(self) -> Path:
        return Path(self.runtimes) if self.runtimes else Path(sys.prefix) / "runtimes"

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def read_settings(
    *,
    flags: Mapping[str, Any] | None = None,
    variables: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """Settings from flags, then `TRIVET_*` variables, then the TOML file, then the defaults.

    `file` defaults to $TRIVET_CONFIG, or `trivet.toml` in the data folder if it exists.
    Raises SettingsError, naming where the bad value came from.
    """
    variables = os.environ if variables is None else variables
    given: dict[str, Any] = {k: v for k, v in (flags or {}).items() if v is not None}
    data = str(given.get("data") or variables.get("TRIVET_DATA") or DEFAULT_DATA)
    if file is None:
        named = variables.get("TRIVET_CONFIG")
        file = Path(named) if named else Path(data) / "trivet.toml"
        if not named and not file.exists():
            file = None
    chosen: dict[str, Any] = {}
    known = {f.name: f.type for f in fields(Settings)}
    for key, value in _from_file(file).items():
        if key not in known:
            raise SettingsError(f"{file}: there is no setting '{key}'")
        chosen[key] = _typed(key, value, known[key], str(file))
    for key, kind in known.items():
        name = f"TRIVET_{key.upper()}"
        if name in variables:
            chosen[key] = _typed(key, variables[name], kind, name)
    for key, value in given.items():
        chosen[key] = _typed(key, value, known[key], f"--{key.replace('_', '-')}")
    chosen["data"] = str(Path(chosen.get("data", data)).absolute())
    return _checked(Settings(**chosen))


def inherited_settings() -> Settings:
    """The settings that the launcher read and handed to this service."""
    return Settings(**json.loads(os.environ[VARIABLE]))


def _from_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{file} cannot be read: {error}") from error


def _typed(key: str, value: Any, kind: Any, origin: str) -> Any:
    if kind == "str":
        return str(value)
    try:
        if isinstance(value, bool):
            raise ValueError
        return int(value)
    except ValueError:
        message = f"{origin}: {key} must be a whole number, not {value!r}"
        raise SettingsError(message) from None


def _checked(settings: Settings) -> Settings:
    for key in ("aws_port", "http_port", "console_port"):
        if not 0 <= getattr(settings, key) <= 65_535:
            raise SettingsError(f"{key} must lie between 0 and 65535")
    if settings.max_environments < 1:
        raise SettingsError("max_environments must be at least 1")
    if settings.durability not in ("strict", "relaxed"):
        raise SettingsError("durability must be 'strict' or 'relaxed'")
    if settings.log_days < 1 or settings.log_mb < 1:
        raise SettingsError("log_days and log_mb must be at least 1")
    if settings.isolation_minimum not in ("L0", "L1", "L2", "L3"):
        raise SettingsError("isolation_minimum must be L0, L1, L2 or L3")
    services = range(settings.service_uid, settings.service_uid + SERVICE_UIDS)
    environments = range(settings.first_uid, settings.first_uid + MOST_UIDS)
    if min(services[0], environments[0]) < 1 or environments[-1] >= 2**31:
        raise SettingsError("first_uid and service_uid must be uids of ordinary users")
    if services[0] in environments or environments[0] in services:
        message = f"first_uid and the {MOST_UIDS - 1} after it must not include service_uid"
        raise SettingsError(message)
    if settings.cpu not in ("weight", "quota"):
        raise SettingsError("cpu must be 'weight' or 'quota'")
    if settings.scratch not in ("auto", "disk", "memory"):
        raise SettingsError("scratch must be 'auto', 'disk' or 'memory'")
    if settings.spares < 0 or settings.freeze_after_ms < 0:
        raise SettingsError("spares and freeze_after_ms must not be negative")
    _check_network(settings)
    if settings.metrics_for not in ("loopback", "all"):
        raise SettingsError("metrics_for must be 'loopback' or 'all'")
    try:
        is_fit = bool(settings.retry_waits_ms) and min(settings.retry_waits_ms) >= 0
    except ValueError:
        is_fit = False
    if not is_fit:
        raise SettingsError("retry_after_s must be seconds, like '60 120'")
    if settings.ledger_mb < 1 or settings.durable_mb < 0 or settings.disk_reserve_mb < 0:
        raise SettingsError(
            "ledger_mb must be at least 1, durable_mb and disk_reserve_mb at least 0"
        )
    if settings.metering not in ("batched", "strict"):
        raise SettingsError("metering must be 'batched' or 'strict'")
    for key in ("price_per_million_requests", "price_per_gb_s"):
        try:
            price = Decimal(getattr(settings, key))
        except InvalidOperation:
            price = Decimal(-1)
        if not price.is_finite() or price < 0:
            raise SettingsError(f"{key} must be a decimal number of dollars, like 0.20")
    # A unix socket's path is held in 108 bytes, its terminating zero included.
    if len(os.fsencode(settings.durable_socket)) > 107:
        message = f"the data folder's path is too long for a unix socket: {settings.data}"
        raise SettingsError(message, hint="export TRIVET_DATA=/a/shorter/path")
    return settings


def _check_network(settings: Settings) -> None:
    try:
        egress.parse(settings.egress)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    try:
        egress.parse_networks(settings.egress_allow)
    except ValueError as error:
        raise SettingsError(f"egress_allow: {error}") from error
    try:
        parse_resolvers(settings.resolvers)
    except ValueError as error:
        raise SettingsError(f"resolvers: {error}") from error
    parse_service_endpoints(settings.service_endpoints)
    try:
        network = ipaddress.IPv4Network(settings.network_range)
    except ValueError as error:
        raise SettingsError(f"network_range: {error}") from error
    if not network.is_private or not 8 <= network.prefixlen <= _LONGEST_PREFIX:
        raise SettingsError(
            f"network_range must be a private network of IPv4 from /8 to /{_LONGEST_PREFIX},"
            " like 10.213.0.0/16"
        )
