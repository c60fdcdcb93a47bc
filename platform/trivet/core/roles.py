"""Roles: the credentials that a function runs with, and what they allow.

Nothing is stored of them. An access key id, its secret and its session token all follow from the
platform's role key and from what the token says, so any process that knows the key can issue and
check them, and nobody else can do either.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

KEY_BYTES = 32
"""Length of the platform's role key."""

LIFETIME_S = 36 * 3_600
"""Credentials are refused when they are older: an environment must not live for longer."""

MAX_TOKEN_CHARACTERS = 2_048

_VERSION = 1
_HEAD = struct.Struct(">BIB")  # version, issued (s since the Unix epoch), length of the function
_MAC_BYTES = 32

# Operations whose permission has another name than they have.
_ACTIONS: Mapping[tuple[str, str], str] = {
    ("lambda", "Invoke"): "InvokeFunction",
    ("lambda", "InvokeWithResponseStream"): "InvokeFunction",
}


@dataclass(frozen=True, slots=True)
class Session:
    """A function at work in its role."""

    function: str
    role: str  # ARN, as the function was deployed with
    issued_s: int  # since the Unix epoch

    @property
    def expires_s(self) -> int:
        return self.issued_s + LIFETIME_S

    @property
    def role_name(self) -> str:
        return self.role.rpartition("/")[2] or self.function

    def arn(self, account: str) -> str:
        """Who is calling, as STS and refusals say it."""
        return f"arn:aws:sts::{account}:assumed-role/{self.role_name}/{self.function}"

    @property
    def user_id(self) -> str:
        digest = hashlib.sha256(self.role.encode()).digest()
        return f"AROA{_letters(digest)}:{self.function}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What an SDK signs with."""

    access_key: str
    secret: str
    token: str

    def __repr__(self) -> str:
        return f"<Credentials {self.access_key}>"  # a secret does not belong into a log


def issue(key: bytes, session: Session) -> Credentials:
    """Credentials of `session`; the same ones each time. `key`: KEY_BYTES that only we know."""
    function = session.function.encode()
    said = _HEAD.pack(_VERSION, session.issued_s, len(function)) + function + session.role.encode()
    return _credentials(key, said)


def recognise(key: bytes, access_key: str, token: str) -> tuple[str, Session] | None:
    """Secret and session of credentials that `issue` made, expired or not; None for all others.

    Takes as long for a token that is nearly right as for one that is not.
    """
    if len(token) > MAX_TOKEN_CHARACTERS:
        return None
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    said, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    genuine = _credentials(key, said)
    is_genuine = hmac.compare_digest(_mac(key, b"token", said), mac)
    is_its_key = hmac.compare_digest(genuine.access_key.encode(), access_key.encode())
    if not (is_genuine and is_its_key):
        return None
    _, issued_s, length = _HEAD.unpack_from(said)
    names = said[_HEAD.size :]
    return genuine.secret, Session(names[:length].decode(), names[length:].decode(), issued_s)


def action_of(service: str, operation: str) -> str:
    """The permission that an operation needs: "lambda:InvokeFunction" for Lambda's Invoke."""
    return f"{service}:{_ACTIONS.get((service, operation), operation)}"


def allows(actions: Iterable[str], action: str) -> bool:
    """Whether one of `actions`, with "*" for anything and in any case, is `action`."""
    return any(_pattern(each).match(action.lower()) is not None for each in actions)


def refusal(arn: str, action: str, resource: str) -> str:
    """What IAM says to somebody whom nothing allows it."""
    return (
        f"User: {arn} is not authorized to perform: {action} on resource: {resource} because no "
        f"identity-based policy allows the {action} action"
    )


def _credentials(key: bytes, said: bytes) -> Credentials:
    secret = base64.b64encode(_mac(key, b"secret", said)[:30]).decode()
    token = base64.urlsafe_b64encode(said + _mac(key, b"token", said)).decode()
    return Credentials(f"ASIA{_letters(_mac(key, b'id', said))}", secret, token)


def _mac(key: bytes, purpose: bytes, said: bytes) -> bytes:
    return hmac.digest(key, b"trivet %b\0%b" % (purpose, said), "sha256")


def _letters(digest: bytes) -> str:
    """Sixteen letters and digits, as AWS's ids end."""
    return base64.b32encode(digest[:10]).decode()


@lru_cache(maxsize=256)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(text.lower().replace("[", "[[]")))
