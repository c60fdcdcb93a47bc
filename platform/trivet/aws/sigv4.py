"""SigV4: who signed a request, proven before a byte of its body is understood.

Works on the request's raw bytes, so nothing a server normalised stands between what was signed
and what is checked. A request is judged in two steps: its claim (who, when, for what), as soon
as the headers are there, and its proof, when the body is. So nobody without a known key makes us
read a body.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from hashlib import sha256
from urllib.parse import unquote_to_bytes

from trivet.core.roles import Session

from .canonical import (
    ALGORITHM,
    Pair,
    canonical_headers,
    canonical_path,
    canonical_queries,
    pairs_of,
    signing_key,
    stamp_of,
)
from .refusals import Refused

SKEW = timedelta(minutes=5)
WEEK_S = 604_800

# Signed for us-east-1 by many clients wherever they are: these services have one global endpoint.
_GLOBAL_SERVICES = frozenset({"iam", "sts"})
_GLOBAL_REGION = "us-east-1"

_STAMP = re.compile(r"\d{8}T\d{6}Z\Z", re.ASCII)
_UNSIGNED = b"UNSIGNED-PAYLOAD"
_PRESIGNED = ("X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders")
_TOKEN = "X-Amz-Security-Token"

_MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your "
    "AWS Secret Access Key and signing method. Consult the service documentation for details."
)


@dataclass(frozen=True, slots=True)
class Verified:
    """Who signed, and for which service."""

    access_key: str
    service: str
    session: Session | None = None  # of a function; None: a key of the account


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says of itself; worth nothing until it is proven with the body."""

    access_key: str
    service: str
    secret: str
    scope: str  # date/region/service/aws4_request
    stamp: str
    signature: bytes
    heads: tuple[bytes, ...]  # the canonical request up to its body, in each spelling allowed
    is_body_signed: bool
    session: Session | None = None  # genuine, though whether it signed is to be proven yet


@dataclass(frozen=True, slots=True)
class _Authorization:
    """The parts of a signature, from the header or from a presigned query."""

    credential: str
    signed_headers: str
    signature: str
    stamp: str
    expires_s: int | None  # presigned only
    token: str | None  # of credentials that are good for a time


def no_sessions(access_key: str, token: str) -> tuple[str, Session] | None:
    """Recognises nobody: where only the account's own keys are good."""
    return None


class Verifier:
    """Checks signatures against secrets, for one region.

    `sessions` gives secret and session of an access key id and its session token, or None.
    """

    def __init__(
        self,
        secrets: Callable[[str], str | None],
        region: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        presigned_limit_s: int = 3_600,
        sessions: Callable[[str, str], tuple[str, Session] | None] = no_sessions,
    ) -> None:
        self._secrets = secrets
        self._sessions = sessions
        self._region = region
        self._now = now
        self._presigned_limit_s = presigned_limit_s
        self._signing_keys: dict[tuple[str, str], bytes] = {}  # by secret and scope

    def verify(
        self,
        method: str,
        raw_path: bytes,
        query: bytes,
        headers: Sequence[Pair],
        body: bytes,
    ) -> Verified:
        """Who signed exactly this. Raises the refusal that AWS would answer.

        Header names are in lower case, as ASGI hands them over.
        """
        return self.prove(self.claim(method, raw_path, query, headers), body)

    def claim(self, method: str, raw_path: bytes, query: bytes, headers: Sequence[Pair]) -> Claim:
        """What the request says, everything checked that needs no body."""
        fields = _joined(headers)
        pairs = pairs_of(query)
        authorization = self._authorization(fields, pairs)
        access_key, scope, service = self._checked_scope(authorization)
        self._check_time(authorization)
        secret, session = self._secret_of(access_key, authorization.token)
        if secret is None:
            signing_key("unknown keys take as long as known ones", scope)
            raise bad_token()
        if session is not None and self._now().timestamp() >= session.expires_s:
            message = "The security token included in the request is expired"
            raise Refused("ExpiredTokenException", message, status=403)
        signed_headers = _checked_headers(authorization, fields)
        is_presigned = authorization.expires_s is not None
        start = f"{method}\n{canonical_path(raw_path, service)}\n".encode("latin-1")
        return Claim(
            access_key=access_key,
            service=service,
            secret=secret,
            scope=scope,
            stamp=authorization.stamp,
            signature=authorization.signature.encode(),
            heads=tuple(
                b"%b%b\n%b\n" % (start, spelling, signed_headers)
                for spelling in canonical_queries(pairs)
            ),
            # A presigned URL of S3 is made before there is a body; no other service knows that.
            is_body_signed=not (is_presigned and service == "s3"),
            session=session,
        )

    def prove(self, claim: Claim, body: bytes) -> Verified:
        """Who signed this claim and this body."""
        cached = self._signing_keys.get((claim.secret, claim.scope))
        key = cached or signing_key(claim.secret, claim.scope)
        digest = sha256(body).hexdigest().encode() if claim.is_body_signed else _UNSIGNED
        start = f"{ALGORITHM}\n{claim.stamp}\n{claim.scope}\n"
        for head in claim.heads:
            text = start + sha256(head + digest).hexdigest()
            expected = hmac.digest(key, text.encode(), "sha256").hex().encode()
            if hmac.compare_digest(expected, claim.signature):
                if cached is None:
                    self._remember(claim, key)
                return Verified(claim.access_key, claim.service, claim.session)
        raise _invalid(_MISMATCH)

    def _secret_of(self, access_key: str, token: str | None) -> tuple[str | None, Session | None]:
        if token is None:
            return self._secrets(access_key), None
        return self._sessions(access_key, token) or (None, None)

    def _remember(self, claim: Claim, key: bytes) -> None:
        # Scopes change once a day; a caller that makes up services must not fill the memory.
        if len(self._signing_keys) >= 1_024:
            self._signing_keys.clear()
        self._signing_keys[claim.secret, claim.scope] = key

    def _authorization(
        self, fields: Mapping[bytes, bytes], pairs: Sequence[Pair]
    ) -> _Authorization:
        header = fields.get(b"authorization")
        decoded = _amz_parameters(pairs)
        if "X-Amz-Algorithm" not in decoded:
            if header is None:
                message = "Missing Authentication Token"
                raise Refused("MissingAuthenticationTokenException", message, status=403)
            if _TOKEN in decoded:
                raise bad_token()  # it belongs to where the signature is
            return _from_header(header.decode("latin-1"), fields)
        if header is not None:
            raise _incomplete("Only one way of authentication is allowed in a request.")
        if _TOKEN.lower().encode() in fields:
            raise bad_token()  # a presigned URL carries its own
        return self._from_query(decoded)

    def _from_query(self, decoded: Mapping[str, str]) -> _Authorization:
        _check_algorithm(decoded["X-Amz-Algorithm"])
        absent = [name for name in (*_PRESIGNED, "X-Amz-Signature") if not decoded.get(name)]
        if absent:
            wanted = " ".join(f"AWS query-string parameters must include '{n}'." for n in absent)
            raise _incomplete(f"{wanted} Re-examine the query-string parameters.")
        expires = decoded["X-Amz-Expires"]
        if not expires.isdecimal() or not 1 <= int(expires[:9]) <= WEEK_S:
            raise _incomplete(f"X-Amz-Expires must be between 1 and {WEEK_S} seconds")
        if int(expires) > self._presigned_limit_s:
            limit = self._presigned_limit_s
            raise _incomplete(f"X-Amz-Expires must not exceed {limit} seconds here")
        return _Authorization(
            credential=decoded["X-Amz-Credential"],
            signed_headers=decoded["X-Amz-SignedHeaders"],
            signature=decoded["X-Amz-Signature"],
            stamp=decoded["X-Amz-Date"],
            expires_s=int(expires),
            token=decoded.get(_TOKEN),
        )

    def _checked_scope(self, authorization: _Authorization) -> tuple[str, str, str]:
        """Access key, scope and service."""
        parts = authorization.credential.split("/")
        if len(parts) != 5:
            raise _incomplete(
                "Credential must have exactly 5 slash-delimited elements, e.g. "
                f"keyid/date/region/service/term, got '{authorization.credential}'"
            )
        access_key, date, region, service, terminator = parts
        if terminator != "aws4_request":
            raise _invalid(
                "Credential should be scoped with a valid terminator: 'aws4_request', "
                f"not '{terminator}'."
            )
        is_global = service in _GLOBAL_SERVICES and region == _GLOBAL_REGION
        if region != self._region and not is_global:
            raise _invalid("Credential should be scoped to a valid region. ")
        if date != authorization.stamp[:8]:
            raise _invalid(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date "
                f"from HTTP: '{date}' != '{authorization.stamp[:8]}', from "
                f"'{authorization.stamp}'."
            )
        return access_key, "/".join(parts[1:]), service

    def _check_time(self, authorization: _Authorization) -> None:
        stamp, now = authorization.stamp, self._now()
        signed_at = _instant(stamp)
        lifetime, told = SKEW, "5 min."
        if authorization.expires_s is not None:
            lifetime = timedelta(seconds=authorization.expires_s)
            told = f"{authorization.expires_s} sec."
        if signed_at < now - lifetime:
            raise _invalid(
                f"Signature expired: {stamp} is now earlier than {stamp_of(now - lifetime)} "
                f"({stamp_of(now)} - {told})"
            )
        if signed_at > now + SKEW:
            raise _invalid(
                f"Signature not yet current: {stamp} is still later than {stamp_of(now + SKEW)} "
                f"({stamp_of(now)} + 5 min.)"
            )


def may_be_signed(query: bytes, headers: Sequence[Pair]) -> bool:
    """Whether a request so much as claims a signature."""
    return any(name == b"authorization" for name, _ in headers) or b"X-Amz-Algorithm" in query


def _from_header(header: str, fields: Mapping[bytes, bytes]) -> _Authorization:
    algorithm, _, rest = header.partition(" ")
    if algorithm.startswith("AWS4-"):
        _check_algorithm(algorithm)
    else:
        rest = ""  # a bearer token, for one: told what is missing, as AWS does
    parts = dict(_parameter(part) for part in rest.split(","))
    absent = [
        f"Authorization header requires '{name}' parameter."
        for name in ("Credential", "Signature", "SignedHeaders")
        if not parts.get(name)
    ]
    dated_by = b"x-amz-date" if b"x-amz-date" in fields else b"date"
    if dated_by not in fields:
        wanted = "existence of either a 'X-Amz-Date' or a 'Date' header."
        absent.append(f"Authorization header requires {wanted}")
    if absent:
        # AWS echoes the header; a token for someone else does not belong into answers and logs.
        raise _incomplete(" ".join(absent))
    stamp = fields[dated_by].decode("latin-1")
    if dated_by == b"date":
        stamp = _stamp_of_date(stamp)
    token = fields.get(_TOKEN.lower().encode())
    return _Authorization(
        credential=parts["Credential"],
        signed_headers=parts["SignedHeaders"],
        signature=parts["Signature"],
        stamp=stamp,
        expires_s=None,
        token=None if token is None else token.decode("latin-1"),
    )


def _parameter(part: str) -> tuple[str, str]:
    name, _, value = part.strip().partition("=")
    return name, value


def _check_algorithm(algorithm: str) -> None:
    if algorithm != ALGORITHM:
        raise _incomplete(f"Unsupported AWS 'algorithm': '{algorithm}'.")


def _joined(headers: Sequence[Pair]) -> dict[bytes, bytes]:
    """Headers by name; those of one name joined as their canonical form joins them."""
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in fields:
            fields[name] = b",".join((b" ".join(fields[name].split()), b" ".join(value.split())))
        else:
            fields[name] = value
    return fields


def _checked_headers(authorization: _Authorization, fields: Mapping[bytes, bytes]) -> bytes:
    """The signed headers with their list, once every header that must be signed is among them."""
    names = authorization.signed_headers.encode("latin-1").split(b";")
    if b"host" not in names:
        raise _invalid("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
    is_dated = authorization.expires_s is not None or b"x-amz-date" in fields or b"date" in names
    unsigned = [
        name.decode("latin-1") for name in fields if name[:6] == b"x-amz-" and name not in names
    ]
    if unsigned or not is_dated:
        listed = ", ".join(unsigned) or "date"
        raise _invalid(f"There were headers present in the request which were not signed: {listed}")
    try:
        return canonical_headers(fields, names)
    except KeyError:
        raise _invalid(_MISMATCH) from None


def _amz_parameters(pairs: Sequence[Pair]) -> dict[str, str]:
    """The decoded parameters of a presigned URL; none of them may come twice."""
    found: dict[str, str] = {}
    for name, value in pairs:
        decoded = unquote_to_bytes(name).decode("latin-1")
        if decoded.startswith("X-Amz-"):
            if decoded in found:
                raise _incomplete(f"AWS query-string parameter '{decoded}' must come only once.")
            found[decoded] = unquote_to_bytes(value).decode("latin-1")
    return found


def _instant(stamp: str) -> datetime:
    try:
        if _STAMP.match(stamp) is None:
            raise ValueError(stamp)
        return datetime.fromisoformat(stamp)
    except ValueError:
        raise _incomplete(
            f"Date must be in ISO-8601 'basic format'. Got '{stamp}'. "
            "See http://en.wikipedia.org/wiki/ISO_8601"
        ) from None


def _stamp_of_date(date: str) -> str:
    if _STAMP.match(date):
        return date
    try:
        return stamp_of(parsedate_to_datetime(date).astimezone(UTC))
    except (ValueError, OverflowError):
        raise _incomplete(f"Date header is not a date: '{date}'.") from None


def bad_token() -> Refused:
    """These credentials are not known here."""
    message = "The security token included in the request is invalid."
    return Refused("UnrecognizedClientException", message, status=403)


def _invalid(message: str) -> Refused:
    return Refused("InvalidSignatureException", message, status=403)


def _incomplete(message: str) -> Refused:
    return Refused("IncompleteSignatureException", message)
