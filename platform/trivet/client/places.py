"""Places: which platform a client speaks to, and with which key."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from trivet.bus.keys import ACCESS_KEYS
from trivet.errors import SettingsError, Unavailable
from trivet.settings import Settings, read_settings

# The server is on this machine, or one hop away.
_ANSWER_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An AWS endpoint, and who we are there."""

    host: str
    port: int
    tls: bool
    region: str
    access_key: str
    secret: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"

    def __repr__(self) -> str:
        return f"<Place {self.url} as {self.access_key}>"  # the secret is nobody's to read


def find_place(
    endpoint: str = "",
    access_key: str = "",
    secret: str = "",
    region: str = "",
    data: str = "",
    variables: Mapping[str, str] | None = None,
) -> Place:
    """The platform meant by the arguments, by the variables that `trivet env` sets, or by `data`.

    A key belongs to its endpoint: without an endpoint in arguments or variables, the key of the
    running platform is used, whatever AWS_ACCESS_KEY_ID says. Raises SettingsError and Unavailable.
    """
    variables = os.environ if variables is None else variables
    endpoint = endpoint or ("" if data else variables.get("AWS_ENDPOINT_URL", ""))
    if not endpoint:
        return _running(data, region, access_key, secret, variables)
    access_key = access_key or variables.get("AWS_ACCESS_KEY_ID", "")
    secret = secret or variables.get("AWS_SECRET_ACCESS_KEY", "")
    if not access_key or not secret:
        message = f"there is no access key for {endpoint}"
        raise SettingsError(message, hint=f'eval "$({command()} env)"')
    named = variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION")
    return _placed(endpoint, region or named or Settings().region, access_key, secret)


def command() -> str:
    """How this user calls us, for hints."""
    return os.environ.get("TRIVET_COMMAND", "trivet")


def _placed(endpoint: str, region: str, access_key: str, secret: str) -> Place:
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"the endpoint {endpoint!r} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        message = f"the endpoint is written http://HOST:PORT, which {endpoint!r} is not"
        raise SettingsError(message)
    tls = parts.scheme == "https"
    return Place(
        host=parts.hostname,
        port=port or (443 if tls else 80),
        tls=tls,
        region=region,
        access_key=access_key,
        secret=secret,
    )


def _running(
    data: str, region: str, access_key: str, secret: str, variables: Mapping[str, str]
) -> Place:
    """The platform of a data folder. A state file that outlived it leads to nobody's port."""
    settings = read_settings(flags={"data": data or None}, variables=variables)
    try:
        state = json.loads((settings.run_path / "platform.json").read_bytes())
        url, said = str(state["aws_url"]), str(state.get("region", settings.region))
    except (OSError, ValueError, KeyError):
        message = f"no platform is running on {settings.data}"
        raise Unavailable(message, hint=f"{command()} up --detach") from None
    if not access_key or not secret:
        access_key, secret = _access_key(settings)
    return _placed(url, region or said, access_key, secret)


def _access_key(settings: Settings) -> tuple[str, str]:
    """An access key id and its secret, from the durable server where they live."""
    # An import that takes longer than a call, and is needed here only.
    from redis import Redis
    from redis.exceptions import RedisError

    address = settings.durable_address
    try:
        with Redis.from_url(
            address, protocol=2, socket_timeout=_ANSWER_WITHIN_S, decode_responses=True
        ) as durable:
            secrets = durable.hgetall(ACCESS_KEYS)
    except (RedisError, OSError) as error:
        message = f"the access keys of {settings.data} cannot be read: {error}"
        raise Unavailable(message, hint=f'eval "$({command()} env)"') from error
    if not isinstance(secrets, dict) or not secrets:
        message = f"the platform on {settings.data} has no access key yet"
        raise Unavailable(message, hint=f"{command()} up --detach")
    key, secret = min(secrets.items())
    return str(key), str(secret)
